"""An audit into a folder: what can be known to go wrong is asked before the work, finished parts are kept there, the report is written at the end."""

from __future__ import annotations

from pathlib import Path

from garrison.audit.arms import Arms
from garrison.audit.cache import TrialCache
from garrison.audit.data import Progress, load_data
from garrison.audit.holding import holding
from garrison.audit.plan import Plan
from garrison.audit.report import FORMATS
from garrison.audit.report.content import Report
from garrison.audit.report.write import check_target, kept_in, load_format, write_report
from garrison.audit.run import run_audit


def check_folder(out: Path) -> None:
    """That a report can be written into a folder.

    Raises:
        AuditError: it cannot.
        MissingExtraError: a format needs an optional package.
    """
    for name in FORMATS:
        load_format(name)
    check_target(out)


def audit_into(
    out: Path,
    plan: Plan,
    arms: Arms,
    *,
    test: Path | None,
    surrogate: Path | None,
    in_distribution: Path | None,
    cpu_threads: int,
    report: Progress,
) -> tuple[Report, tuple[Path, ...]]:
    """Carry a plan out, and write down what was found. The report, and where it was written.

    Args:
        test, surrogate, in_distribution: .npz files that take the place of the plan's rows.
        cpu_threads: arms to attack side by side.

    Raises:
        FolderInUseError: another audit writes there.
        AuditError: rows cannot be read, or a file not written.
    """
    report("data", 0.0)
    rows = load_data(plan, arms.defended.facts, test=test, surrogate=surrogate, in_distribution=in_distribution)
    kept = kept_in(out)
    with holding(kept):
        found = run_audit(plan, arms, rows, cache=TrialCache(kept), cpu_threads=cpu_threads, report=report)
        return found, write_report(found, out)
