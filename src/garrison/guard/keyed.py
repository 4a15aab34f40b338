"""Keyed noise: the same input gets the same noise, and nobody without the key can tell which.

At start a table of noise is drawn from the owner's key. An input gets `PICKS` rows of that table and a number in [0, 1), all
chosen by a pseudo-random function over the input's canonical bytes, all inputs in name order, -0.0 as 0.0 and every NaN alike (keyed BLAKE2b, RFC 7693). So
misinformation is a function of the input alone: it survives a restart, does not depend on the batch, and repeated queries
average nothing away.

Not covered: two inputs share a row of the table now and then (one pair in `TABLE_ROWS` shares its first), and whoever shows rows as they
are shows that; an input changed by one bit gets other noise.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys
from collections.abc import Callable

import numpy as np

from garrison.guard.base import Noise, WhichRows
from garrison.types import Array, FloatArray

TABLE_ROWS = 4096
PICKS = 4
KEY_BYTES = 32
_DIGEST_BYTES = 2 * PICKS + 8
_UNPACK = struct.Struct(f"<{PICKS}HQ").unpack
"""Two bytes name a row each, the last eight are the number."""
_SIGN_LAST = int(sys.byteorder == "little")
"""Where the byte with the sign stands: last in memory, or first."""


def table_generator(key: bytes, label: str) -> np.random.Generator:
    """A generator whose stream depends on the key and on what it is for."""
    seed = hashlib.blake2b(label.encode(), key=key, digest_size=32, person=b"garrison-table").digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))


def canonical(x: Array) -> bytes:
    """The bytes of some numbers, -0.0 as 0.0 and every NaN alike.

    Nearly always they are canonical as they are. To look for the first bytes of -0.0 and of NaN, which no other number has but huge and tiny ones,
    takes a microsecond, where numpy's arithmetic takes many once its code has left the caches.
    """
    raw, number = x.tobytes(), x.dtype
    if number.kind != "f":
        return raw
    first = raw[_SIGN_LAST * (number.itemsize - 1) :: number.itemsize]
    if number.char != "e" and 0x80 not in first and 0x7F not in first and 0xFF not in first:
        return raw
    changed: Array = x + number.type(0)  # -0.0 + 0.0 is 0.0
    changed[np.isnan(changed)] = np.nan
    return changed.tobytes()


class KeyedTable:
    """Noise by input, from a table drawn once.

    Args:
        key: the owner's misinformation key, 32 bytes.
        label: what the noise is for; another label gives an unrelated table.
        draw: makes the table: (generator, rows) -> (rows, n).
    """

    def __init__(
        self,
        key: bytes,
        label: str,
        draw: Callable[[np.random.Generator, int], FloatArray],
    ) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the misinformation key must have {KEY_BYTES} bytes, found {len(key)}")
        prf_key = hashlib.blake2b(label.encode(), key=key, digest_size=32, person=b"garrison-prf").digest()
        self._keyed = hashlib.blake2b(key=prf_key, digest_size=_DIGEST_BYTES)
        self._table = draw(table_generator(key, label), TABLE_ROWS)

    def __call__(self, inputs: dict[str, Array], rows: WhichRows) -> list[Noise]:
        """Noise for each of the given rows."""
        columns = []
        for name in sorted(inputs):
            column = inputs[name][rows]
            columns.append((memoryview(canonical(column)), column.itemsize * math.prod(column.shape[1:])))
        found = []
        for row in range(len(column)):
            digest = self._keyed.copy()
            for data, size in columns:
                digest.update(data[row * size : row * size + size])
            found.append(self._noise(digest.digest()))
        return found

    def noise(self, inputs: dict[str, Array], row: int) -> Noise:
        """Noise for one row. As little Python as there can be, since none of it is in the processor's caches."""
        digest = self._keyed.copy()
        for name in sorted(inputs):
            digest.update(canonical(inputs[name][row : row + 1]))
        return self._noise(digest.digest())

    def _noise(self, digest: bytes) -> Noise:
        a, b, c, d, fraction = _UNPACK(digest)
        return Noise(self._table, (a % TABLE_ROWS, b % TABLE_ROWS, c % TABLE_ROWS, d % TABLE_ROWS), fraction * 2.0**-64)
