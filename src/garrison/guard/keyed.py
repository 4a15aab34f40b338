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
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from garrison.guard.base import Noise
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


def _canonical(x: Array) -> Array:
    if x.dtype.kind != "f":
        return x
    canonical: Array = x + x.dtype.type(0)  # -0.0 + 0.0 is 0.0
    unknown = np.isnan(canonical)
    if np.count_nonzero(unknown):
        canonical[unknown] = np.nan
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
        prf_key = hashlib.blake2b(label.encode(), key=key, digest_size=32, person=b"garrison-prf").digest()
        self._keyed = hashlib.blake2b(key=prf_key, digest_size=_DIGEST_BYTES)
        self._table = draw(table_generator(key, label), TABLE_ROWS)

    def __call__(self, inputs: dict[str, Array], rows: npt.NDArray[np.intp]) -> Noise:
        """Noise for the given rows."""
        columns = [inputs[name] for name in sorted(inputs)]
        # Whole numbers of Python: mostly it is one row, for which numpy's calls would take longer than the hash.
        drawn = [_UNPACK(self._digest(columns, row)) for row in rows.tolist()]
        picks = [[number % TABLE_ROWS for number in numbers[:PICKS]] for numbers in drawn]
        uniform = np.array([numbers[PICKS] * 2.0**-64 for numbers in drawn], dtype=np.float32)
        return Noise(self._table[picks], uniform)

    def _digest(self, columns: list[Array], row: int) -> bytes:
        digest = self._keyed.copy()
        for column in columns:
            digest.update(_canonical(column[row]).data)
        return digest.digest()
