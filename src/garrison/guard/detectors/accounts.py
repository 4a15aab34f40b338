"""Accounts that ask as one: rows stepped from rows that another account asked.

Who spreads a sequence of steps over many accounts shows each of them little. So the service remembers the latest rows of all callers that lie far out
among honest ones, as stepped rows do, and asks of each such row how near it lies to those of other accounts: again by the distance to the nearest and
the gap to the second nearest. Two accounts that are both under suspicion, and of which one asked a row next to the other's, are linked:
`watch` sums their evidence from then on, that of all detectors.

What others ask must not decide alone: who knows an honest caller's rows can ask beside them, before or after, and would drag it into the alarm of a thief. So other
accounts' rows count for nothing against a caller unless odd rows are more than an honest share of its own, which nobody else can add to.

Rows that are equal say nothing: many honest callers ask about the same picture.

Does not see: accounts that share no sequence (a transfer set spread over many accounts); steps as long as the distances between unrelated rows; a source that
was asked so long ago, or so much traffic ago, that it is forgotten.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.guard.detectors.hardness import distance
from garrison.guard.detectors.recalled import FAR, whole
from garrison.guard.detectors.steps import Odds, check_steps, nearest
from garrison.guard.detectors.tables import Edges, check_edges, check_nats, sure_above
from garrison.guard.detectors.turns import on_grid, running
from garrison.types import Array, BoolArray, FloatArray, IntArray

MOST = 2048
"""Rows remembered of all callers together; the oldest is forgotten first."""
FEWEST = 64
"""Rows remembered before which nothing is said."""
_BLOCK = 64
_MOST_LINKS = 64
_MOST_STEPS = 100


class Beside(NamedTuple):
    """What is near some rows, among remembered rows of other callers.

    Attributes:
        squares: squared distances, in units, to the nearest and the second nearest that are not equal; shape (2, rows), infinite where there is none.
        whose: place of the nearest one's caller, shape (rows,).
        known: rows that were remembered, shape (rows,).
    """

    squares: FloatArray
    whose: IntArray
    known: IntArray


class Accounts(Detector, frozen=True, dict=True):
    """Nats by the distances to the nearest and the second nearest row of other callers; links accounts.

    Attributes:
        threshold: see `Detector`.
        unit: of the whole numbers that projections are compared as; larger ones than 127 are cut.
        mean: of honest projections.
        whiten: after which honest projections, less the mean, are uncorrelated with variance 1.
        out: squared length after that from which a row is looked at and remembered.
        weights: see `NearDuplicates`.
        edges, nats: what the row's confidence alone says, see `OodRate`.
        stepped: share of a thief's rows that are stepped from another account's; the others are taken for honest ones.
        suspect: nats that two accounts must have together to be linked.
        each: nats that each of them must have.
        least: log odds of a row that links.
        steps: so many rows beside another's each of them must have asked itself. Whose rows others step from is not linked for that: a thief who asks
            beside an honest caller's rows would take it along.
        share: of odd rows, that an honest caller stays below whatever it asks.
        own: other accounts' rows count against a caller while its own odd rows, less `share` of all its rows, summed as evidence is, come to so many.
        begin: what that sum begins at, so that accounts of a few rows each are seen.
    """

    name: ClassVar[str] = "accounts"

    unit: float
    mean: tuple[float, ...]
    whiten: tuple[tuple[float, ...], ...]
    out: float
    weights: tuple[float, ...]
    edges: tuple[float, ...]
    nats: tuple[float, ...]
    stepped: float = 0.5
    suspect: float = 10.0
    each: float = 4.0
    least: float = 1.0
    steps: int = 2
    share: float = 0.3
    own: float = 4.0
    begin: float = 3.5

    def __post_init__(self) -> None:
        check_steps(self.name, self.unit, self.weights, self.stepped)
        if (
            not 0 <= self.out < math.inf
            or not 0 < self.each <= self.suspect < math.inf
            or not math.isfinite(self.least)
            or not 0 <= self.steps <= _MOST_STEPS
        ):
            raise ValueError(
                f"accounts: out must not be below 0, each above 0 and not above suspect, all finite, steps 0 to {_MOST_STEPS}"
            )
        if not 0 <= self.share < 1 or not 0 <= self.own < math.inf or not 0 <= self.begin < math.inf:
            raise ValueError("accounts: share must lie in 0 to 1, own and begin must not be below 0, all finite")
        check_edges("accounts.edges", self.edges)
        check_nats("accounts.nats", self.nats, len(self.edges) + 1)
        if len(self.whiten) != len(self.mean):
            raise ValueError("accounts: whiten must have a line for each number of mean")

    @property
    def most(self) -> float:
        return max(0.0, *self.nats) + self._odds.most

    @property
    def sure(self) -> float:
        return sure_above(self.edges, self.nats)

    def columns(self, width: int) -> Mapping[str, Column]:  # noqa: ARG002
        return {
            "suspicion": Column("float32"),
            "steps": Column("int32"),
            "odd": Column("float64", (), on_grid(self.begin)),
        }

    def shares(self, width: int) -> Mapping[str, Column]:
        return {
            "rows": Column("float32", (MOST, width)),
            "square": Column("float32", (MOST,), math.inf),
            "owner": Column("int64", (MOST,), -1),
            "count": Column("int64", (1,)),
            "links": Column("int64", (_MOST_LINKS, 2), -1),
        }

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        edges, nats = self._tables
        found: FloatArray = nats[edges.bins(seen.confidence)]
        if shared["links"][0, 0] >= 0:
            shared["links"][:] = -1
        odd = np.flatnonzero(found > 0)
        if len(odd):
            odd = odd[distance(seen.projection[odd], *self._white) >= self.out]
        more = np.full(len(found), -on_grid(self.share))
        more[odd] += 1
        liable = running(columns["odd"], seen.order, more) >= self.own
        if not liable[odd].any():  # as nearly always, and nothing would come of looking
            self.remember(seen.place[odd], seen.projection[odd], shared)
            running(columns["suspicion"], seen.order, found)
            return found
        for part, some in seen.parts(_BLOCK if len(odd) > _BLOCK else len(found)):
            rows = odd[(odd >= part.start) & (odd < part.stop)]
            whose = self._near(seen, rows, liable[rows], found, shared)
            running(columns["suspicion"], some.order, found[part])
            self._link(seen.place[rows], whose, columns, shared["links"])
        return found

    def links(
        self,
        seen: Seen,  # noqa: ARG002
        columns: Mapping[str, Array],  # noqa: ARG002
        shared: Mapping[str, Array],
    ) -> npt.NDArray[np.intp] | None:
        found = shared["links"]
        return found[found[:, 0] >= 0].astype(np.intp) if found[0, 0] >= 0 else None

    def forget(self, places: npt.NDArray[np.intp], shared: Mapping[str, Array]) -> None:
        gone = np.isin(shared["owner"], places)
        shared["owner"][gone] = -1
        shared["square"][gone] = math.inf

    def beside(self, place: IntArray, projection: FloatArray, shared: Mapping[str, Array]) -> Beside:
        """Look at 1 to 64 rows far out, then remember them."""
        rows, square, owner = shared["rows"], shared["square"], shared["owner"]
        x = whole(projection, self.unit)
        own = np.vecdot(x, x)
        begin = int(shared["count"][0])
        number = begin + np.arange(len(place))
        slot = number % MOST
        apart, own_rows = _scratch(len(place))
        np.matmul(x * np.float32(-2), rows.T, out=apart)
        # less `own`, which is the same for a whole line
        if (place == place[0]).all():
            apart += np.where(owner == place[0], FAR, square)
        else:
            apart += square
            np.equal(owner, place[:, np.newaxis], out=own_rows)
            apart.reshape(-1)[np.flatnonzero(own_rows)] = FAR
        if len(place) > 1:
            _among_themselves(apart, place, slot, x, own)
        found, first, _ = nearest(apart, own)
        turn = (first - begin) % MOST
        early = turn < np.arange(len(place))  # a row of this block, which took the slot
        whose = np.where(early, place[np.minimum(turn, len(place) - 1)], owner[first])
        _keep(place, x, own, shared)
        return Beside(found, whose, np.minimum(number, MOST))

    def remember(self, place: IntArray, projection: FloatArray, shared: Mapping[str, Array]) -> None:
        """Remember rows far out, at most `MOST`."""
        x = whole(projection, self.unit)
        _keep(place, x, np.vecdot(x, x), shared)

    def _near(
        self, seen: Seen, rows: IntArray, liable: BoolArray, nats: FloatArray, shared: Mapping[str, Array]
    ) -> IntArray:
        """Add to the nats of these rows; whose row is that near, -1 for nobody's.

        Args:
            liable: whether others' rows count against the row's caller.
        """
        place = seen.place[rows]
        if not len(rows):
            return place
        squares, whose, known = self.beside(place, seen.projection[rows], shared)
        there = (squares[1] < FAR) & (known >= FEWEST) & liable
        squares[:, ~there] = 1.0
        odds = self._odds(squares, known)
        nats[rows] += np.where(there, self._odds.nats(odds), 0.0)
        return np.where(there & (odds >= self.least), whose, -1)

    def _link(self, place: IntArray, whose: IntArray, columns: Mapping[str, Array], links: IntArray) -> None:
        beside = whose >= 0
        if not beside.any():
            return
        a, b = place[beside], whose[beside]
        suspicion, steps = columns["suspicion"], columns["steps"]
        np.add.at(steps, a, 1)
        one, other = suspicion[a], suspicion[b]
        both = (np.minimum(one, other) >= self.each) & (one + other >= self.suspect)
        both &= np.minimum(steps[a], steps[b]) >= self.steps
        both &= columns["odd"][b] >= self.own  # of `a`, the row itself has told
        if not both.any():
            return
        free = int((links[:, 0] >= 0).sum())
        pairs = np.stack([a[both], b[both]], axis=1)[: _MOST_LINKS - free]
        links[free : free + len(pairs)] = pairs

    @cached_property
    def _white(self) -> tuple[FloatArray, FloatArray]:
        return np.array(self.mean, np.float32), np.array(self.whiten, np.float32)

    @cached_property
    def _tables(self) -> tuple[Edges, FloatArray]:
        return Edges(np.array(self.edges)), np.array(self.nats)

    @cached_property
    def _odds(self) -> Odds:
        return Odds(self.weights, self.stepped, self.unit, MOST)


_held = threading.local()


def _scratch(block: int) -> tuple[FloatArray, BoolArray]:
    """Room for the distances of a block to all remembered rows, the same each time: to ask the system for it takes longer than to fill it."""
    found: tuple[FloatArray, BoolArray] | None = getattr(_held, "room", None)
    if found is None:
        found = _held.room = np.empty((_BLOCK, MOST), np.float32), np.empty((_BLOCK, MOST), np.bool_)
    return found[0][:block], found[1][:block]


def _keep(place: IntArray, x: FloatArray, own: FloatArray, shared: Mapping[str, Array]) -> None:
    """Remember whole numbers and their squared lengths in the place of those who came first."""
    slot = (int(shared["count"][0]) + np.arange(len(place))) % MOST
    shared["rows"][slot], shared["square"][slot], shared["owner"][slot] = x, own, place
    shared["count"][0] += len(place)


def _among_themselves(apart: FloatArray, place: IntArray, slot: IntArray, x: FloatArray, own: FloatArray) -> None:
    """Set squared distances, less `own` of the later row, to earlier rows of other callers, in the slots that those rows take."""
    inner = own - 2 * (x @ x.T)
    inner[place[:, np.newaxis] == place] = FAR
    later, earlier = _pairs(len(place))
    apart[later, slot[earlier]] = inner[later, earlier]


@lru_cache(maxsize=_BLOCK)
def _pairs(count: int) -> tuple[IntArray, IntArray]:
    """Each row with each one before it."""
    return np.tril_indices(count, -1)
