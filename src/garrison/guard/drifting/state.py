"""All that `drift` remembers, and the way of a batch through it.

    1 gather   what is watched of each row goes into a buffer, with the number of its caller
    2 count    a block of rows at once: bins, means, and the callers who ask most
    3 look     how far the sketch is from the reference; an alarm where that is beyond a threshold
    4 blame    who moves it

A look comes after every block, so thresholds are calibrated on the highest of all looks at a long honest stream (`garrison.hardening.drift`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from garrison.errors import StateError
from garrison.guard.drifting.blame import NOBODY, blame
from garrison.guard.drifting.callers import TopCallers
from garrison.guard.drifting.columns import Layout, answer_values, asked_values, looks_of, summarise
from garrison.guard.drifting.report import ColumnShift, DriftAlarm, DriftReport
from garrison.guard.drifting.sketch import BLOCK_ROWS, KINDS, Look, Sketch
from garrison.types import Array, FloatArray, ModelFacts

logger = logging.getLogger(__name__)

VERSION = 1
MOST_ALARMS = 64
_SOON_ROWS, _LATE_ROWS = 512, 8_192
"""While an alarm rings, who moves it is looked at again after so many rows, and ever more rarely: it takes as long as counting hundreds of rows."""
_OVER = 0.8
"""An alarm ends when the value falls below this share of its threshold."""
_MOST_NAME = 1024
_BUFFERED_ANSWERS = 64
"""Answers of up to so many numbers are looked at a block at a time."""


class Settings(NamedTuple):
    """See `garrison.guard.defenses.drift.Drift`."""

    layout: Layout
    by_projection: bool
    thresholds: Mapping[str, float]
    half_life: float
    callers: int
    reference_rows: int


class _Dump(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: int
    columns: tuple[str, ...]
    shares: bytes
    means: bytes
    prior: float
    rows: int
    peaks: tuple[float, ...]
    names: list[str]
    weight: bytes
    asked: bytes
    own: bytes
    alarms: list[DriftAlarm]
    rung: int


_DECODER = msgspec.msgpack.Decoder(_Dump)


class DriftState:
    """See `garrison.guard.state.State`.

    Args:
        settings: of the defense.
        facts: of the model.

    Attributes:
        clock: seconds since the epoch: the host's.
        sketch, callers: what was counted.
        alarms: latest last.
        peaks: by kind, the highest value of any look.
    """

    def __init__(self, settings: Settings, facts: ModelFacts) -> None:
        self._settings, self._facts = settings, facts
        self.clock: Callable[[], float] = time.time
        layout = settings.layout
        columns = len(layout.columns)
        self.sketch = Sketch(layout, settings.half_life, settings.reference_rows)
        self._thresholds = tuple(settings.thresholds[kind] for kind in KINDS)
        self._asked = columns - layout.answers
        self._looks = looks_of(facts)
        self._values = np.zeros((BLOCK_ROWS, columns), np.float32)
        self._answers = np.zeros((BLOCK_ROWS, facts.outputs), facts.value_dtype)
        self._buffers = facts.outputs <= _BUFFERED_ANSWERS
        self._who = np.zeros(BLOCK_ROWS, np.intp)
        self._changes = 0
        self.clear()

    @property
    def changes(self) -> int:
        return self._changes

    @property
    def by_projection(self) -> bool:
        """Whether rows are watched by their projection, not feature by feature."""
        return self._settings.by_projection

    def clear(self) -> None:
        self._changes += 1
        self.sketch.clear()
        self.callers = TopCallers(self._settings.callers, len(self.sketch.shares))
        self._filled = 0
        self._unseen = 0
        self._names: dict[str, int] = {}
        self.alarms: list[DriftAlarm] = []
        self._rung = 0
        self._blamed: dict[int, tuple[int, int]] = {}
        self._told = NOBODY
        self.peaks = [0.0] * len(KINDS)
        self._latest = self.sketch.look()
        self._latest_shares = self.sketch.shares

    def observe(
        self,
        names: Sequence[str],
        request: Array,
        inputs: Mapping[str, Array],
        projection: FloatArray | None,
        answers: FloatArray,
    ) -> None:
        """Take rows in.

        Args:
            names: callers, one a request.
            request: shape (rows,), numbers of requests.
            inputs: of the model, by name.
            projection: shape (rows, width); None where the model is watched feature by feature.
            answers: what the model answered, shape (rows, outputs).
        """
        self._changes += 1
        rows, start = len(answers), 0
        while start < rows:
            end = min(rows, start + BLOCK_ROWS - self._filled)
            part = slice(start, end)
            whole = start == 0 and end == rows
            self._gather(
                names,
                request if whole else request[part],
                inputs if whole else {name: x[part] for name, x in inputs.items()},
                projection if whole or projection is None else projection[part],
                answers if whole else answers[part],
            )
            start = end
            if self._filled == BLOCK_ROWS:
                self._count()

    def _gather(
        self,
        names: Sequence[str],
        request: Array,
        inputs: Mapping[str, Array],
        projection: FloatArray | None,
        answers: FloatArray,
    ) -> None:
        at = slice(self._filled, self._filled + len(answers))
        asked_values(self._looks, inputs, projection, self._values[at, : self._asked])
        if self._buffers:
            self._answers[at] = answers
        else:
            self._values[at, self._asked :] = answer_values(self._facts, answers)
        known = self._names
        try:
            numbers = list(map(known.__getitem__, names))
        except KeyError:
            numbers = [known.setdefault(name, len(known)) for name in names]
        self._who[at] = [numbers[k] for k in request.tolist()]
        self._filled = at.stop

    def _count(self) -> None:
        """Count what is gathered, and look where there is enough that is new."""
        rows = self._filled
        if not rows:
            return
        layout, values = self.sketch.layout, self._values[:rows]
        if self._buffers:
            values[:, self._asked :] = answer_values(self._facts, self._answers[:rows])
        if self._settings.by_projection:
            summarise(self._looks, values, self._asked - 2)
        codes = layout.codes(values)
        kept = self.sketch.kept(rows)
        names = list(self._names)
        who = self._who[:rows]
        places = self.callers.places_of(names, np.bincount(who, minlength=len(names)))
        self.callers.add(places[who], codes, kept, (1 - kept) / rows)
        counts = np.bincount(codes.ravel(), minlength=len(layout.shares))
        self.sketch.add(counts, layout.scores(values).sum(axis=0), rows)
        self._filled, self._names = 0, {}
        self._unseen += rows
        if self._unseen >= BLOCK_ROWS:
            self._unseen = 0
            self._look()

    def _look(self) -> None:
        look = self._latest = self.sketch.look()
        self._latest_shares = self.sketch.shares
        for k, value in enumerate(look.values):
            if value > self.peaks[k]:
                self.peaks[k] = value
            if value >= self._thresholds[k] * _OVER:
                self._ring(k, look)
            elif self.alarms:
                self._end(KINDS[k])

    def _ring(self, k: int, look: Look) -> None:
        value, column, threshold = look.values[k], look.column[k], self._thresholds[k]
        there = next((i for i, a in enumerate(self.alarms) if a.active and a.kind == KINDS[k]), -1)
        if there < 0 and value < threshold:
            return
        since, due = self._blamed.get(k, (0, 0)) if there >= 0 else (self.sketch.rows, 0)
        if self.sketch.rows < due:
            return
        later = min(2 * (self.sketch.rows - since) + _SOON_ROWS, self.sketch.rows - since + _LATE_ROWS)
        self._blamed[k] = since, since + later
        found = blame(self.sketch, self.callers, column)
        if there >= 0:
            before = self.alarms[there]
            self.alarms[there] = alarm = before.found(found)
            if alarm.named != before.named:
                _tell_named(alarm)
            return
        self._rung += 1
        alarm = DriftAlarm(
            number=self._rung,
            kind=KINDS[k],
            column=self.sketch.layout.columns[column].name,
            value=value,
            threshold=threshold,
            row=self.sketch.rows,
            since=self.clock(),
            active=True,
        ).found(found)
        self.alarms = [*self.alarms[1 - MOST_ALARMS :], alarm]
        _tell(alarm)

    def _end(self, kind: str) -> None:
        for i, alarm in enumerate(self.alarms):
            if alarm.active and alarm.kind == kind:
                self.alarms[i] = alarm.over()

    def shares_of(self, caller: str) -> FloatArray | None:
        """A caller's own histogram, all columns one after the other; None where it is not told apart."""
        self._count()
        if caller not in self.callers.names:
            return None
        own = self.callers.shares[self.callers.names.index(caller)].astype(np.float64)
        found: FloatArray = own * len(self.sketch.layout.columns) / own.sum()
        return found

    def report(self) -> DriftReport:
        """As of the last look: what came since then is not in it, so that two reports never differ by a few rows."""
        look, settings = self._latest, self._settings
        order = np.argsort(-look.psi, kind="stable").tolist()
        if not self._unseen:  # else the sketch knows rows that the last look does not
            self._told = blame(self.sketch, self.callers, order[0]) if self.sketch.rows else NOBODY
        found = self._told
        return DriftReport(
            rows=self.sketch.rows,
            reference_rows=settings.reference_rows,
            half_life=settings.half_life,
            values=dict(zip(KINDS, look.values, strict=True)),
            peaks=dict(zip(KINDS, self.peaks, strict=True)),
            thresholds=dict(zip(KINDS, self._thresholds, strict=True)),
            columns=tuple(self._column(k) for k in order),
            callers=found.callers,
            named=found.named,
            alarms=tuple(self.alarms),
        )

    def _column(self, k: int) -> ColumnShift:
        layout, look = self.sketch.layout, self._latest
        column, start = layout.columns[k], int(layout.start[k])
        now = self._latest_shares[start : start + len(column.shares)]
        return ColumnShift(
            name=column.name,
            psi=float(look.psi[k]),
            ks=float(look.ks[k]),
            ewma=float(look.ewma[k]),
            answer=column.answer,
            edges=column.edges,
            reference=column.shares,
            now=tuple(np.round(now, 6).tolist()),
        )

    def dump(self) -> bytes:
        self._count()
        callers = self.callers
        return msgspec.msgpack.encode(
            _Dump(
                VERSION,
                tuple(column.name for column in self.sketch.layout.columns),
                self.sketch.shares.tobytes(),
                self.sketch.means.tobytes(),
                self.sketch.prior,
                self.sketch.rows,
                tuple(self.peaks),
                callers.names,
                callers.weight.tobytes(),
                callers.rows.tobytes(),
                callers.shares.tobytes(),
                self.alarms,
                self._rung,
            )
        )

    def load(self, data: bytes) -> None:
        try:
            found = _DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StateError("what was kept of drift is not in the form that drift writes") from error
        if found.version != VERSION:
            raise StateError(f"what was kept of drift has version {found.version}, and drift reads {VERSION}")
        fresh = DriftState(self._settings, self._facts)
        try:
            fresh.restore(found)
        except ValueError as error:
            raise StateError(f"what was kept of drift does not fit this chain: {error}") from error
        fresh._changes = self._changes + 1
        fresh.clock = self.clock
        self.__dict__.update(fresh.__dict__)

    def restore(self, found: _Dump) -> None:
        """Put back what was dumped, before anybody asked.

        Raises:
            ValueError: it is of another reference, or holds what cannot be.
        """
        layout = self.sketch.layout
        if (
            found.columns != tuple(column.name for column in layout.columns)
            or min(found.rows, found.rung, found.prior) < 0
        ):
            raise ValueError("other columns, or counts below 0")
        if any(len(name) > _MOST_NAME for name in found.names) or len(found.alarms) > MOST_ALARMS:
            raise ValueError("a caller's name that is longer than any can be, or too many alarms")
        shares, means = np.frombuffer(found.shares), np.frombuffer(found.means)
        weight, own = np.frombuffer(found.weight), np.frombuffer(found.own, np.float32)
        if (
            shares.shape != layout.shares.shape
            or means.shape != self.sketch.means.shape
            or len(found.peaks) != len(KINDS)
        ):
            raise ValueError("another number of bins")
        if (
            not all(np.isfinite(x).all() for x in (shares, means, weight, own))
            or min(shares.min(), own.min(initial=0)) < 0
        ):
            raise ValueError("shares that are not finite, or below 0")
        self.callers.restore(
            found.names, weight, np.frombuffer(found.asked, np.int64), own.reshape(self.callers.shares.shape)
        )
        self.sketch.shares, self.sketch.means = shares.copy(), means.copy()
        self.sketch.rows, self.sketch.prior = found.rows, min(found.prior, 1.0)
        self.alarms, self._rung, self.peaks = list(found.alarms), found.rung, list(found.peaks)
        self._latest, self._latest_shares = self.sketch.look(), self.sketch.shares


def _tell(alarm: DriftAlarm) -> None:
    who = ", ".join(repr(name) for name in alarm.named) or "nobody in particular"
    words = "drift.alarm: %s of %s is %.4g, and rings from %.4g: after %d rows; moved by %s"
    logger.warning(words, alarm.kind, alarm.column, alarm.value, alarm.threshold, alarm.row, who)


def _tell_named(alarm: DriftAlarm) -> None:
    words = "drift.named: alarm %d, %s of %s: %s; moved now by %s"
    who, now = (", ".join(map(repr, names)) for names in (alarm.named, alarm.moving))
    logger.warning(words, alarm.number, alarm.kind, alarm.column, who, now)
