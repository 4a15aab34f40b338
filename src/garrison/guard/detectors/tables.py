"""Lookup tables of nats: how often honest rows and an attacker's fall into each of a few bins, compared once, at sealing.

A detector that looks a row up in such a table costs the same whatever was asked before, and can say nothing infinite.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from garrison.types import FloatArray

MOST_NATS = 3.0
"""A table says no more than this of one row, for or against."""
MOST_EDGES = 64


def check_edges(name: str, edges: Sequence[float]) -> None:
    """Raise ValueError unless these are at most `MOST_EDGES` finite numbers in rising order."""
    if len(edges) > MOST_EDGES or not all(math.isfinite(e) for e in edges):
        raise ValueError(f"{name}: expected at most {MOST_EDGES} finite numbers")
    if any(b < a for a, b in itertools.pairwise(edges)):
        raise ValueError(f"{name}: expected numbers in rising order")


def check_nats(name: str, nats: Sequence[float], cells: int) -> None:
    """Raise ValueError unless there is one number a cell, each in plus or minus `MOST_NATS`."""
    if len(nats) != cells or not all(abs(n) <= MOST_NATS for n in nats):
        raise ValueError(f"{name}: expected {cells} numbers of at most {MOST_NATS} either way, found {len(nats)}")


def bins(values: FloatArray, edges: FloatArray) -> npt.NDArray[np.intp]:
    """How many edges lie below each value, shape (rows,); NaN falls into the first bin.

    Args:
        values: shape (rows,).
        edges: shape (edges,), rising, or (rows, edges) where each row has its own.
    """
    if edges.ndim == 1:
        return Edges(edges).bins(values)
    found: npt.NDArray[np.intp] = np.count_nonzero(values[:, np.newaxis] > edges, axis=1)
    return found


def sure_above(edges: Sequence[float], nats: Sequence[float]) -> float:
    """The value above which no bin says more than 0 nats; infinite where the last one does."""
    last = max((i for i, said in enumerate(nats) if said > 0), default=-1)
    return -math.inf if last < 0 else math.inf if last == len(edges) else edges[last]


class Edges:
    """Edges that many values are compared with.

    Args:
        edges: shape (edges,), rising.
    """

    def __init__(self, edges: FloatArray) -> None:
        self._size = edges.size
        self._falling = -edges[::-1].astype(np.float64)

    def bins(self, values: FloatArray) -> npt.NDArray[np.intp]:
        """See `bins`."""
        found: npt.NDArray[np.intp] = self._size - self._falling.searchsorted(-values, "right")  # NaN stands last
        return found


class ClassEdges:
    """Edges of several classes: a value is looked up among all of them, and a table tells how many of one class lie below.

    Args:
        lines: shape (classes, edges), each rising.
    """

    def __init__(self, lines: FloatArray) -> None:
        every = np.sort(lines.ravel())
        self._all = Edges(every)
        self._last = len(lines) - 1
        below = np.concatenate([np.full((len(lines), 1), -np.inf), np.tile(every, (len(lines), 1))], axis=1)
        self._counts = np.stack(
            [np.searchsorted(line, reach, "right") for line, reach in zip(lines, below, strict=True)]
        )

    def bins(self, values: FloatArray, number: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """How many edges of its class lie below each value, shape (rows,); NaN falls into the first bin.

        Args:
            values: shape (rows,).
            number: shape (rows,), the class; one beyond the last has the edges of the last.
        """
        found: npt.NDArray[np.intp] = self._counts[np.minimum(number, self._last), self._all.bins(values)]
        return found
