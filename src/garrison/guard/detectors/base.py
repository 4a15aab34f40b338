"""What a detector is.

A detector is a frozen, strict value: its fields are its parameters, calibrated at sealing and signed. It sees rows of many callers at once, and
says of each row how much it speaks for an attack: a log-likelihood ratio in nats, below 0 in the mean for honest callers. `watch` sums it up for
each caller (Page's CUSUM, which forgets what speaks for the caller), and for accounts that behave alike together; above `threshold` it raises the alarm.

What a detector remembers lies in columns: arrays with one entry a caller, so that a batch of many callers is a few calls of numpy. Invariants that the
contract tests hold for every registered detector: bounded memory a caller; the cost of a row does not grow with what was asked before; what is said of
a caller's rows does not depend on how they are cut into requests and batches, nor, but for what a detector `shares`, on other callers' rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import ClassVar, Self

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.turns import Order, order_of
from garrison.types import Array, FloatArray

MOST_ROWS = 32
"""`watch` shows at most so many rows of one caller at once; longer requests come in parts."""
MOST_BYTES = 32 * 1024
"""A caller's entries in the columns of all detectors together."""


class Column(msgspec.Struct, frozen=True):
    """An array with one entry a caller.

    Attributes:
        dtype: numpy's name of the type.
        shape: of one caller's entry.
        fill: what a new caller's entry holds.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    fill: float = 0

    @property
    def size(self) -> int:
        """Bytes a caller."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


class Seen(msgspec.Struct, frozen=True, eq=False, dict=True):
    """Rows in the order in which they came, at most `MOST_ROWS` of one caller. Rows that `watch` knows their caller asked before are not among them.

    Attributes:
        place: shape (rows,), where the row's caller stands in the columns.
        asked: shape (rows,), how many rows of that caller were shown before this one: those that it had asked before are not shown again.
        projection: shape (rows, width), float32, see `garrison.guard.defenses.projection`.
        confidence: shape (rows,), float32: the chain's out-of-distribution score, low for inputs unlike the training data.
        probability: shape (rows,), float32: the model's largest probability, undefended.
        top: shape (rows,), the model's own choice of class, undefended.
    """

    place: npt.NDArray[np.intp]
    asked: npt.NDArray[np.int64]
    projection: FloatArray
    confidence: FloatArray
    probability: FloatArray
    top: npt.NDArray[np.intp]

    @cached_property
    def order(self) -> Order:
        """Which rows are whose."""
        return order_of(self.place)

    def in_order(self, order: Order) -> Self:
        """The same, whose order is known already."""
        vars(self)["order"] = order
        return self

    def parts(self, rows: int) -> Iterator[tuple[slice, Seen]]:
        """So many rows at a time, and where they stand."""
        whole = len(self.place)
        if whole <= rows:
            yield slice(0, whole), self
            return
        for start in range(0, whole, rows):
            part = slice(start, start + rows)
            yield part, Seen(*(getattr(self, field)[part] for field in self.__struct_fields__))


class Detector(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every detector.

    Attributes:
        threshold: nats above which a caller is alarmed; calibrated on honest callers. Infinity never alarms.
    """

    name: ClassVar[str]
    secret_projection: ClassVar[bool] = False
    """Whether `watch` shows it a projection of the same width by a matrix that it keeps to itself, in place of the one that everybody can know. Then nothing
    that was found at sealing may depend on the matrix, but on distances alone."""

    threshold: float

    @property
    def most(self) -> float:
        """Nats that one row brings at most, not below 0: so long as they cannot make up the threshold, `watch` may let rows wait. Infinite where there is
        no such bound: then every row is weighed at once."""
        return math.inf

    @property
    def sure(self) -> float:
        """Confidence above which a row brings 0 nats at most; infinite where every row may bring `most`."""
        return math.inf

    def columns(self, width: int) -> Mapping[str, Column]:  # noqa: ARG002
        """What is remembered of each caller, by name.

        Args:
            width: numbers in a projection.
        """
        return {}

    def shares(self, width: int) -> Mapping[str, Column]:  # noqa: ARG002
        """What is remembered once, of all callers together, by name."""
        return {}

    def among_repeats(self) -> Self:
        """What it becomes where `watch` remembers no rows, so that any of those shown may be one that its caller asked before."""
        return self

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        """Nats for an attack, shape (rows,), finite; then remember these rows.

        Args:
            seen: the rows; there is at least one.
            columns: this detector's columns, each of shape (callers, ...); written to at `seen.place`.
            shared: this detector's shared arrays; written to.
        """
        raise NotImplementedError

    def links(
        self,
        seen: Seen,  # noqa: ARG002
        columns: Mapping[str, Array],  # noqa: ARG002
        shared: Mapping[str, Array],  # noqa: ARG002
    ) -> npt.NDArray[np.intp] | None:
        """Pairs of places whose callers behave alike, shape (pairs, 2); None for none. Called after each `weigh`, with the same arguments.

        Their evidence is summed from then on, so a pair is named on good evidence alone, and again now and then while it holds.
        """
        return None

    def forget(self, places: npt.NDArray[np.intp], shared: Mapping[str, Array]) -> None:
        """These places are nobody's, or another caller's, from now on: drop what `shared` says of them. Their columns are empty already."""
