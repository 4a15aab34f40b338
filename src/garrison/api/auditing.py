"""`run_audit`: attack a service or a bundle of your own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from garrison.api.keys import Trust, trusted
from garrison.audit.data import Progress, silent
from garrison.audit.folder import audit_into, check_folder
from garrison.audit.opening import Opening, open_arms
from garrison.audit.plan import Plan, load_plan
from garrison.audit.report.content import Report


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
    check_folder(Path(out))  # now, and not after the work
    chosen = plan if isinstance(plan, Plan) else load_plan(str(plan))
    opened = replace(opening or Opening(), arms=chosen.arms)
    with open_arms(str(target), trusted(trust), opened) as arms:
        found, _ = audit_into(
            Path(out),
            chosen,
            arms,
            test=_path(test),
            surrogate=_path(surrogate),
            in_distribution=_path(in_distribution),
            cpu_threads=cpu_threads,
            report=report,
        )
    return found


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
