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
_BLOCK, _BLOCK_WORDS = 32, 2**18
"""Rows at once: so many, or as many as have so many words in all, which stay in the processor's caches; at least one."""
_FILTER_BITS = 8
"""Bits of a caller's filter for each digest of its ring: about one row in six that is not in the ring has the ring read."""
_BYTE, _IN_BYTE = np.uint32(3), np.uint32(7)
_BITS = (1 << np.arange(8)).astype(np.uint8)
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
            for start in range(0, rows, part.block):
                total[start : start + part.block] += part(x[start : start + part.block])
        return np.maximum((total >> np.uint64(32)).astype(np.uint32), np.uint32(1))


class _Part:
    """What one input adds to a digest. Its arrays are used again and again: to ask the system for memory takes longer than to multiply."""

    def __init__(self, spec: InputFacts, factors: npt.NDArray[np.uint64]) -> None:
        self.name = spec.name
        self._factors = factors
        self._missing = bool(spec.may_be_missing.any())
        features, size = math.prod(spec.shape), spec.dtype.itemsize
        self.block = max(1, min(_BLOCK, _BLOCK_WORDS // len(factors)))
        raw = np.zeros((self.block, _WORD * len(factors)), np.uint8)  # filled up with zeros to whole words
        self._words = raw.view(np.uint32)
        self._rows = raw[:, : features * size].view(spec.dtype)

    def __call__(self, x: Array) -> npt.NDArray[np.uint64]:
        count = len(x)
        rows = self._rows[:count]
        if x.dtype.kind == "f":
            np.add(x.reshape(count, -1), x.dtype.type(0), out=rows)  # -0.0 + 0.0 is 0.0
            if self._missing:
                rows[np.isnan(rows)] = np.nan
        else:
            rows[...] = x.reshape(count, -1)
        found: npt.NDArray[np.uint64] = np.einsum("ij,j->i", self._words[:count], self._factors, dtype=np.uint64)
        return found  # faster than matmul on whole numbers, and than to widen the words first


class Rings:
    """The latest digests of each caller.

    Beside the ring stands a small filter (Bloom, CACM 1970, with one bit a digest): whoever is not in it is not in the ring, which then need not be read. Its bits stay until
    the ring has gone around once; then it is made anew from the ring.

    Args:
        length: digests a caller; 0 for none.
        places: entries at first.

    Attributes:
        table: what is kept.
        filter: what follows from it.
    """

    def __init__(self, length: int, places: int) -> None:
        self.length = length
        self._bytes = 1 << max(0, (_FILTER_BITS * length - 1).bit_length() - 3)
        self._mask = np.uint32(self._bytes - 1)
        self.table = Table({"ring": Column("uint32", (length,)), "next": Column("int64")}, places)
        self.filter = Table({"bits": Column("uint8", (self._bytes,))}, places)

    def add(self, places: PlaceArray, turns: PlaceArray, digests: DigestArray) -> None:
        """Remember rows; of each caller at most `length`, in turn (0, 1, ...)."""
        following = self.table["next"]
        begin = following[places]
        slots = (begin + turns) % self.length
        self.table["ring"][places, slots] = digests
        following[places] = begin + turns + 1  # of several rows of one caller, the last is written last
        self._note(places, slots, digests)

    def knows(self, places: PlaceArray, digests: DigestArray) -> BoolArray:
        """Whether each row is among its caller's, shape (rows,)."""
        found: BoolArray = np.zeros(len(places), np.bool_)
        where, bit = self._where(places, digests)
        maybe = self.filter["bits"].reshape(-1).take(where) & bit
        if not np.count_nonzero(maybe):
            return found
        rows = maybe.nonzero()[0]
        filled = min(int(self.table["next"][places[rows]].max()), self.length)
        equal = self.table["ring"][places[rows], :filled] == digests[rows, np.newaxis]
        if np.count_nonzero(equal):
            found[rows] = equal.any(axis=1)
        return found

    def look(self) -> None:
        """Make all filters anew, after `table` was written to from outside."""
        for place in self.table["next"].nonzero()[0].tolist():
            self._refill(place)

    def _where(self, places: PlaceArray, digests: DigestArray) -> tuple[PlaceArray, npt.NDArray[np.uint8]]:
        """The byte and the bit of each digest, among the filters of all callers."""
        where: PlaceArray = places * self._bytes + ((digests >> _BYTE) & self._mask)
        return where, _BITS.take(digests & _IN_BYTE)

    def _note(self, places: PlaceArray, slots: PlaceArray, digests: DigestArray) -> None:
        where, bit = self._where(places, digests)
        np.bitwise_or.at(self.filter["bits"].reshape(-1), where, bit)
        self._follow(places, slots)

    def _follow(self, places: PlaceArray, slots: PlaceArray) -> None:
        """Some rows were written to these slots: a caller whose ring has gone around gets another filter."""
        if int(slots.max()) == self.length - 1:
            for place in places[slots == self.length - 1].tolist():
                self._refill(place)

    def _refill(self, place: int) -> None:
        ring = self.table["ring"][place]
        ring = ring[ring != 0]
        self.filter["bits"][place] = 0
        where, bit = self._where(np.full(len(ring), place), ring)
        np.bitwise_or.at(self.filter["bits"].reshape(-1), where, bit)
