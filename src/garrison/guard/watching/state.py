"""All that `watch` remembers, and the way of a batch through it.

    1 place     every caller has one, in arrays
    2 wait      rows that cannot ring an alarm, whatever they are, are weighed later, many at once
    3 weigh     each detector says of each row how much it speaks for an attack
    4 sum       by caller, and by group of accounts that behave alike
    5 ring      an alarm counts from the very row on at which the sum reached the threshold, also within a request
    6 remember  rows that were answered honestly stay so when they are asked again

Rows of one caller go through it in chunks of `MOST_ROWS`. Time goes in ticks, within each of which nothing fades, so that rows which waited are weighed as when they came.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from garrison.guard.detectors.base import MOST_ROWS, Seen
from garrison.guard.detectors.turns import Order, order_of
from garrison.guard.watching import dump
from garrison.guard.watching.book import LOG, MISINFORM, Alarm
from garrison.guard.watching.digests import DigestArray
from garrison.guard.watching.evidence import Rung
from garrison.guard.watching.places import LOOKED_AT, PlaceArray
from garrison.guard.watching.remembered import Remembered, Settings
from garrison.guard.watching.waiting import MOST_WAITING, Looked
from garrison.types import Array, BoolArray, FloatArray, ModelFacts

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """What `watch` sees of rows; all arrays have one entry a row."""

    inputs: Mapping[str, Array]
    projection: FloatArray
    confidence: FloatArray
    values: FloatArray

    def some(self, rows: PlaceArray) -> Rows:
        inputs = {name: x[rows] for name, x in self.inputs.items()}
        return Rows(inputs, self.projection[rows], self.confidence[rows], self.values[rows])


class Time(NamedTuple):
    """When rows came.

    Attributes:
        now: seconds since the epoch.
        tick: the same in whole ticks; by it sums fade.
    """

    now: float
    tick: float


class WatchState(Remembered):
    """What is remembered of callers (see `garrison.guard.state.State`), and what becomes of rows.

    Args:
        settings: of the defense.
        facts: of the model.
    """

    def __init__(self, settings: Settings, facts: ModelFacts) -> None:
        super().__init__(settings, facts)
        self._at_once = max(1, settings.callers // 2)
        self._changes = 0
        armed = self._settings.detectors
        self._acting = np.array([not a.shadow and a.level >= MISINFORM for a in armed], dtype=np.bool_)

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
            rows: nobody writes to their arrays any more, but to inputs.

        Returns:
            Shape (rows,): those whose caller is alarmed, and which are to be answered otherwise for that; None for none.

        Raises:
            GuardError: a detector that is not in shadow fails.
        """
        if len(callers) > self._at_once and len(set(callers)) > self._at_once:
            return self._by_halves(callers, caller_of_row, rows)
        now = self.clock()
        time = Time(now, now - now % self._tick)
        self._changes += 1
        if self.width != rows.projection.shape[1]:
            self.settle()
            self.open(rows.projection.shape[1])
        elif self.waiting.rows and (time.tick != self.waiting.tick or self._could_push_out(len(callers))):
            self.settle()
        # 1 place
        places, fresh = self.places.take(callers)
        if fresh:
            self._empty(np.array(fresh))
        place = [places[caller] for caller in caller_of_row.tolist()]
        # 2 wait
        answered = self.waiting.rows
        waits = self._calm(places) and self.waiting.may(place, rows.confidence)
        self.waiting.add(place, *rows, time.tick)
        return None if waits else self._with_waiting(self.waiting.take(), answered, time)

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

    def _could_push_out(self, newcomers: int) -> bool:
        """Whether newcomers may get the place of somebody whose rows wait."""
        return newcomers + MOST_WAITING + LOOKED_AT > self._settings.callers

    def _calm(self, places: Sequence[int]) -> bool:
        """Whether no alarm rings for any of these callers, and none is linked to others."""
        return self.alone.is_quiet_for(places) and not (self.groups and len(self.groups.in_groups(np.array(places))))

    def settle(self) -> None:
        """Weigh all rows that wait."""
        if self.waiting.rows:
            tick = self.waiting.tick
            self._settle(self.waiting.take(), Time(tick, tick))

    def _settle(self, waited: Looked, time: Time) -> None:
        rows = len(waited.place)
        try:
            self._in_parts(waited, rows, time)
        except Exception:  # whatever it is: these rows are answered already
            logger.exception("%d rows that waited cannot be weighed together: they are, one by one", rows)
            for row in range(rows):
                self._settle_one(waited.some(slice(row, row + 1)), time)

    def _settle_one(self, waited: Looked, time: Time) -> None:
        order = order_of(waited.place)
        try:
            self._chunk(order, waited, 1, time)
        except Exception:
            logger.exception("a row that waited cannot be weighed: it counts for as much as a row can say")
            self.alone.add(order, self._most[np.newaxis], time.tick)

    def _with_waiting(self, whole: Looked, answered: int, time: Time) -> BoolArray | None:
        """Weigh rows that are to be answered now, in one go with those that waited, which came before them."""
        try:
            silent = self._in_parts(whole, answered, time)
        except Exception:  # whatever it is, and of which rows is not known
            if not answered:
                raise
            self._settle(whole.some(slice(answered)), time)
            return self._in_parts(whole.some(slice(answered, None)), 0, time)
        return None if silent is None else silent[answered:]

    def _in_parts(self, looked: Looked, answered: int, time: Time) -> BoolArray | None:
        """Weigh rows, of which some, the first, are answered already."""
        order = order_of(looked.place)
        if order.turns <= MOST_ROWS:
            return self._chunk(order, looked, answered, time)
        silent = np.zeros(len(looked.place), dtype=np.bool_)
        for start in range(0, order.turns, MOST_ROWS):
            part = np.flatnonzero((order.turn >= start) & (order.turn < start + MOST_ROWS))
            some = looked.some(part)
            found = self._chunk(order_of(some.place), some, int(np.count_nonzero(part < answered)), time)
            if found is not None:
                silent[part] = found
        return silent if silent.any() else None

    def _chunk(self, order: Order, looked: Looked, answered: int, time: Time) -> BoolArray | None:
        place = looked.place
        before = self.book.count(place, order.turn)
        # 3 weigh
        nats = self._weigh_new(order, looked, time)
        # 4 sum
        rings, begun = self.alone.add(order, nats, time.tick)
        if self.groups:
            rings = self._sum_groups(place, nats, rings, time)
        # 5 ring
        for rung in begun:
            there, row = int(place[rung.row]), int(before[rung.row]) + 1
            self.book.note(there, rung, row, time.now)
            self.book.tell(self.places.name(there), rung, row)
        silent: BoolArray | None = None
        if rings is not None:
            self.book.count_minute(place[answered:], time.now)
            acting: BoolArray = np.any(rings & self._acting, axis=1)
            acting[:answered] = False
            silent = acting if acting.any() else None
        self.waiting.weighed(order.keys, self.alone.table["sum"].take(order.keys, axis=0))
        # 6 remember
        return silent if looked.digests is None else self._remember(looked.digests, order, place, silent)

    def _weigh_new(self, order: Order, looked: Looked, time: Time) -> FloatArray:
        """Nats, shape (rows, detectors). A row that its caller asked before says nothing, and detectors do not see it: it would be cover that costs no
        new row, and push others out of what they remember."""
        repeated = None if looked.digests is None else self._repeated(order, looked.place, looked.digests)
        if repeated is None:
            return self._weigh(looked, order, time)
        nats = np.zeros((len(looked.place), len(self._settings.detectors)))
        new = np.flatnonzero(~repeated)
        if len(new):
            some = looked.some(new)
            nats[new] = self._weigh(some, order_of(some.place), time)
        return nats

    def _repeated(self, order: Order, place: PlaceArray, digests: DigestArray) -> BoolArray | None:
        """Rows that their caller asked before; None for none."""
        repeated = self.rings.knows(place, digests)
        if order.turns > 1:
            both = place.astype(np.uint64) << np.uint64(32) | digests
            if len(set(both.tolist())) < len(both):
                again = np.ones(len(place), dtype=np.bool_)
                again[np.unique(both, return_index=True)[1]] = False
                repeated |= again
        return repeated if repeated.any() else None

    def _weigh(self, looked: Looked, order: Order, time: Time) -> FloatArray:
        place, values = looked.place, looked.values
        top = values.argmax(axis=1)
        largest = values[np.arange(len(top)), top]
        shown = self.book.show(place, order.turn)
        public = secret = Seen(place, shown, looked.projection, looked.confidence, largest, top).in_order(order)
        if looked.sketch is not None:
            secret = Seen(place, shown, looked.sketch, looked.confidence, largest, top).in_order(order)
        nats, links = self._weigher(public, secret, self.tables, self.shared)
        for pairs in links:
            for rung in self.groups.link(pairs, time.tick):
                self._note_group(rung, time.now)
        return nats

    def _sum_groups(self, place: PlaceArray, nats: FloatArray, rings: BoolArray | None, time: Time) -> BoolArray | None:
        self.groups.part(place, time.tick)
        inside = self.groups.in_groups(place)
        if not len(inside):
            return rings
        found, begun = self.groups.evidence.add(order_of(self.groups.label[place[inside]]), nats[inside], time.tick)
        for rung in begun:
            self._note_group(rung, time.now)
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
            self.rings.add(place, order.turn, digests)
            return None
        honest, others = np.flatnonzero(~silent), np.flatnonzero(silent)
        if len(honest):  # of each caller its first rows: an alarm does not end within a chunk
            self.rings.add(place[honest], order.turn[honest], digests[honest])
        silent[others[self.rings.knows(place[others], digests[others])]] = False
        return silent if silent.any() else None

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
        self.settle()
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
        self.settle()
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
        self.settle()
        return dump.write(self)

    def load(self, data: bytes) -> None:
        fresh = WatchState(self._settings, self._facts)
        dump.read(data, fresh, self._settings.callers)
        nobody = np.setdiff1d(np.arange(self._settings.callers), [place for _, place in fresh.places])
        for armed, shared in zip(self._settings.detectors, fresh.shared, strict=False):
            armed.detector.forget(nobody, shared)  # of callers who did not fit into the dump
        there = np.array([place for _, place in fresh.places], dtype=np.intp)
        self._changes += 1
        self._begin()
        self.use(fresh.secret)
        for name in ("places", "alone", "groups", "rings", "book", "_weigher", "width", "tables", "shared"):
            setattr(self, name, getattr(fresh, name))
        self.waiting.grow(self.places.capacity)
        self.waiting.weighed(there, self.alone.table["sum"][there])
