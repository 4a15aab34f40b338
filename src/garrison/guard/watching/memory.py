"""Which rows a caller was answered before: short keyed digests in a ring a caller, so that what was answered honestly stays so.

The digest is multilinear hashing (Lemire and Kaser, The Computer Journal 2014): sum of m_i w_i modulo 2**64 over the row's 32-bit words w_i, of which the upper 32
bits are kept, under random 64-bit m_i that never leave. For any two different rows that do not depend on m, it is equal with a probability of 2**-32. It
is over the whole input and not over its projection, whose matrix is public: who knows it can craft inputs that project alike.

Not covered: who has found two inputs with equal digests (at one chance in 2**32 a try) can make more of them, since the digest is linear.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from garrison.guard.detectors.base import Column
from garrison.guard.watching.places import PlaceArray, Table
from garrison.types import Array, BoolArray, InputFacts, ModelFacts

SECRET_BYTES = 32
DIGEST_BYTES = 4
_WORD = 4
_BLOCK = 32
DigestArray = npt.NDArray[np.uint32]


class Hasher:
    """Digests of rows.

    Args:
        facts: of the model.
        secret: `SECRET_BYTES` random bytes.
    """

    def __init__(self, facts: ModelFacts, secret: bytes) -> None:
        sizes = [math.ceil(math.prod(spec.shape) * spec.dtype.itemsize / _WORD) for spec in facts.inputs]
        stream = hashlib.shake_256(b"garrison-watch" + secret).digest(8 * (sum(sizes) + 1))
        start, *rest = np.frombuffer(stream, "<u8").astype(np.uint64)
        self._start = start
        ends = np.cumsum(sizes)
        self._parts = [
            _Part(spec, np.array(rest[end - size : end]))
            for spec, size, end in zip(facts.inputs, sizes, ends, strict=True)
        ]

    def __call__(self, inputs: Mapping[str, Array]) -> DigestArray:
        """Digests of all rows, shape (rows,), none of them 0. -0.0 counts as 0.0, and every NaN as every other."""
        rows = len(next(iter(inputs.values())))
        total = np.full(rows, self._start)
        for part in self._parts:
            x = inputs[part.name]
            for start in range(0, rows, _BLOCK):
                total[start : start + _BLOCK] += part(x[start : start + _BLOCK])
        return np.maximum((total >> np.uint64(32)).astype(np.uint32), np.uint32(1))


class _Part:
    """What one input adds to a digest. Its arrays are used again and again: to ask the system for memory takes longer than to multiply."""

    def __init__(self, spec: InputFacts, factors: npt.NDArray[np.uint64]) -> None:
        self.name = spec.name
        self._factors = factors
        self._missing = bool(spec.may_be_missing.any())
        features, size = math.prod(spec.shape), spec.dtype.itemsize
        raw = np.zeros((_BLOCK, _WORD * len(factors)), np.uint8)  # filled up with zeros to whole words
        self._words32 = raw.view(np.uint32)
        self._rows = raw[:, : features * size].view(spec.dtype)
        self._words64 = np.zeros((_BLOCK, len(factors)), np.uint64)

    def __call__(self, x: Array) -> npt.NDArray[np.uint64]:
        count = len(x)
        rows, words = self._rows[:count], self._words64[:count]
        if x.dtype.kind == "f":
            np.add(x.reshape(count, -1), x.dtype.type(0), out=rows)  # -0.0 + 0.0 is 0.0
            if self._missing:
                rows[np.isnan(rows)] = np.nan
        else:
            rows[...] = x.reshape(count, -1)
        words[...] = self._words32[:count]
        found: npt.NDArray[np.uint64] = np.einsum(
            "ij,j->i", words, self._factors
        )  # faster than matmul on whole numbers
        return found


class Rings:
    """The latest digests of each caller.

    Args:
        length: digests a caller; 0 for none.
        places: entries at first.
    """

    def __init__(self, length: int, places: int) -> None:
        self.length = length
        self.table = Table({"ring": Column("uint32", (length,)), "next": Column("int64")}, places)

    def add(self, places: PlaceArray, turns: PlaceArray, digests: DigestArray) -> None:
        """Remember rows; of each caller at most `length`, in turn (0, 1, ...)."""
        following = self.table["next"]
        begin = following[places]
        self.table["ring"][places, (begin + turns) % self.length] = digests
        following[places] = begin + turns + 1  # of several rows of one caller, the last is written last

    def add_one_each(self, places: PlaceArray, digests: DigestArray) -> None:
        """`add` for one row of each caller."""
        following = self.table["next"]
        begin = following[places]
        self.table["ring"][places, begin % self.length] = digests
        following[places] = begin + 1

    def knows(self, places: PlaceArray, digests: DigestArray) -> BoolArray:
        """Whether each row is among its caller's, shape (rows,)."""
        filled = min(int(self.table["next"][places].max(initial=0)), self.length)
        equal = self.table["ring"][places, :filled] == digests[:, np.newaxis]
        if not np.count_nonzero(equal):  # nearly always
            return np.zeros(len(places), np.bool_)
        found: BoolArray = equal.any(axis=1)
        return found
