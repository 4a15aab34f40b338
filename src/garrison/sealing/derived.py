"""A budget that was derived from a report, put into a draft. The report is read and judged elsewhere (`garrison.audit.budgeting`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from garrison.bundle.manifest import answers_digest, parts_digest
from garrison.crypto.canonical import sha256_hex
from garrison.guard.defenses.budget import Budget
from garrison.guard.pipeline import load_defense
from garrison.sealing.draft import Draft
from garrison.sealing.parameters import split
from garrison.types import DefenseSpec, Phase

REPORT_ROLE = "budget report"
EVERY_DAY = (
    "the chosen budget begins anew each day, and so does the derived number of different rows: a thief who comes back every day "
    'gets as many again. Choose the period "ever" to stop one for good'
)


def digests_of(draft: Draft) -> tuple[str, str]:
    """What the manifest of this draft will say of the model and of what decides its answers; see `Manifest.model_digest`."""
    if draft.model is None:
        model = parts_digest(["upstream", "" if draft.upstream is None else draft.upstream.metadata_sha256])
    else:
        data, chunks = split(draft.model, 0)
        model = parts_digest([sha256_hex(data), *(chunk.entry().sha256 for chunk in chunks)])
    return model, answers_digest(model, draft.guard)


def with_derived_budget(
    draft: Draft, rows: int, metrics: Mapping[str, float], report: str, notes: tuple[str, ...], price: float = 0.0
) -> Draft:
    """The draft with a budget of so many rows. A budget that the owner chose stays, and so many of its rows may be different, or
    fewer, where the owner said so.

    Args:
        metrics: where the rows come from, for the manifest.
        report: digest of the report.
        notes: what the owner should know.
        price: of 1,000 rows, where the owner chose no budget.
    """
    chain = [load_defense(spec) for spec in draft.guard]
    place = next((k for k, defense in enumerate(chain) if isinstance(defense, Budget)), None)
    if place is None:
        place = sum(defense.phase is Phase.ADMIT for defense in chain)
        specs = (*draft.guard[:place], DefenseSpec(name=Budget.name), *draft.guard[place:])
        budget = Budget(rows=rows, price_per_1000_rows=price)
    else:
        specs, own = draft.guard, msgspec.convert(draft.guard[place].parameters, Budget)
        notes = (*notes, EVERY_DAY) if own.period == "day" else notes
        budget = msgspec.structs.replace(own, distinct=min(rows, own.rows, own.distinct or rows))
    changed = msgspec.structs.replace(specs[place], parameters=msgspec.to_builtins(budget))
    guard = (*specs[:place], changed, *specs[place + 1 :])
    origin = draft.provenance
    provenance = msgspec.structs.replace(
        origin, metrics={**origin.metrics, **metrics}, data_sha256={**origin.data_sha256, REPORT_ROLE: report}
    )
    return replace(draft, guard=guard, provenance=provenance, notes=(*draft.notes, *notes))
