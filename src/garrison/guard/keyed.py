"""Keyed noise: the same input gets the same noise, and nobody without the key can tell which.

At start a table of noise is drawn from the owner's key. An input's row of that table is chosen by a pseudo-random function
over the input's canonical bytes (keyed BLAKE2b, RFC 7693). So misinformation is a function of the input alone: it survives a
restart, does not depend on the batch, and repeated queries average nothing away.

Not covered: two inputs that share a row of the table (one in `TABLE_ROWS`) share their noise; an input changed by one bit
gets other noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from garrison.types import Array, FloatArray

TABLE_ROWS = 4096
KEY_BYTES = 32


def table_generator(key: bytes, label: str) -> np.random.Generator:
    """A generator whose stream depends on the key and on what it is for."""
    seed = hashlib.blake2b(label.encode(), key=key, digest_size=32, person=b"garrison-table").digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(seed, "little")))


def canonical_rows(inputs: dict[str, Array], rows: npt.NDArray[np.intp]) -> list[bytes]:
    """The bytes that stand for each row: all inputs in name order, -0.0 as 0.0 and every NaN alike."""
    parts = [_canonical(inputs[name][rows]) for name in sorted(inputs)]
    return [b"".join(part[i].tobytes() for part in parts) for i in range(len(rows))]


def _canonical(x: Array) -> Array:
    if x.dtype.kind != "f":
        return x
    positive = x + x.dtype.type(0)  # -0.0 + 0.0 is 0.0
    canonical: Array = np.where(np.isnan(positive), x.dtype.type(np.nan), positive)
    return canonical


class KeyedTable:
    """Noise by input, from a table drawn once.

    Args:
        key: the owner's misinformation key, 32 bytes.
        label: what the noise is for; another label gives an unrelated table.
        draw: makes the table: (generator, rows) -> (rows, n).
    """

    def __init__(self, key: bytes, label: str, draw: Callable[[np.random.Generator, int], FloatArray]) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the misinformation key must have {KEY_BYTES} bytes, found {len(key)}")
        self._prf_key = hashlib.blake2b(label.encode(), key=key, digest_size=32, person=b"garrison-prf").digest()
        self._table = draw(table_generator(key, label), TABLE_ROWS)

    def __call__(self, inputs: dict[str, Array], rows: npt.NDArray[np.intp]) -> FloatArray:
        """Noise for the given rows, shape (len(rows), n)."""
        index = [self._index(row) for row in canonical_rows(inputs, rows)]
        noise: FloatArray = self._table[index]
        return noise

    def _index(self, row: bytes) -> int:
        digest = hashlib.blake2b(row, key=self._prf_key, digest_size=8).digest()
        return int.from_bytes(digest, "little") % TABLE_ROWS
