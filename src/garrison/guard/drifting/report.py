"""What is told of drift: alarms, and every column's shift. No input can be read off it but as shares of many rows."""

from __future__ import annotations

from typing import Literal

import msgspec

from garrison.guard.drifting.blame import Blame, CallerShift

Unpaired = Literal["", "reference", "now"]

MOST_NAMED = 64
"""Of one alarm, one after the other."""


class DriftAlarm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shift beyond its threshold.

    Attributes:
        number: 1 for the first since the state began.
        kind: one of `garrison.guard.drifting.sketch.KINDS`.
        column: the column's name.
        value, threshold: when it rang.
        row: how many rows had been counted.
        since: when, in seconds since the epoch, by the host's clock.
        active: whether it rings still.
        named: callers without whom most of the shift would not be, each since it was first found and in that order, `MOST_NAMED` at most: who is named once stays, whoever moves more later.
            Empty for a shift that is nobody's.
        moving: of whom that holds now, as last looked at; empty for nobody, and for an alarm that is over.
        callers: who explain most of it, each alone, when somebody was last found.
    """

    number: int
    kind: str
    column: str
    value: float
    threshold: float
    row: int
    since: float
    active: bool
    named: tuple[str, ...] = ()
    moving: tuple[str, ...] = ()
    callers: tuple[CallerShift, ...] = ()

    def found(self, blame: Blame) -> DriftAlarm:
        """As it is after another look at who moves it."""
        new = [name for name in blame.named if name not in self.named]
        named = (*self.named, *new)[:MOST_NAMED]
        callers = blame.callers if blame.named or not named else self.callers
        return msgspec.structs.replace(self, named=named, moving=blame.named, callers=callers)

    def over(self) -> DriftAlarm:
        """As it is once the shift has faded."""
        return msgspec.structs.replace(self, active=False, moving=())


class ColumnShift(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One column, as it is now.

    Attributes:
        ewma: standard errors by which the mean is off; 0 where means are not compared.
        edges, reference, now: its histogram; empty where it is not shown.
    """

    name: str
    psi: float
    ks: float
    ewma: float
    answer: bool
    edges: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()
    now: tuple[float, ...] = ()


class DriftReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is told.

    Attributes:
        rows: counted since the state began.
        reference_rows: that the reference was made of.
        half_life: rows after which a row counts half.
        values, peaks, thresholds: by kind, as last looked at, the highest so far, and where it rings.
        columns: most shifted first.
        callers: who move the most shifted column.
        named: who move it together; empty for nobody.
        alarms: latest last.
    """

    rows: int
    reference_rows: int
    half_life: float
    values: dict[str, float]
    peaks: dict[str, float]
    thresholds: dict[str, float]
    columns: tuple[ColumnShift, ...]
    callers: tuple[CallerShift, ...]
    named: tuple[str, ...]
    alarms: tuple[DriftAlarm, ...]

    @property
    def ringing(self) -> tuple[DriftAlarm, ...]:
        return tuple(alarm for alarm in self.alarms if alarm.active)

    def without_inputs(self) -> DriftReport:
        """What may be told where the operator must not look into inputs: alarms, and coarsely how far the most shifted column is from one.

        Its operator may send all rows of a look but one, and would read that one off exact figures, also off means and measures of single columns.
        """
        alarms = tuple(
            msgspec.structs.replace(alarm, value=_coarse(alarm.value, alarm.threshold), callers=())
            for alarm in self.alarms
        )
        values, peaks = (
            {kind: _coarse(value, self.thresholds[kind]) for kind, value in found.items()}
            for found in (self.values, self.peaks)
        )
        return msgspec.structs.replace(self, values=values, peaks=peaks, columns=(), callers=(), alarms=alarms)


def _coarse(value: float, threshold: float) -> float:
    """To a quarter of the threshold."""
    step = threshold / 4
    return round(value / step) * step


class Compared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two sets of rows, column by column.

    Attributes:
        rows, reference_rows: that were compared.
        columns: most shifted first; `ewma` is how many standard errors the means are apart.
        chance: by column, how often chance alone makes two samples differ so much.
        shifted: names of the columns that differ by more than chance makes of it in one of a hundred comparisons, all columns together.
        unpaired: which of the two alone holds y, "reference" or "now": it was left out; "" for both or neither.
    """

    rows: int
    reference_rows: int
    columns: tuple[ColumnShift, ...]
    chance: dict[str, float]
    shifted: tuple[str, ...]
    unpaired: Unpaired = ""
