"""Whether the distances between a caller's rows look as they do for honest callers: PRADA in bounded memory.

PRADA (Juuti, Szyller, Marchal and Asokan, EuroS&P 2019) keeps every row that lies far from those it kept before, and asks whether the distances of new rows to
the nearest kept one of their class are normally distributed. It keeps about three quarters of all rows, and each row is compared with all of them: see
`garrison.audit.detection.prada`, which does it as published. Here `slots` projections are kept, the oldest is overwritten, and in place of Shapiro and
Wilk's test stand skewness and kurtosis (Jarque and Bera 1980) over about the last `memory` distances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column, Detector, Seen
from garrison.guard.detectors.tables import Edges, check_edges, check_nats
from garrison.guard.detectors.turns import turns
from garrison.types import Array, FloatArray

MOST_SLOTS = 64
_FEWEST = 40.0
"""Distances below which nothing is said of their distribution."""
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

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:  # noqa: ARG002
        shape = np.zeros(len(seen.top))
        for rows in turns(seen.place):
            shape[rows] = self.step(seen.place[rows], seen.projection[rows], seen.top[rows], columns)
        edges, nats = self._arrays
        found: FloatArray = np.where(shape < 0, 0.0, nats[edges.bins(shape)])
        return found

    def step(
        self,
        place: npt.NDArray[np.intp],
        x: FloatArray,
        top: npt.NDArray[np.intp],
        columns: Mapping[str, Array],
    ) -> FloatArray:
        """One row of each of several callers: its statistic, -1 where nothing can be said; then keep it where it is far."""
        kept, kind = columns["kept"], columns["kind"]
        apart = kept[place] - x[:, np.newaxis, :]
        squares = np.einsum("rsk,rsk->rs", apart, apart)
        squares[kind[place] != top[:, np.newaxis]] = _FAR
        d = np.sqrt(squares.min(axis=1)).astype(np.float64)
        compared = np.isfinite(d)
        moments = columns["moments"][place] * np.where(compared, math.exp(-1 / self.memory), 1.0)[:, np.newaxis]
        powers = np.where(compared, d, 0.0)[:, np.newaxis] ** np.arange(5)
        moments += powers * compared[:, np.newaxis]
        columns["moments"][place] = moments
        far = ~compared | (d > columns["bar"][place])
        self._keep(place[far], x[far], top[far], np.where(compared, d, 0.0)[far], columns)
        return np.where(compared & (moments[:, 0] >= _FEWEST), statistic(moments), -1.0)

    def _keep(
        self,
        place: npt.NDArray[np.intp],
        x: FloatArray,
        top: npt.NDArray[np.intp],
        d: FloatArray,
        columns: Mapping[str, Array],
    ) -> None:
        slot = columns["count"][place] % self.slots
        columns["kept"][place, slot], columns["kind"][place, slot] = x, top
        columns["count"][place] += 1
        grown = columns["grown"][place] + d[:, np.newaxis] ** np.arange(
            3
        )  # the first of a class with distance 0, as published
        columns["grown"][place] = grown
        mean = grown[:, 1] / grown[:, 0]
        spread = np.sqrt(np.maximum(grown[:, 2] / grown[:, 0] - mean**2, 0.0))
        columns["bar"][place] = np.maximum(columns["bar"][place], mean - spread)

    @cached_property
    def _arrays(self) -> tuple[Edges, FloatArray]:
        return Edges(np.array(self.edges)), np.array(self.nats)


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
