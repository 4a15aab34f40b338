"""Short keyed digests of rows, by which `watch` knows one again.

Which of two ways they are made depends on the size of the model's rows alone, so it is the same for all rows of a model:

    short rows    multilinear hashing (Lemire and Kaser, The Computer Journal 2014): the sum of m_i w_i modulo 2**64 over the row's 32-bit words w_i, of which the upper 32 bits are kept, under
                  random 64-bit m_i that never leave. Many rows in one pass of numpy
    long rows     `garrison.crypto.keyed_hash`, row by row: no factors to read, which are twice as long as the row, and no sum in whole numbers

For any two different rows that do not depend on the secret, digests are equal with a probability of 2**-32. They are over the whole input and not over its projection, whose matrix is public: who knows
it can craft inputs that project alike. Not covered: who has found two short inputs with equal digests (at one chance in 2**32 a try) can make more of them, since theirs are linear.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from garrison.crypto.keyed_hash import KeyedHash
from garrison.guard.row_hash import pieces
from garrison.types import Array, InputFacts, ModelFacts

SECRET_BYTES = 32
DIGEST_BYTES = 4
LONG = 2**15
"""From so many bytes a row on, a row by itself takes less time than its share of a pass over many, whether or not the caches hold it. Kept digests hang on it: another value takes another `dump.VERSION`."""
_WORD = 4
_BLOCK, _BLOCK_WORDS = 32, 2**18
"""Short rows at once: so many, or as many as have so many words in all, which stay in the processor's caches; at least one."""
DigestArray = npt.NDArray[np.uint32]
_Digests = Callable[[Mapping[str, Array]], DigestArray]


class Hasher:
    """Digests of rows. For one thread at a time: rows are copied into arrays of its own.

    Args:
        facts: of the model.
        secret: `SECRET_BYTES` random bytes.
    """

    def __init__(self, facts: ModelFacts, secret: bytes) -> None:
        size = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in facts.inputs)
        self._digests: _Digests = (_OfLongRows if size >= LONG else _OfShortRows)(facts, secret)

    def __call__(self, inputs: Mapping[str, Array]) -> DigestArray:
        """Digests of all rows, shape (rows,), none of them 0. -0.0 counts as 0.0, and every NaN as every other."""
        return np.maximum(self._digests(inputs), np.uint32(1))


class _OfLongRows:
    def __init__(self, facts: ModelFacts, secret: bytes) -> None:
        self._hash = KeyedHash(secret, DIGEST_BYTES)
        self._names = [spec.name for spec in facts.inputs]
        self._missing = any(spec.may_be_missing.any() for spec in facts.inputs)

    def __call__(self, inputs: Mapping[str, Array]) -> DigestArray:
        rows = range(len(inputs[self._names[0]]))
        found = [self._hash.digest(pieces(inputs, self._names, row, missing=self._missing)) for row in rows]
        return np.frombuffer(b"".join(found), "<u4").astype(np.uint32)


class _OfShortRows:
    def __init__(self, facts: ModelFacts, secret: bytes) -> None:
        sizes = [math.ceil(math.prod(spec.shape) * spec.dtype.itemsize / _WORD) for spec in facts.inputs]
        stream = hashlib.shake_256(b"garrison-watch" + secret).digest(8 * (sum(sizes) + 1))
        start, *rest = np.frombuffer(stream, "<u8").astype(np.uint64)
        self._start = start
        ends = np.cumsum(sizes)
        self._inputs = [
            _Sum(spec, np.array(rest[end - size : end]))
            for spec, size, end in zip(facts.inputs, sizes, ends, strict=True)
        ]

    def __call__(self, inputs: Mapping[str, Array]) -> DigestArray:
        rows = len(next(iter(inputs.values())))
        total = np.full(rows, self._start)
        for one in self._inputs:
            x = inputs[one.name]
            for start in range(0, rows, one.block):
                total[start : start + one.block] += one(x[start : start + one.block])
        return (total >> np.uint64(32)).astype(np.uint32)


class _Sum:
    """What one input adds to a digest. Its arrays are used again and again: to ask the system for memory takes longer than to multiply."""

    def __init__(self, spec: InputFacts, factors: npt.NDArray[np.uint64]) -> None:
        self.name = spec.name
        self._canonical = _Canonical(spec)
        self._factors = factors
        features, size = math.prod(spec.shape), spec.dtype.itemsize
        self.block = max(1, min(_BLOCK, _BLOCK_WORDS // len(factors)))
        raw = np.zeros((self.block, _WORD * len(factors)), np.uint8)  # filled up with zeros to whole words
        self._words = raw.view(np.uint32)
        self._rows = raw[:, : features * size].view(spec.dtype)

    def __call__(self, x: Array) -> npt.NDArray[np.uint64]:
        count = len(x)
        self._canonical(x.reshape(count, -1), self._rows[:count])
        found: npt.NDArray[np.uint64] = np.einsum("ij,j->i", self._words[:count], self._factors, dtype=np.uint64)
        return found  # faster than matmul on whole numbers, and than to widen the words first


class _Canonical:
    """Copies numbers of one input, -0.0 as 0.0 and every NaN alike."""

    def __init__(self, spec: InputFacts) -> None:
        self._real = spec.dtype.kind == "f"
        self._missing = bool(spec.may_be_missing.any())
        self._zero = spec.dtype.type(0)

    def __call__(self, x: Array, out: Array) -> None:
        if not self._real:
            out[...] = x
            return
        np.add(x, self._zero, out=out)  # -0.0 + 0.0 is 0.0
        if self._missing:
            out[np.isnan(out)] = np.nan
