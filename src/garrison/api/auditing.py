"""`run_audit`: attack a service or a bundle of your own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from garrison.api.keys import Trust, trusted
from garrison.audit.cache import TrialCache
from garrison.audit.data import Progress, load_data, silent
from garrison.audit.holding import holding
from garrison.audit.opening import Opening, open_arms
from garrison.audit.plan import Plan, load_plan
from garrison.audit.report import FORMATS
from garrison.audit.report.content import Report
from garrison.audit.report.write import kept_in, load_format, write_report
from garrison.audit.run import run_audit as run


def run_audit(
    target: str | Path,
    out: str | Path,
    *,
    plan: str | Path | Plan,
    trust: Trust = (),
    opening: Opening | None = None,
    test: str | Path | None = None,
    surrogate: str | Path | None = None,
    in_distribution: str | Path | None = None,
    cpu_threads: int = 2,
    report: Progress = silent,
) -> Report:
    """Attack a service, and say in figures what it gives away. Ask only services that are yours, or whose owner agreed.

    Args:
        target: a URL, or the folder of a sealed bundle.
        out: folder for report.html and report.json; finished parts are kept there, and not done again.
        plan: the name of a shipped plan, a TOML file, or a plan.
        trust: keys that may have signed the bundles; needed for a bundle.
        opening: what it is compared with, and how it is opened.
        test, surrogate, in_distribution: .npz files that take the place of the plan's rows.
        cpu_threads: arms to attack side by side.
        report: told how far it is.

    Raises:
        FolderInUseError: another audit writes into `out`.
        AuditError, BundleError, ConfigError: it cannot be done as asked.
    """
    for name in FORMATS:
        load_format(name)  # a missing package shows now, and not after the work
    chosen = plan if isinstance(plan, Plan) else load_plan(str(plan))
    opened = replace(opening or Opening(), arms=chosen.arms)
    with open_arms(str(target), trusted(trust), opened) as arms:
        facts, own = arms.defended.facts, _path(in_distribution)
        rows = load_data(chosen, facts, test=_path(test), surrogate=_path(surrogate), in_distribution=own)
        kept = kept_in(Path(out))
        with holding(kept):
            found = run(chosen, arms, rows, cache=TrialCache(kept), cpu_threads=cpu_threads, report=report)
            write_report(found, Path(out))
    return found


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
