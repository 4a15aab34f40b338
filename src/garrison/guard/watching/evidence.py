"""Evidence for an attack, summed: Page's CUSUM (Biometrika 1954), for many callers and detectors at once.

    S = max(0, S + nats)        row by row, so that what speaks for a caller makes up for what speaks against it, and no more
    the alarm rings             when S reaches the detector's threshold h; A = S then, and it rings as long as A >= h / 2

S and A halve in `half_life` seconds; honest rows lower S, and not A. Both are kept below 8 h, so that an alarm ends at most four half-lives after
the last row at which S was h or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column
from garrison.guard.detectors.turns import Order, sums_after
from garrison.guard.watching.places import PlaceArray, Table
from garrison.types import BoolArray, FloatArray

MOST_TIMES = 8.0
"""S and A are kept below so many times the threshold."""
ENDS_AT = 0.5
"""An alarm ends when A has fallen below this share of the threshold."""


class Rung(NamedTuple):
    """An alarm that begins.

    Attributes:
        row: of the rows given; the alarm counts from this one on.
        key, detector: whose, by which.
        nats: evidence then.
    """

    row: int
    key: int
    detector: int
    nats: float


class Found(NamedTuple):
    """What some rows came to.

    Attributes:
        rings: shape (rows, detectors), whether the alarm rings for a row; None for nowhere.
        begun: alarms that began.
    """

    rings: BoolArray | None
    begun: tuple[Rung, ...]


_NOTHING = Found(None, ())


class Evidence:
    """Sums by key and detector.

    Args:
        thresholds: of the detectors, nats.
        half_life: seconds.
        keys: entries at first.

    Attributes:
        table: S, A, and when a key was last looked at.
    """

    def __init__(self, thresholds: FloatArray, half_life: float, keys: int) -> None:
        detectors = len(thresholds)
        self.thresholds = thresholds
        self._most = MOST_TIMES * thresholds
        self._half_life = half_life
        number = Column("float64", (detectors,))
        self.table = Table({"sum": number, "alarm": number, "seen": Column("float64", (), -np.inf)}, keys)
        self._ringing: set[int] = set()

    @property
    def quiet(self) -> bool:
        """Whether no alarm rings anywhere."""
        return not self._ringing

    def is_quiet_for(self, keys: Sequence[int]) -> bool:
        """Whether `rings_somewhere` says so of none."""
        return self._ringing.isdisjoint(keys)

    def rings_somewhere(self, key: int) -> bool:
        """Whether an alarm rang for a key when it was last looked at."""
        return key in self._ringing

    def add(self, order: Order, nats: FloatArray, now: float) -> Found:
        """Add rows.

        Args:
            nats: shape (rows, detectors).
            now: seconds.
        """
        t, keys = self.table, order.keys
        share = self._left(keys, now)[:, np.newaxis]
        before = t["sum"].take(keys, axis=0)
        before *= share
        if order.turns == 1:
            before += nats
            path = np.maximum(before, 0.0, out=before)  # (keys, detectors): one row each
            last = path
        else:
            path = sums_after(before, nats, order)  # (keys, turns, detectors)
            last = path[:, -1]
        t["sum"][keys] = np.minimum(last, self._most)
        t["seen"][keys] = now
        over = path >= self.thresholds
        if not self._ringing and not over.any():
            return _NOTHING
        if order.turns == 1:
            path, over = path[:, np.newaxis], over[:, np.newaxis]
        return self._ring(order, path, over, share)

    def _ring(self, order: Order, path: FloatArray, over: BoolArray, share: FloatArray) -> Found:
        """Begin and end alarms.

        Args:
            path: S after each row, shape (keys, turns, detectors); `over`: where it reaches the threshold.
            share: what time has left of sums and alarms, shape (keys, 1).
        """
        keys, peak = order.keys, np.minimum(path.max(axis=1), self._most)
        alarm = self.table["alarm"][keys] * share
        on = alarm >= ENDS_AT * self.thresholds  # before the first of these rows
        alarm = np.where(peak >= self.thresholds, np.maximum(alarm, peak), np.where(on, alarm, 0.0))
        self.table["alarm"][keys] = alarm
        self._note(keys, alarm)
        begun = []
        for k, d in np.argwhere(over.any(axis=1) & ~on).tolist():
            turn = int(over[k, :, d].argmax())
            row = int(np.flatnonzero((order.number == k) & (order.turn == turn))[0])
            begun.append(Rung(row, int(keys[k]), d, float(path[k, turn, d])))
        rings: BoolArray = np.maximum.accumulate(over, axis=1) | on[:, np.newaxis]
        rows: BoolArray = rings[order.number, order.turn]
        return Found(rows if rows.any() else None, tuple(sorted(begun)))

    def _note(self, keys: PlaceArray, alarm: FloatArray) -> None:
        somewhere = (alarm != 0).any(axis=1, keepdims=True)[:, 0]
        for key, rings in zip(keys.tolist(), somewhere.tolist(), strict=True):
            if rings:
                self._ringing.add(key)
            else:
                self._ringing.discard(key)

    def ringing(self, key: int, now: float) -> BoolArray | None:
        """By detector, whether the alarm rings for a key; None for none. Changes nothing that counts."""
        if key not in self._ringing:
            return None
        age = max(now - float(self.table["seen"][key]), 0.0)
        found: BoolArray = self.table["alarm"][key] * np.exp2(age / -self._half_life) >= ENDS_AT * self.thresholds
        return found

    def alarms(self, keys: PlaceArray, now: float) -> FloatArray:
        """A, as it has decayed; shape (keys, detectors)."""
        found: FloatArray = self.table["alarm"][keys] * self._left(keys, now)[:, np.newaxis]
        return found

    def sums(self, keys: PlaceArray, now: float) -> FloatArray:
        """S, as it has decayed; shape (keys, detectors)."""
        found: FloatArray = self.table["sum"][keys] * self._left(keys, now)[:, np.newaxis]
        return found

    def put(self, key: int, sums: FloatArray, alarm: FloatArray, now: float) -> list[Rung]:
        """Begin a key with these. All its alarms that ring come back: at row 0 those that begin now, because the sums are enough, at row -1 the others."""
        rang = alarm >= ENDS_AT * self.thresholds
        over = sums >= self.thresholds
        alarm = np.where(over, np.maximum(alarm, sums), np.where(rang, alarm, 0.0))
        self.table["sum"][key] = np.minimum(sums, self._most)
        self.table["alarm"][key] = np.minimum(alarm, self._most)
        self.table["seen"][key] = now
        self._note(np.array([key]), self.table["alarm"][[key]])
        return [Rung(-1 if rang[d] else 0, key, int(d), float(sums[d])) for d in np.flatnonzero(alarm)]

    def empty(self, keys: PlaceArray) -> None:
        self.table.empty(keys)
        self._ringing.difference_update(keys.tolist())

    def look(self) -> None:
        """See which alarms ring, after the table was written to from outside."""
        self._ringing = set(np.flatnonzero((self.table["alarm"] > 0).any(axis=1)).tolist())

    def _left(self, keys: PlaceArray, now: float) -> npt.NDArray[np.float64]:
        """What is left of sums that were last looked at some time ago; a clock that was set back takes nothing away."""
        ages: npt.NDArray[np.float64] = now - self.table["seen"].take(keys)
        np.maximum(ages, 0.0, out=ages)
        ages /= -self._half_life
        return np.exp2(ages, out=ages)
