"""Who was alarmed first when and by what, for the operator and for audits; and how much each caller has asked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from garrison.guard.detectors.base import Column, Detector
from garrison.guard.watching.evidence import Rung
from garrison.guard.watching.places import PlaceArray, Table
from garrison.types import Array, BoolArray, FloatArray, IntArray

logger = logging.getLogger(__name__)

ACTIONS = ("log", "misinform", "throttle", "work", "refuse")
"""What an alarm does, from mild to strict; each includes those before it."""
LOG, MISINFORM, THROTTLE, WORK, REFUSE = range(len(ACTIONS))
MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Armed:
    """A detector of the chain.

    Attributes:
        level: the number of its action in `ACTIONS`.
        shadow: its alarms are recorded, and do nothing.
    """

    name: str
    detector: Detector
    level: int
    shadow: bool


class Alarm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first alarm of one caller by one detector.

    Attributes:
        row: how many rows the caller had asked when it rang, that one included.
        group: how many callers were summed; 1 for this one alone.
        rows: how many rows those had asked together.
        nats: evidence then.
        since: when, in seconds since the epoch, by the host's clock.
        action: what it does; "" for nothing, because the detector or `watch` runs in shadow.
        active: whether it rings still.
        evidence: nats now.
    """

    caller: str
    detector: str
    row: int
    group: int
    rows: int
    nats: float
    threshold: float
    since: float
    action: str
    active: bool
    evidence: float


class Book:
    """Counts and first alarms.

    Args:
        detectors: of the chain.
        places: entries at first.

    Attributes:
        in_shadow: whether all of `watch` runs in shadow; it says so with each batch.
    """

    def __init__(self, detectors: Sequence[Armed], places: int) -> None:
        self._detectors = tuple(detectors)
        self.in_shadow = False
        several = (len(self._detectors),)
        columns = {
            "asked": Column("int64"),
            "shown": Column("int64"),
            "minute": Column("float64", (), -np.inf),
            "minute_rows": Column("int64"),
            "row": Column("int64", several),
            "group": Column("int64", several),
            "rows": Column("int64", several),
            "nats": Column("float64", several),
            "since": Column("float64", several),
        }
        self.table = Table(columns, places)

    def harmless(self, armed: Armed) -> bool:
        """Whether alarms of this detector do nothing."""
        return self.in_shadow or armed.shadow

    def count(self, place: PlaceArray, turn: PlaceArray) -> IntArray:
        """Count rows; how many their caller had asked before each.

        Args:
            place: shape (rows,).
            turn: how many of these rows its caller asked before it.
        """
        return _counted(self.table["asked"], place, turn)

    def show(self, place: PlaceArray, turn: PlaceArray) -> IntArray:
        """`count` for the rows that detectors are shown."""
        return _counted(self.table["shown"], place, turn)

    def asked(self, places: PlaceArray) -> int:
        """Rows that these callers have asked together."""
        return int(self.table["asked"][places].sum())

    def note(self, place: int, rung: Rung, row: int, now: float, group: tuple[int, int] | None = None) -> bool:
        """Note an alarm, where it is the caller's first by this detector. Whether it is.

        Args:
            row: how many rows the caller has asked.
            group: callers that are summed, and rows that they have asked; None for this one alone.
        """
        t, d = self.table, rung.detector
        if t["row"][place, d]:
            return False
        callers, rows = (1, row) if group is None else group
        t["row"][place, d], t["group"][place, d], t["rows"][place, d] = row, callers, rows
        t["nats"][place, d], t["since"][place, d] = rung.nats, now
        return True

    def tell(self, name: str, rung: Rung, row: int, group: tuple[int, int] | None = None) -> None:
        """One line in the log."""
        armed = self._detectors[rung.detector]
        what = "in shadow" if self.harmless(armed) else f"action {ACTIONS[armed.level]}"
        of = "" if group is None else f", summed over {group[0]} callers that behave alike and {group[1]} rows"
        threshold = armed.detector.threshold
        words = "watch.alarm: caller %a, detector %s, %s: row %d, %.1f nats of %.1f%s"
        logger.warning(words, name, armed.name, what, row, rung.nats, threshold, of)

    def count_minute(self, places: PlaceArray, now: float) -> None:
        """Rows of the present minute, one place a row."""
        t = self.table
        begun = np.unique(places[np.abs(now - t["minute"][places]) >= MINUTE])
        t["minute"][begun], t["minute_rows"][begun] = now, 0
        np.add.at(t["minute_rows"], places, 1)

    def this_minute(self, place: int, now: float) -> tuple[int, float]:
        """Rows of the present minute, as far as they were counted, and seconds that are left of it."""
        gone = float(now - self.table["minute"][place])
        return (int(self.table["minute_rows"][place]), MINUTE - gone) if 0 <= gone < MINUTE else (0, 0.0)

    def alarms_of(self, caller: str, place: int, ringing: BoolArray | None, evidence: FloatArray) -> list[Alarm]:
        """A caller's alarms.

        Args:
            ringing: by detector, whether it rings now; None for none.
            evidence: by detector, nats now.
        """
        t = self.table
        return [
            Alarm(
                caller=caller,
                detector=armed.name,
                row=int(t["row"][place, d]),
                group=int(t["group"][place, d]),
                rows=int(t["rows"][place, d]),
                nats=float(t["nats"][place, d]),
                threshold=float(armed.detector.threshold),
                since=float(t["since"][place, d]),
                action="" if self.harmless(armed) else ACTIONS[armed.level],
                active=ringing is not None and bool(ringing[d]),
                evidence=float(evidence[d]),
            )
            for d, armed in enumerate(self._detectors)
            if t["row"][place, d]
        ]


def _counted(counts: Array, place: PlaceArray, turn: PlaceArray) -> IntArray:
    before: IntArray = counts[place] + turn
    counts[place] = before + 1  # of several rows of one caller, the last is written last
    return before
