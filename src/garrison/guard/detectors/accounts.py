"""Accounts that ask as one: rows stepped from rows that another account asked.

Who spreads a sequence of steps over many accounts shows each of them little. So the service remembers the latest rows of all callers that lie far out
among honest ones, as stepped rows do, and asks of each such row how near it lies to those of other accounts: again by the distance to the nearest and
the gap to the second nearest. Two accounts that are both under suspicion, and of which one asked a row next to the other's, are linked:
`watch` sums their evidence from then on, that of all detectors.

Rows that are equal say nothing: many honest callers ask about the same picture.

Does not see: accounts that share no sequence (a transfer set spread over many accounts); steps as long as the distances between unrelated rows; a source that
was asked so long ago, or so much traffic ago, that it is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.guard.detectors.hardness import distance
from garrison.guard.detectors.near_duplicates import MOST_NATS, TERMS, terms
from garrison.guard.detectors.tables import bins, check_edges, check_nats
from garrison.types import Array, FloatArray, IntArray

MOST = 2048
"""Rows remembered of all callers together; the oldest is forgotten first."""
FEWEST = 64
"""Rows remembered before which nothing is said."""
_BLOCK = 64
_LARGEST = 127
_MOST_LINKS = 64
_FAR = np.float32(np.inf)


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
    suspect: float = 8.0
    each: float = 3.0
    least: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.unit < math.inf or not 0 < self.stepped <= 1:
            raise ValueError("accounts: unit must be above 0 and finite, stepped above 0 and at most 1")
        if len(self.weights) != TERMS or not all(map(math.isfinite, self.weights)):
            raise ValueError(f"accounts.weights: expected {TERMS} finite numbers, found {len(self.weights)}")
        if (
            not 0 <= self.out < math.inf
            or not 0 < self.each <= self.suspect < math.inf
            or not math.isfinite(self.least)
        ):
            raise ValueError("accounts: out must not be below 0, each above 0 and not above suspect, and all finite")
        check_edges("accounts.edges", self.edges)
        check_nats("accounts.nats", self.nats, len(self.edges) + 1)
        if len(self.whiten) != len(self.mean):
            raise ValueError("accounts: whiten must have a line for each number of mean")

    def columns(self, width: int) -> Mapping[str, Column]:  # noqa: ARG002
        return {"suspicion": Column("float32")}

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
        found: FloatArray = nats[bins(seen.confidence, edges)]
        shared["links"][:] = -1
        far = (found > 0) & (distance(seen.projection, *self._white) >= self.out)
        for start in range(0, len(far), _BLOCK):
            part = slice(start, start + _BLOCK)
            rows = start + np.flatnonzero(far[part])
            whose = self._near(seen.place[rows], seen.projection[rows], found, rows, shared)
            summed(columns["suspicion"], seen.place[part], found[part])
            self._link(seen.place[rows], whose, columns["suspicion"], shared["links"])
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

    def distances(
        self, place: IntArray, projection: FloatArray, shared: Mapping[str, Array]
    ) -> tuple[FloatArray, FloatArray, IntArray, IntArray]:
        """Of at most 64 rows far out: to the nearest and second nearest remembered row of another caller, that caller's place, and how many rows
        were remembered. Then remembers these rows."""
        rows, square, owner, count = shared["rows"], shared["square"], shared["owner"], shared["count"]
        x = np.clip(np.rint(projection / np.float32(self.unit)), -_LARGEST, _LARGEST).astype(np.float32)
        own = np.einsum("ij,ij->i", x, x)
        number = int(count[0]) + np.arange(len(place))
        slot = number % MOST
        apart = x @ rows.T
        apart *= -2
        apart += square
        apart += own[:, np.newaxis]
        whose = np.broadcast_to(owner, apart.shape).copy()
        later, earlier = np.nonzero(np.tril(np.ones((len(place), len(place)), dtype=np.bool_), -1))
        apart[later, slot[earlier]] = own[later] + own[earlier] - 2 * (x @ x.T)[later, earlier]
        whose[later, slot[earlier]] = place[earlier]
        rows[slot], square[slot], owner[slot] = x, own, place
        count[0] += len(place)
        apart[(apart < 0.5) | (whose == place[:, np.newaxis])] = _FAR
        line, first = np.arange(len(place)), np.argmin(apart, axis=1)
        nearest = apart[line, first]
        apart[line, first] = _FAR
        unit = np.float32(self.unit)
        return np.sqrt(nearest) * unit, np.sqrt(apart.min(axis=1)) * unit, whose[line, first], np.minimum(number, MOST)

    def _near(
        self, place: IntArray, projection: FloatArray, nats: FloatArray, rows: IntArray, shared: Mapping[str, Array]
    ) -> IntArray:
        """Add to the nats of these rows; whose row is that near, -1 for nobody's."""
        if not len(rows):
            return place
        nearest, second, whose, known = self.distances(place, projection, shared)
        there = np.isfinite(second) & (known >= FEWEST)
        odds = np.zeros(len(place))
        odds[there] = terms(nearest[there], second[there], known[there], MOST) @ self._weights
        nats[rows] += np.where(there, np.log1p(self.stepped * np.expm1(np.clip(odds, -MOST_NATS, MOST_NATS))), 0.0)
        return np.where(there & (odds >= self.least), whose, -1)

    def _link(self, place: IntArray, whose: IntArray, suspicion: FloatArray, links: IntArray) -> None:
        a, b = place[whose >= 0], whose[whose >= 0]
        one, other = suspicion[a], suspicion[b]
        both = (np.minimum(one, other) >= self.each) & (one + other >= self.suspect)
        if not both.any():
            return
        free = int((links[:, 0] >= 0).sum())
        pairs = np.stack([a[both], b[both]], axis=1)[: _MOST_LINKS - free]
        links[free : free + len(pairs)] = pairs

    @cached_property
    def _white(self) -> tuple[FloatArray, FloatArray]:
        return np.array(self.mean, np.float32), np.array(self.whiten, np.float32)

    @cached_property
    def _tables(self) -> tuple[FloatArray, FloatArray]:
        return np.array(self.edges), np.array(self.nats)

    @cached_property
    def _weights(self) -> FloatArray:
        return np.array(self.weights)


def summed(sums: FloatArray, place: IntArray, nats: FloatArray) -> None:
    """`sums[place] = max(0, sums[place] + nats)`, row by row in order; a turn for each row that a caller has in here."""
    order = np.argsort(place, kind="stable")
    sorted_place = place[order]
    begins = np.flatnonzero(np.r_[True, sorted_place[1:] != sorted_place[:-1]])
    turn = np.arange(len(place)) - np.repeat(begins, np.diff(np.r_[begins, len(place)]))
    for number in range(int(turn.max()) + 1):
        rows = order[turn == number]
        sums[place[rows]] = np.maximum(0, sums[place[rows]] + nats[rows])
