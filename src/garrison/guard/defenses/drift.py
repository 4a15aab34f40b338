"""Drift: what callers ask and what the model answers, against a frozen, signed reference; and which caller moves it (OWASP ML08)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import msgspec
import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import Defense, RecordDefense, View, raise_not_tighter
from garrison.guard.defenses.projection import Projection
from garrison.guard.drifting.columns import Column, layout_of, names_of, source_of
from garrison.guard.drifting.sketch import KINDS
from garrison.guard.drifting.state import DriftState, Settings
from garrison.guard.state import State
from garrison.types import ModelFacts, Phase, Released

MOST_CALLERS = 256
MOST_COLUMNS = 512


class Drift(RecordDefense, frozen=True):
    """Compare what is asked and answered with the reference, and ring where it has shifted. Refuses nothing and changes no answer.

    Does not check: whether a shift does harm; whether two callers are one person; that the host's clock is right, by which alarms are dated.

    Attributes:
        columns: what is watched, with the reference.
        thresholds: by kind of alarm, where it rings.
        half_life: rows after which a row counts half.
        callers: so many are told apart, those who ask most.
        rows: of which the reference was made.
    """

    name: ClassVar[str] = "drift"
    phase: ClassVar[Phase] = Phase.RECORD
    looks_at_scores: ClassVar[bool] = True

    columns: tuple[Column, ...]
    thresholds: dict[str, float]
    half_life: float = 2_000.0
    callers: int = 64
    rows: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.columns) <= MOST_COLUMNS:
            raise ValueError(f"drift.columns must be 1 to {MOST_COLUMNS}, found {len(self.columns)}")
        if sorted(self.thresholds) != sorted(KINDS):
            raise ValueError(
                f"drift.thresholds must be given for {', '.join(KINDS)}, found {', '.join(self.thresholds)}"
            )
        if any(not 0 < threshold < math.inf for threshold in self.thresholds.values()):
            raise ValueError("drift.thresholds must be above 0 and finite")
        if not 100 <= self.half_life <= 1e9:
            raise ValueError(f"drift.half_life must lie in 100 to 1e9 rows, found {self.half_life}")
        if not 1 <= self.callers <= MOST_CALLERS:
            raise ValueError(f"drift.callers must lie in 1 to {MOST_CALLERS}, found {self.callers}")

    def check(self, facts: ModelFacts) -> None:
        asked = sum(not column.answer for column in self.columns)
        width = asked - 2 if source_of(facts) == "projection" else 0
        if tuple(column.name for column in self.columns) != names_of(facts, source_of(facts), width):
            raise GuardError(f"{self.name}: its reference is of other columns than such a model has")
        if [column.answer for column in self.columns] != sorted(column.answer for column in self.columns):
            raise GuardError(f"{self.name}: the columns of answers must come last")

    def check_chain(self, chain: Sequence[Defense]) -> None:
        width = next((defense.width for defense in chain if isinstance(defense, Projection)), None)
        asked = [column.name for column in self.columns if not column.answer]
        if asked and asked[0] == "projection 0" and width != len(asked) - 2:
            raise GuardError(f"{self.name} needs the defense {Projection.name} of width {len(asked) - 2} before it")

    def fresh_state(self, facts: ModelFacts) -> State:
        by_projection = source_of(facts) == "projection"
        layout = layout_of(self.columns)
        return DriftState(
            Settings(layout, by_projection, self.thresholds, self.half_life, self.callers, self.rows), facts
        )

    def __call__(self, view: View, released: Released) -> None:  # noqa: ARG002
        state = view.state
        if not isinstance(state, DriftState):
            raise GuardError(f"{self.name} keeps state, and has none")
        if view.raw is None:
            return  # every request was refused before the model ran
        batch = view.batch
        names = [caller.id for caller in batch.callers]
        projection = view.signals.get("projection") if state.by_projection else None
        if state.by_projection and projection is None:
            raise GuardError(f"{self.name} needs the signal projection")
        if not any(view.refused):
            state.observe(names, batch.request_of_row, batch.inputs, projection, view.raw.values)
            return
        kept = np.flatnonzero(~np.array(view.refused)[batch.request_of_row])
        if len(kept):
            inputs = {name: x[kept] for name, x in batch.inputs.items()}
            seen = None if projection is None else projection[kept]
            state.observe(names, batch.request_of_row[kept], inputs, seen, view.raw.values[kept])

    def check_tightened(self, signed: Self) -> None:
        looser = [kind for kind in KINDS if self.thresholds[kind] > signed.thresholds[kind]]
        if looser:
            raise_not_tighter(self.name, f"the threshold of {looser[0]} must be at most {signed.thresholds[looser[0]]}")
        if self != msgspec.structs.replace(signed, thresholds=self.thresholds):
            raise_not_tighter(self.name, "only thresholds can be changed")
