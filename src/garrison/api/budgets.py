"""A budget from the report of an audit, put into what is to be sealed."""

from __future__ import annotations

from pathlib import Path

from garrison.audit.budgeting import derive
from garrison.audit.report.json import MOST_BYTES, parse
from garrison.crypto.canonical import sha256_hex
from garrison.errors import AuditError, ConfigError, WrongReportError
from garrison.sealing.derived import digests_of, with_derived_budget
from garrison.sealing.draft import Draft


def derived_draft(draft: Draft, report: Path, fidelity: float, margin: float, price: float = 0.0) -> Draft:
    """The draft with a budget below the answers after which a clone reaches the fidelity.

    Args:
        report: report.json of an audit of this model.
        fidelity, margin: see `garrison.audit.budgeting.derive`.
        price: of 1,000 rows, where the draft has no budget yet.

    Raises:
        ConfigError: the file cannot be read.
        WrongReportError: it is no report, or not one from which a budget for this model follows.
    """
    try:
        with report.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"--budget-from: {report} cannot be read: {error.strerror}") from error
    try:
        found = derive(parse(data), *digests_of(draft), fidelity=fidelity, margin=margin)
    except AuditError as error:
        raise WrongReportError(f"--budget-from: {report}: {error}") from error
    except WrongReportError as error:
        raise WrongReportError(f"--budget-from: {report}: {error}") from error
    return with_derived_budget(draft, found.rows, found.metrics, sha256_hex(data), found.notes, price)
