"""Whether the distances between a caller's rows look as they do for honest callers: PRADA in bounded memory.

PRADA (Juuti, Szyller, Marchal and Asokan, EuroS&P 2019) keeps every row that lies far from those it kept before, and asks whether the distances of new rows to
the nearest kept one of their class are normally distributed. It keeps about three quarters of all rows, and each row is compared with all of them: see
`garrison.audit.detection.prada`, which does it as published. Here `slots` projections are kept, the oldest is overwritten, and in place of Shapiro and
Wilk's test stand skewness and kurtosis (Jarque and Bera 1980) over about the last `memory` distances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.guard.detectors.tables import Edges, check_edges, check_nats
from garrison.guard.detectors.turns import order_of
from garrison.types import Array, FloatArray, IntArray

MOST_SLOTS = 64
_FEWEST = 40.0
"""Distances below which nothing is said of their distribution."""
_BLOCK = 64
_FAR = np.float32(np.inf)
_SMALL = 1e-12


class BoundedPrada(Detector, frozen=True, dict=True):
    """Nats by how far the distribution of distances is from a normal one.

    Does not see what PRADA does not: rows that are far from each other, such as digits or noise; few rows among many honest ones; few rows an account.

    Attributes:
        threshold: see `Detector`.
        edges: of the bins of log(1 + Jarque and Bera's statistic over the number of distances), from low to high.
        nats: one a bin.
        slots: projections kept of a caller, 8 to 64.
        memory: distances after which one counts 1/e.
    """

    name: ClassVar[str] = "bounded-prada"

    edges: tuple[float, ...]
    nats: tuple[float, ...]
    slots: int = 32
    memory: float = 100.0

    def __post_init__(self) -> None:
        if not 8 <= self.slots <= MOST_SLOTS or not 10 <= self.memory <= 10_000:
            raise ValueError(f"bounded-prada: slots must lie in 8 to {MOST_SLOTS}, memory in 10 to 10000")
        check_edges("bounded-prada.edges", self.edges)
        check_nats("bounded-prada.nats", self.nats, len(self.edges) + 1)

    def columns(self, width: int) -> Mapping[str, Column]:
        return {
            "kept": Column("float32", (self.slots, width)),
            "kind": Column("int32", (self.slots,), -1),
            "count": Column("int64"),
            "grown": Column("float64", (3,)),
            "bar": Column("float64"),
            "moments": Column("float64", (5,)),
        }

    @property
    def most(self) -> float:
        return max(0.0, *self.nats)

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:  # noqa: ARG002
        shape = self.shapes(seen.place, seen.projection, seen.top, columns)
        edges, nats = self._arrays
        found: FloatArray = np.where(shape < 0, 0.0, nats[edges.bins(shape)])
        return found

    def shapes(self, place: IntArray, x: FloatArray, top: IntArray, columns: Mapping[str, Array]) -> FloatArray:
        """The statistic of each row, -1 where nothing can be said; rows that are far are kept."""
        if order_of(place).turns == 1:
            return self._step(place, x, top, columns)
        found = np.empty(len(place))
        for start in range(0, len(place), _BLOCK):
            part = slice(start, start + _BLOCK)
            found[part] = self._block(place[part], x[part], top[part], columns)
        return found

    def _step(self, place: IntArray, x: FloatArray, top: IntArray, columns: Mapping[str, Array]) -> FloatArray:
        """One row of each of several callers."""
        d = self._apart(place, x, top, columns).min(axis=1)
        compared = d < math.inf
        near = np.where(compared, d, 0.0)
        powers = _powers(near)
        moments = columns["moments"][place]
        moments[compared] = moments[compared] * self._decay + powers[compared]
        columns["moments"][place] = moments
        far = ~compared | (near > columns["bar"][place])
        kept = place[far]
        slot = columns["count"][kept] % self.slots
        columns["kept"][kept, slot], columns["kind"][kept, slot] = x[far], top[far]
        columns["count"][kept] += 1
        columns["grown"][kept] += powers[far, :3]  # the first of a class with distance 0, as published
        count, total, squares = columns["grown"][kept].T
        mean = total / count
        bar = mean - np.sqrt(np.maximum(squares / count - mean * mean, 0.0))
        columns["bar"][kept] = np.maximum(columns["bar"][kept], bar)
        return np.where(compared & (moments[:, 0] >= _FEWEST), statistic(moments), -1.0)

    def _block(self, place: IntArray, x: FloatArray, top: IntArray, columns: Mapping[str, Array]) -> FloatArray:
        """What `_step` says of each row, for callers with several: all distances are found at once, which of them count row by row."""
        among = x - x[:, np.newaxis, :]
        between = np.sqrt(np.einsum("rsk,rsk->rs", among, among)).astype(np.float64)
        between[top != top[:, np.newaxis]] = math.inf
        apart = np.concatenate([self._apart(place, x, top, columns), between], axis=1)
        callers = _Caller.of(place, self.slots, columns)
        nearest, moments, rows, slots = [], [], [], []
        for row, one in enumerate(place.tolist()):
            caller = callers[one]
            d = float(apart[row, caller.live].min())
            far = caller.meet(d, self._decay)
            nearest.append(d)
            moments.append(caller.moments)
            if far:
                rows.append(row)
                slots.append(caller.keep(d, self.slots + row))
        places = place[rows]  # of several in one slot the last stands
        columns["kept"][places, slots], columns["kind"][places, slots] = x[rows], top[rows]
        _Caller.put(callers, columns)
        said = np.array(moments)
        return np.where(np.isfinite(nearest) & (said[:, 0] >= _FEWEST), statistic(said), -1.0)

    def _apart(self, place: IntArray, x: FloatArray, top: IntArray, columns: Mapping[str, Array]) -> FloatArray:
        """Distances to the kept rows of each row's caller, by slot; infinite to another class."""
        before = columns["kept"][place] - x[:, np.newaxis, :]
        squares = np.einsum("rsk,rsk->rs", before, before)
        squares[columns["kind"][place] != top[:, np.newaxis]] = _FAR
        found: FloatArray = np.sqrt(squares).astype(np.float64)
        return found

    @cached_property
    def _decay(self) -> float:
        return math.exp(-1 / self.memory)

    @cached_property
    def _arrays(self) -> tuple[Edges, FloatArray]:
        return Edges(np.array(self.edges)), np.array(self.nats)


def _powers(d: FloatArray) -> FloatArray:
    """Distances to the powers 0 to 4, shape (rows, 5); by products, as `_Caller` has them."""
    square = d * d
    found: FloatArray = np.stack([np.ones(len(d)), d, square, square * d, square * square], axis=1)
    return found


@dataclass(slots=True)
class _Caller:
    """What is remembered of one caller, but for the rows: numbers of Python, whose rows come one after the other.

    Attributes:
        live: by slot, in which column of the distances the row that is kept there stands.
    """

    live: IntArray
    count: int
    bar: float
    grown: list[float]
    moments: list[float]

    @classmethod
    def of(cls, place: IntArray, slots: int, columns: Mapping[str, Array]) -> dict[int, _Caller]:
        """All callers of some rows, by place."""
        places = np.unique(place)
        parts = (columns[name][places].tolist() for name in ("count", "bar", "grown", "moments"))
        return {one: cls(np.arange(slots), *own) for one, *own in zip(places.tolist(), *parts, strict=True)}

    @staticmethod
    def put(callers: Mapping[int, _Caller], columns: Mapping[str, Array]) -> None:
        """Remember them."""
        places = list(callers)
        for name in ("count", "bar", "grown", "moments"):
            columns[name][places] = [getattr(caller, name) for caller in callers.values()]

    def meet(self, d: float, decay: float) -> bool:
        """Count the distance of a row to the nearest kept one of its class, infinite for the first; whether the row is far."""
        if d == math.inf:
            return True
        square = d * d
        zeroth, first, second, third, fourth = self.moments
        self.moments = [
            zeroth * decay + 1.0,
            first * decay + d,
            second * decay + square,
            third * decay + square * d,
            fourth * decay + square * square,
        ]
        return d > self.bar

    def keep(self, d: float, column: int) -> int:
        """One more is kept, in that slot; the bar rises to where most kept ones lay. The first of a class counts with distance 0, as published."""
        slot = self.count % len(self.live)
        self.live[slot] = column
        d = d if d < math.inf else 0.0
        count, total, squares = self.grown
        self.count += 1
        self.grown = count, total, squares = [count + 1.0, total + d, squares + d * d]
        mean = total / count
        self.bar = max(self.bar, mean - math.sqrt(max(squares / count - mean * mean, 0.0)))
        return slot


def statistic(moments: FloatArray) -> FloatArray:
    """log(1 + S^2 / 6 + K^2 / 24), shape (rows,), with skewness S and excess kurtosis K.

    Args:
        moments: shape (rows, 5), weighted sums of the powers 0 to 4 of distances.
    """
    m = moments / np.maximum(moments[:, :1], _SMALL)
    mean = m[:, 1]
    variance = np.maximum(m[:, 2] - mean**2, _SMALL)
    third = m[:, 3] - 3 * mean * m[:, 2] + 2 * mean**3
    fourth = m[:, 4] - 4 * mean * m[:, 3] + 6 * mean**2 * m[:, 2] - 3 * mean**4
    skewness, kurtosis = third / variance**1.5, fourth / variance**2 - 3
    found: FloatArray = np.log1p(skewness**2 / 6 + kurtosis**2 / 24)
    return found
