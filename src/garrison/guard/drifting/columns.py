"""What is watched of a row, column by column, and the frozen reference of each.

A model of at most `MOST_FEATURES` features is watched feature by feature; a larger one by its projection and two summaries of the whole input. Of answers: the
class and how sure the model is of it, or the numbers of a regression.

Invariant: a value falls into the same bin here and where the reference was made, for both read it as single precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.types import Array, FloatArray, ModelFacts, Task

MOST_FEATURES = 64
MOST_CLASSES = 32
"""A model of more classes is watched by ranges of class numbers."""
MOST_OUTPUTS = 8
"""Of a model that answers no classes, so many numbers are watched."""
MOST_BINS = 40
CLIP = 4.0
"""A value counts in a mean as if it were no further from the reference's than so many of its standard deviations."""
Source = Literal["features", "projection"]
SUMMARIES = ("mean of the input", "spread of the input")
CODES = npt.NDArray[np.intp]


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One column and its reference.

    Attributes:
        name: for people.
        edges: rising; a value is in the bin of how many edges do not lie above it. Values that are missing have a bin of their own, the last.
        shares: of the reference's rows, by bin: two more than edges.
        mean, scale: of the reference's values; a scale of 0 where means are not compared, as of class numbers.
        answer: whether it is of the model's answer.
    """

    name: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    mean: float = 0.0
    scale: float = 0.0
    answer: bool = False

    def __post_init__(self) -> None:
        if len(self.edges) + 2 > MOST_BINS or len(self.shares) != len(self.edges) + 2:
            raise ValueError(
                f"drift: column {self.name!r} must have two more shares than edges, and at most {MOST_BINS}"
            )
        if any(not math.isfinite(e) for e in self.edges) or any(
            a >= b for a, b in zip(self.edges, self.edges[1:], strict=False)
        ):
            raise ValueError(f"drift: the edges of column {self.name!r} must rise")
        if any(not 0 <= s <= 1 for s in self.shares) or abs(math.fsum(self.shares) - 1) > 1e-3:
            raise ValueError(f"drift: the shares of column {self.name!r} must be in 0 to 1 and sum to 1")
        if not math.isfinite(self.mean) or not 0 <= self.scale < math.inf:
            raise ValueError(f"drift: mean and scale of column {self.name!r} must be finite, and scale not negative")


def source_of(facts: ModelFacts) -> Source:
    """How a model of this kind is watched."""
    return "features" if features_of(facts) <= MOST_FEATURES else "projection"


def features_of(facts: ModelFacts) -> int:
    return sum(math.prod(spec.shape) for spec in facts.inputs)


def names_of(facts: ModelFacts, source: Source, width: int) -> tuple[str, ...]:
    """Names of the columns of a row, then of its answer.

    Args:
        width: of the projection.
    """
    if source == "projection":
        asked = [f"projection {k}" for k in range(width)] + list(SUMMARIES)
    else:
        asked = [name for spec in facts.inputs for name in _names_of_input(spec.name, math.prod(spec.shape))]
    return (*asked, *answer_names(facts))


def _names_of_input(name: str, features: int) -> list[str]:
    return [name] if features == 1 else [f"{name}[{k}]" for k in range(features)]


def answer_names(facts: ModelFacts) -> tuple[str, ...]:
    if facts.task is Task.CLASSIFICATION:
        return ("predicted class", "largest probability")
    return tuple(f"answer {k}" for k in range(min(facts.outputs, MOST_OUTPUTS)))


class Looked(NamedTuple):
    """One input of a model, as it is looked at.

    Attributes:
        ones: shape (features,): a product with it is the fastest sum.
        missing: whether any of its values may be missing.
    """

    name: str
    features: int
    ones: FloatArray
    missing: bool


def looks_of(facts: ModelFacts) -> tuple[Looked, ...]:
    """What `asked_values` needs to know of a model; made once."""
    sizes = [(spec, math.prod(spec.shape)) for spec in facts.inputs]
    return tuple(
        Looked(spec.name, size, np.ones(size, np.float32), bool(spec.may_be_missing.any())) for spec, size in sizes
    )


def asked_values(
    looks: Sequence[Looked], inputs: Mapping[str, Array], projection: FloatArray | None, out: FloatArray
) -> None:
    """Write what is watched of rows as they were asked; of a whole input its sums, which `summarise` makes summaries of.

    Args:
        looks: from `looks_of`.
        projection: shape (rows, width), where the model is watched by it; else None.
        out: shape (rows, columns), single precision.
    """
    if projection is None:
        at = 0
        for look in looks:
            out[:, at : at + look.features] = inputs[look.name].reshape(-1, look.features)
            at += look.features
        return
    width = projection.shape[1]
    out[:, :width] = projection
    first, *others = looks
    out[:, width], out[:, width + 1] = _sums(first, inputs)
    for look in others:
        total, squares = _sums(look, inputs)
        out[:, width] += total
        out[:, width + 1] += squares


def _sums(look: Looked, inputs: Mapping[str, Array]) -> tuple[FloatArray, FloatArray]:
    """The sum of each row of an input, and of its squares."""
    x = inputs[look.name].reshape(-1, look.features)
    x = x if x.dtype == np.float32 else x.astype(np.float32)
    if look.missing:
        x = np.nan_to_num(x, nan=0.0)
    return x @ look.ones, np.vecdot(x, x)


def summarise(looks: Sequence[Looked], values: FloatArray, width: int) -> None:
    """Make means and spreads of the sums that `asked_values` left for a model that is watched by its projection: once for many batches."""
    count = np.float32(sum(look.features for look in looks))
    mean = values[:, width] / count
    values[:, width] = mean
    values[:, width + 1] = np.sqrt(np.maximum(values[:, width + 1] / count - mean * mean, 0))


def answer_values(facts: ModelFacts, answers: FloatArray) -> FloatArray:
    """What is watched of answers, shape (rows, columns), single precision."""
    if facts.task is not Task.CLASSIFICATION:
        return answers[:, :MOST_OUTPUTS].astype(np.float32)
    found = np.empty((len(answers), 2), np.float32)
    top = answers.argmax(axis=1)
    found[:, 0] = top
    found[:, 1] = answers[np.arange(len(top)), top]
    return found


class Layout(NamedTuple):
    """The reference as arrays: all bins of all columns stand one after the other.

    Attributes:
        columns: what they are.
        start: shape (columns,), where the bins of each begin.
        last: shape (columns, 1), the number of each one's last bin, within the column.
        shares: shape (bins,), of the reference.
        edges: shape (most edges, columns, 1), filled up with infinities.
        mean, scale: shape (columns,); a scale that is infinite takes a column out of the means.
        answers: how many of the columns, the last ones, are of answers.
    """

    columns: tuple[Column, ...]
    start: CODES
    last: npt.NDArray[np.uint8]
    shares: FloatArray
    edges: FloatArray
    mean: FloatArray
    scale: FloatArray
    answers: int

    def codes(self, values: FloatArray) -> CODES:
        """The bin of each value, as numbers of all bins; shape (columns, rows).

        All columns are compared with one of their edges at a time: several times faster than a search a column.
        """
        x = np.ascontiguousarray(values.T)
        found = np.zeros(x.shape, np.uint8)
        above = np.empty(x.shape, np.bool_)
        counted = above.view(np.uint8)
        for edge in self.edges:
            np.greater_equal(x, edge, out=above)
            found += counted
        np.minimum(found, self.last - np.uint8(1), out=found)  # an infinite value reaches the edges that fill up
        np.not_equal(x, x, out=above)
        if above.any():
            found = np.where(above, self.last, found)
        return found + self.start[:, None]

    def scores(self, values: FloatArray) -> FloatArray:
        """How far each value is from the reference's mean, in its standard deviations, cut off; 0 where it is missing."""
        z = (values - self.mean) / self.scale
        np.clip(z, -CLIP, CLIP, out=z)
        if np.isnan(z.sum()):
            z = np.where(np.isnan(z), np.float32(0), z)
        return z


def layout_of(columns: Sequence[Column]) -> Layout:
    sizes = [len(column.shares) for column in columns]
    edges = np.full((max(len(column.edges) for column in columns), len(columns), 1), np.inf, np.float32)
    for k, column in enumerate(columns):
        edges[: len(column.edges), k, 0] = column.edges
    return Layout(
        tuple(columns),
        np.cumsum([0, *sizes[:-1]]).astype(np.intp),
        (np.array(sizes, np.uint8) - np.uint8(1))[:, None],
        np.array([s for column in columns for s in column.shares], np.float64),
        edges,
        np.array([column.mean for column in columns], np.float32),
        np.array([column.scale or np.inf for column in columns], np.float32),
        sum(column.answer for column in columns),
    )
