"""All that `watch` remembers, and the way of a batch through it.

    1 place     every caller has one, in arrays
    2 weigh     each detector says of each row how much it speaks for an attack
    3 sum       by caller, and by group of accounts that behave alike
    4 ring      an alarm counts from the very row on at which the sum reached the threshold, also within a request
    5 remember  rows that were answered honestly stay so when they are asked again

Rows of one caller go through it in chunks of `MOST_ROWS`.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from garrison.errors import GuardError
from garrison.guard.detectors.base import MOST_ROWS, Seen
from garrison.guard.watching import dump
from garrison.guard.watching.book import LOG, MISINFORM, Alarm, Armed, Book
from garrison.guard.watching.evidence import Evidence, Order, Rung, order_of
from garrison.guard.watching.groups import Groups
from garrison.guard.watching.memory import SECRET_BYTES, DigestArray, Hasher, Rings
from garrison.guard.watching.places import PlaceArray, Places, Table
from garrison.guard.watching.sketch import Sketch
from garrison.types import Array, BoolArray, FloatArray, IntArray, ModelFacts

logger = logging.getLogger(__name__)


class Settings(NamedTuple):
    """See `garrison.guard.defenses.watch.Watch`."""

    detectors: tuple[Armed, ...]
    half_life: float
    callers: int
    remembered: int


class Rows(NamedTuple):
    """What `watch` sees of rows; all arrays have one entry a row."""

    inputs: dict[str, Array]
    projection: FloatArray
    confidence: FloatArray
    values: FloatArray

    def some(self, rows: PlaceArray) -> Rows:
        inputs = {name: x[rows] for name, x in self.inputs.items()}
        return Rows(inputs, self.projection[rows], self.confidence[rows], self.values[rows])


class WatchState:
    """What is remembered of callers (see `garrison.guard.state.State`).

    Args:
        settings: of the defense.
        facts: of the model.

    Attributes:
        clock: seconds since the epoch: the host's.
        width: of the projection; -1 before the first row.
        tables, shared: what the detectors keep, one entry a detector.
    """

    def __init__(self, settings: Settings, facts: ModelFacts) -> None:
        if not settings.remembered:
            blind = (replace(armed, detector=armed.detector.among_repeats()) for armed in settings.detectors)
            settings = settings._replace(detectors=tuple(blind))
        self._settings = settings
        self._at_once = max(1, settings.callers // 2)
        self._facts = facts
        self.clock: Callable[[], float] = time.time
        self._changes = 0
        self._thresholds = np.array([armed.detector.threshold for armed in settings.detectors], dtype=np.float64)
        self._acting = np.array([not a.shadow and a.level >= MISINFORM for a in settings.detectors], dtype=np.bool_)
        self._secretive = any(armed.detector.secret_projection for armed in settings.detectors)
        self._begin()

    def use(self, secret: bytes) -> None:
        """Key digests of inputs with this from now on."""
        self.secret = secret
        self._sketch: Sketch | None = None
        self._hasher = Hasher(self._facts, secret) if self._settings.remembered else None

    def _begin(self) -> None:
        settings = self._settings
        self.use(secrets.token_bytes(SECRET_BYTES))
        self.places = Places(settings.callers, self._is_alarmed)
        n = self.places.capacity
        self.alone = Evidence(self._thresholds, settings.half_life, n)
        self.groups = Groups(self.alone, self._thresholds, settings.half_life, n)
        self.rings = Rings(settings.remembered, n)
        self.book = Book(settings.detectors, n)
        self.width = -1
        self.tables: list[Table] = []
        self.shared: list[dict[str, Array]] = []

    @property
    def changes(self) -> int:
        return self._changes

    def __len__(self) -> int:
        return len(self.places)

    def observe(self, callers: Sequence[str], caller_of_row: PlaceArray, rows: Rows) -> BoolArray | None:
        """Look at rows, in the order in which they came.

        Args:
            callers: names; one may stand there several times.
            caller_of_row: shape (rows,), numbers of `callers`.

        Returns:
            Shape (rows,): those whose caller is alarmed, and which are to be answered otherwise for that; None for none.

        Raises:
            GuardError: a detector that is not in shadow fails.
        """
        if len(callers) > self._at_once and len(set(callers)) > self._at_once:
            return self._by_halves(callers, caller_of_row, rows)
        now = self.clock()
        self._changes += 1
        if self.width != rows.projection.shape[1]:
            self.open(rows.projection.shape[1])
        # 1 place
        places, fresh = self.places.take(callers)
        if fresh:
            self._empty(np.array(fresh))
        place = np.array(places)[caller_of_row]
        if len(place) == len(places) == len(set(places)):
            every = np.arange(len(place))
            return self._chunk(Order(place, every, np.zeros_like(every), 1), rows, now)
        order = order_of(place)
        if order.turns <= MOST_ROWS:
            return self._chunk(order, rows, now)
        silent = np.zeros(len(place), dtype=np.bool_)
        for start in range(0, order.turns, MOST_ROWS):
            part = np.flatnonzero((order.turn >= start) & (order.turn < start + MOST_ROWS))
            found = self._chunk(order_of(place[part]), rows.some(part), now)
            if found is not None:
                silent[part] = found
        return silent if silent.any() else None

    def _by_halves(self, callers: Sequence[str], caller_of_row: PlaceArray, rows: Rows) -> BoolArray | None:
        """More callers at once than there is room for, beside those who are alarmed."""
        silent = np.zeros(len(caller_of_row), dtype=np.bool_)
        middle = len(callers) // 2
        for start, end in ((0, middle), (middle, len(callers))):
            part = np.flatnonzero((caller_of_row >= start) & (caller_of_row < end))
            if len(part):
                found = self.observe(callers[start:end], caller_of_row[part] - start, rows.some(part))
                silent[part] = False if found is None else found
        return silent if silent.any() else None

    def _chunk(self, order: Order, rows: Rows, now: float) -> BoolArray | None:
        place = order.keys if order.turns == 1 else order.keys[order.number]
        before = self.book.count(place, order.turn)
        digests = None if self._hasher is None else self._hasher(rows.inputs)
        # 2 weigh
        nats = self._weigh_new(order, place, rows, digests, now)
        # 3 sum
        rings, begun = self.alone.add(order, nats, now)
        if self.groups:
            rings = self._sum_groups(place, nats, rings, now)
        # 4 ring
        for rung in begun:
            there, row = int(place[rung.row]), int(before[rung.row]) + 1
            self.book.note(there, rung, row, now)
            self.book.tell(self.places.name(there), rung, row)
        silent: BoolArray | None = None
        if rings is not None:
            self.book.count_minute(place, now)
            acting: BoolArray = np.any(rings & self._acting, axis=1)
            silent = acting if acting.any() else None
        # 5 remember
        return silent if digests is None else self._remember(digests, order, place, silent)

    def _weigh_new(
        self, order: Order, place: PlaceArray, rows: Rows, digests: DigestArray | None, now: float
    ) -> FloatArray:
        """Nats, shape (rows, detectors). A row that its caller asked before says nothing, and detectors do not see it: it would be cover that costs no
        new row, and push others out of what they remember."""
        repeated = None if digests is None else self._repeated(order, place, digests)
        if repeated is None:
            return self._weigh(place, self.book.show(place, order.turn), rows, now)
        nats = np.zeros((len(place), len(self._settings.detectors)))
        new = np.flatnonzero(~repeated)
        if len(new):
            turn = order_of(place[new]).turn
            nats[new] = self._weigh(place[new], self.book.show(place[new], turn), rows.some(new), now)
        return nats

    def _repeated(self, order: Order, place: PlaceArray, digests: DigestArray) -> BoolArray | None:
        """Rows that their caller asked before; None for none."""
        repeated = self.rings.knows(place, digests)
        if order.turns > 1:
            both = place.astype(np.uint64) << np.uint64(32) | digests
            again = np.ones(len(place), dtype=np.bool_)
            again[np.unique(both, return_index=True)[1]] = False
            repeated |= again
        return repeated if repeated.any() else None

    def _weigh(self, place: PlaceArray, shown: IntArray, rows: Rows, now: float) -> FloatArray:
        top = rows.values.argmax(axis=1)
        largest = rows.values[np.arange(len(top)), top]
        public = Seen(place, shown, rows.projection, rows.confidence, largest, top)
        secret = public if not self._secretive else self._sketched(public, rows)
        by_detector = np.zeros((len(self._settings.detectors), len(place)))
        nats = by_detector.T
        for i, armed in enumerate(self._settings.detectors):
            columns, shared = self.tables[i].arrays, self.shared[i]
            seen = secret if armed.detector.secret_projection else public
            try:
                by_detector[i] = armed.detector.weigh(seen, columns, shared)
                pairs = armed.detector.links(seen, columns, shared)
            except Exception as error:
                if not self.book.harmless(armed):
                    raise GuardError(f"the detector {armed.name} fails") from error
                logger.exception("the detector %s fails, in shadow: it says nothing of %d rows", armed.name, len(nats))
                nats[:, i] = 0.0
                continue
            if pairs is not None and len(pairs) and not armed.shadow:
                for rung in self.groups.link(pairs, now):
                    self._note_group(rung, now)
        if not math.isfinite(by_detector.sum()):
            self._drop_unsound(nats)
        return nats

    def _sketched(self, seen: Seen, rows: Rows) -> Seen:
        if not rows.inputs:  # in a simulation, which has projections alone
            return seen
        if self._sketch is None:
            self._sketch = Sketch(self._facts, self.secret, self.width)
        return Seen(seen.place, seen.asked, self._sketch(rows.inputs), seen.confidence, seen.probability, seen.top)

    def _drop_unsound(self, nats: FloatArray) -> None:
        """Evidence that is not finite: of a detector in shadow it counts for nothing, of another nothing may be answered."""
        for i, armed in enumerate(self._settings.detectors):
            if np.isfinite(nats[:, i]).all():
                continue
            if not self.book.harmless(armed):
                raise GuardError(f"the evidence of the detector {armed.name} is not finite")
            logger.error("the evidence of the detector %s, in shadow, is not finite: it counts for nothing", armed.name)
            nats[:, i] = 0.0

    def _sum_groups(self, place: PlaceArray, nats: FloatArray, rings: BoolArray | None, now: float) -> BoolArray | None:
        self.groups.part(place, now)
        inside = self.groups.in_groups(place)
        if not len(inside):
            return rings
        found, begun = self.groups.evidence.add(order_of(self.groups.label[place[inside]]), nats[inside], now)
        for rung in begun:
            self._note_group(rung, now)
        if found is None:
            return rings
        joint = np.zeros(nats.shape, dtype=np.bool_) if rings is None else rings.copy()
        joint[inside] |= found
        return joint

    def _note_group(self, rung: Rung, now: float) -> None:
        """An alarm of a group is an alarm of each member."""
        members = self.groups.members(rung.key)
        group = (len(members), self.book.asked(members))
        news = members[self.book.table["row"][members, rung.detector] == 0].tolist()  # mostly few of a large group
        for member in news:
            self.book.note(member, rung, self.book.asked(np.array([member])), now, group)
        if rung.row >= 0 or news:
            self.book.tell(self.places.name(rung.key), rung, self.book.asked(np.array([rung.key])), group)

    def _remember(
        self, digests: DigestArray, order: Order, place: PlaceArray, silent: BoolArray | None
    ) -> BoolArray | None:
        if silent is None:
            if order.turns == 1:
                self.rings.add_one_each(place, digests)
            else:
                self.rings.add(place, order.turn, digests)
            return None
        honest, others = np.flatnonzero(~silent), np.flatnonzero(silent)
        if len(honest):  # of each caller its first rows: an alarm does not end within a chunk
            self.rings.add(place[honest], order.turn[honest], digests[honest])
        silent[others[self.rings.knows(place[others], digests[others])]] = False
        return silent if silent.any() else None

    def open(self, width: int) -> None:
        """Make the detectors' arrays, now that the projection's width is known."""
        self.width = width
        self._sketch = None
        detectors, capacity = [armed.detector for armed in self._settings.detectors], self.places.capacity
        self.tables = [Table(detector.columns(width), capacity) for detector in detectors]
        self.shared = [
            {name: np.full(column.shape, column.fill, column.dtype) for name, column in d.shares(width).items()}
            for d in detectors
        ]
        for shared in self.shared:
            if "salt" in shared:  # which rows a detector forgets is not for a thief to know
                shared["salt"][:] = np.uint64(secrets.randbits(64))

    def grow(self) -> None:
        """All arrays to the capacity of the places."""
        capacity = self.places.capacity
        if len(self.groups.label) < capacity:
            self.groups.grow(capacity)
            for table in (self.book.table, self.alone.table, self.rings.table, self.rings.filter, *self.tables):
                table.grow(capacity)

    def _empty(self, places: PlaceArray) -> None:
        """These places are another's from now on."""
        self.grow()
        for place in places.tolist():
            self.groups.leave(place)
        self.alone.empty(places)
        for table in (self.book.table, self.rings.table, self.rings.filter, *self.tables):
            table.empty(places)
        for armed, shared in zip(self._settings.detectors, self.shared, strict=False):
            armed.detector.forget(places, shared)

    def _is_alarmed(self, place: int) -> bool:
        if self.alone.rings_somewhere(place):
            return True
        return self.groups.size(place) > 1 and self.groups.evidence.rings_somewhere(int(self.groups.label[place]))

    def _ringing(self, place: int, now: float) -> BoolArray | None:
        """By detector, whether the alarm rings; None for none."""
        own = self.alone.ringing(place, now)
        if not self.groups or self.groups.size(place) == 1:
            return own
        joint = self.groups.evidence.ringing(int(self.groups.label[place]), now)
        return own if joint is None else joint if own is None else own | joint

    @property
    def quiet(self) -> bool:
        """Whether nobody is alarmed."""
        return self.alone.quiet and not self.groups

    def level(self, caller: str) -> int:
        """The strictest action that is in force against a caller: a number of `ACTIONS`, 0 for none. Nothing is counted by asking."""
        if self.quiet:
            return LOG
        place = self.places.find(caller)
        ringing = None if place is None else self._ringing(place, self.clock())
        if ringing is None:
            return LOG
        pairs = zip(self._settings.detectors, ringing.tolist(), strict=True)
        return max((armed.level for armed, on in pairs if on and not armed.shadow), default=LOG)

    def this_minute(self, caller: str) -> tuple[int, float]:
        """Rows that an alarmed caller has asked within the present minute, and seconds that are left of it."""
        place = self.places.find(caller)
        return (0, 0.0) if place is None else self.book.this_minute(place, self.clock())

    def alarms(self) -> tuple[Alarm, ...]:
        """The first alarm of each caller by each detector, by caller."""
        now = self.clock()
        found: list[Alarm] = []
        for caller, place in sorted(self.places):
            if self.book.table["row"][place].any():
                sums = self.alone.sums(np.array([place]), now)[0]
                if self.groups.size(place) > 1:
                    sums = np.maximum(sums, self.groups.evidence.sums(self.groups.label[[place]], now)[0])
                found += self.book.alarms_of(caller, place, self._ringing(place, now), sums)
        return tuple(found)

    def forget(self, caller: str) -> bool:
        """Forget one caller: evidence, alarms, links, rows. Whether there was anything."""
        place = self.places.leave(caller)
        if place is None:
            return False
        self._changes += 1
        self._empty(np.array([place]))
        return True

    def clear(self) -> None:
        self._changes += 1
        self._begin()

    def dump(self) -> bytes:
        """Counters and alarms of all callers, and the rest of as many as fit (see `garrison.guard.watching.dump`)."""
        return dump.write(self)

    def load(self, data: bytes) -> None:
        fresh = WatchState(self._settings, self._facts)
        dump.read(data, fresh, self._settings.callers)
        nobody = np.setdiff1d(np.arange(self._settings.callers), [place for _, place in fresh.places])
        for armed, shared in zip(self._settings.detectors, fresh.shared, strict=False):
            armed.detector.forget(nobody, shared)  # of callers who did not fit into the dump
        self._changes += 1
        self.use(fresh.secret)
        for name in ("places", "alone", "groups", "rings", "book", "width", "tables", "shared"):
            setattr(self, name, getattr(fresh, name))
