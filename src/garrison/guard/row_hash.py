"""Keyed digests of single rows, over their canonical bytes: -0.0 is 0.0, and every NaN is every other.

Which of two ways they are made depends on the size of the row alone, so it is the same for all rows of a model:

    short rows    BLAKE2b (RFC 7693), keyed, over all inputs one after the other
    long rows     `garrison.crypto.keyed_hash`, one part an input: ten times faster at 600 KB, and as fast whether or not there is a -0.0

Either is a pseudorandom function of the row, so that a digest may be seen, and may choose what is answered: also the second ends in keyed BLAKE2b, of messages that differ where rows do (two given
rows of 600 KB have equal ones with a probability of 2**-112).

Whoever keeps such digests, or what hangs on them, finds nothing again where `LONG`, the order of inputs or the way they are cut has changed. That holds for `repeat-watch` (another version of its state then), for `watch` (`pieces`; another
`garrison.guard.watching.dump.VERSION`), and for the noise of `garrison.guard.keyed`: an input would get another misinformed answer than before.
"""

from __future__ import annotations

import functools
import hashlib
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from garrison.crypto.keyed_hash import KEY_BYTES, KeyedHash
from garrison.types import Array

LONG = 2**15
"""A row is long where one of its inputs has so many bytes: from there on the second way takes less time, whether or not the caches hold the row."""
_SIGNS = {np.dtype(f"f{size}").char: slice(size - 1 if sys.byteorder == "little" else 0, None, size) for size in (4, 8)}
"""Where the bytes with the sign stand, of single and double precision."""
_HALF = np.dtype("f2").char


class RowHash:
    """Digests under one key.

    Args:
        key: `KEY_BYTES` bytes, random or derived for this use alone.
        size: bytes of a digest, 1 to 64.
        person: what it is for, at most 16 bytes.
    """

    def __init__(self, key: bytes, size: int, person: bytes = b"") -> None:
        if len(key) != KEY_BYTES:  # else only the first long row would tell
            raise ValueError(f"the key of a hash must have {KEY_BYTES} bytes, found {len(key)}")
        self._short = hashlib.blake2b(key=key, digest_size=size, person=person)
        self._key, self._size = key, size

    @functools.cached_property
    def _long(self) -> KeyedHash:
        return KeyedHash(self._key, self._size)

    def one(self, inputs: Mapping[str, Array], names: Sequence[str], row: int, about: bytes = b"") -> bytes:
        """The digest of one row. As little Python as there can be for a short one, since none of it is in the processor's caches.

        Args:
            inputs: each of shape (rows, ...).
            names: of all inputs, in an order that is always the same.
            about: what the digest is of beside the row; no such bytes may be the beginning of others.
        """
        digest = self._short.copy()
        if about:
            digest.update(about)
        for name in names:
            part = inputs[name][row : row + 1]
            if part.nbytes >= LONG:
                return self._long.digest([about, *pieces(inputs, names, row)])
            digest.update(canonical(part))
        return digest.digest()

    def many(
        self, inputs: Mapping[str, Array], names: Sequence[str], rows: slice | npt.NDArray[np.intp]
    ) -> list[bytes]:
        """`one` for each of the given rows."""
        if any(inputs[name].nbytes >= LONG * len(inputs[name]) for name in names):
            count = len(inputs[names[0]])
            return [self.one(inputs, names, row) for row in np.arange(count)[rows].tolist()]
        columns = []
        for name in names:
            column = inputs[name][rows]
            columns.append((memoryview(canonical(column)), column.itemsize * math.prod(column.shape[1:])))
        found = []
        for row in range(len(column)):
            digest = self._short.copy()
            for data, size in columns:
                digest.update(data[row * size : row * size + size])
            found.append(digest.digest())
        return found


def pieces(inputs: Mapping[str, Array], names: Sequence[str], row: int, *, missing: bool = True) -> list[memoryview]:
    """The canonical bytes of a long row, one piece a tensor.

    Args:
        missing: whether there may be NaN among the numbers.
    """
    return [_piece(inputs[name][row : row + 1], missing=missing) for name in names]


def _piece(x: Array, *, missing: bool) -> memoryview:
    if x.dtype.kind == "f":
        x = x + x.dtype.type(0)  # -0.0 + 0.0 is 0.0
        if missing and np.isnan(x.min()):
            x[np.isnan(x)] = np.nan
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data


def canonical(x: Array) -> bytes:
    """The bytes of a few numbers, -0.0 as 0.0 and every NaN alike.

    Nearly always they are canonical as they are. To look for the first bytes of -0.0 and of NaN, which no other number has but huge and tiny ones,
    takes a microsecond, where numpy's arithmetic takes many once its code has left the caches.
    """
    raw, kind = x.tobytes(), x.dtype.char
    signs = _SIGNS.get(kind)
    if signs is not None:
        first = raw[signs]
        if 0x80 not in first and 0x7F not in first and 0xFF not in first:
            return raw
    elif kind != _HALF:
        return raw
    changed: Array = x + x.dtype.type(0)  # -0.0 + 0.0 is 0.0
    changed[np.isnan(changed)] = np.nan
    return changed.tobytes()
