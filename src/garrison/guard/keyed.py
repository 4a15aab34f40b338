"""Keyed noise: the same input gets the same noise, and nobody without the key can tell which.

At start a table of noise is drawn from the owner's key. An input gets `PICKS` rows of that table and a number in [0, 1), all
chosen by a pseudorandom function over the input's canonical bytes, all inputs in name order (`garrison.guard.row_hash`; it ends in
keyed BLAKE2b for long rows, too). So misinformation is a function of the input alone: it survives a restart, does not depend on the
batch, and repeated queries average nothing away.

Not covered: two inputs share a row of the table now and then (one pair in `TABLE_ROWS` shares its first), and whoever shows rows as they
are shows that; an input changed by one bit gets other noise.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import numpy as np

from garrison.guard.base import Noise, WhichRows
from garrison.guard.row_hash import RowHash
from garrison.types import Array, FloatArray

TABLE_ROWS = 4096
PICKS = 4
KEY_BYTES = 32
_DIGEST_BYTES = 2 * PICKS + 8
_UNPACK = struct.Struct(f"<{PICKS}HQ").unpack
"""Two bytes name a row each, the last eight are the number."""


def table_generator(key: bytes, label: str) -> np.random.Generator:
    """A generator whose stream depends on the key and on what it is for."""
    seed = hashlib.blake2b(label.encode(), key=key, digest_size=32, person=b"garrison-table").digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))


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
        self._hash = RowHash(prf_key, _DIGEST_BYTES)
        self._table = draw(table_generator(key, label), TABLE_ROWS)

    def __call__(self, inputs: dict[str, Array], rows: WhichRows) -> list[Noise]:
        """Noise for each of the given rows."""
        return [self._noise(digest) for digest in self._hash.many(inputs, sorted(inputs), rows)]

    def noise(self, inputs: dict[str, Array], row: int) -> Noise:
        """Noise for one row."""
        return self._noise(self._hash.one(inputs, sorted(inputs), row))

    def _noise(self, digest: bytes) -> Noise:
        a, b, c, d, fraction = _UNPACK(digest)
        return Noise(self._table, (a % TABLE_ROWS, b % TABLE_ROWS, c % TABLE_ROWS, d % TABLE_ROWS), fraction * 2.0**-64)
