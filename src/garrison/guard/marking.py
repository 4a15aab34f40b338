"""Which inputs carry a watermark: a rule that follows from the owner's key, and alike for inputs that are nearly the same.

    q(x)   = round(levels (x - low) / (high - low)) of some features, chosen by the key
    c(x)   = floor((q(x) S + t) / width), with keyed signs S and shifts t       (the cell of x: a few whole numbers)
    number = BLAKE2s(key, c(x))                                                 (RFC 7693)

A share of all cells is marked, and the same digest says which wrong class a marked cell gets. Projections by random signs keep distances
(Achlioptas 2003), so a small change mostly stays within the cell, and a thief who asks an image again with a bit of noise gets the same answer.

Invariants: the number of a row depends on that row and the key alone. Everything is computed in whole numbers that single precision
holds exactly, so that no batch and no machine rounds a row into another cell.

Not covered: a change that is large enough leaves the cell; inputs of one cell are marked all or none.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from garrison.errors import GuardError
from garrison.guard.base import WhichRows
from garrison.guard.keyed import KEY_BYTES, table_generator
from garrison.types import Array, FloatArray, InputFacts, ModelFacts

LABEL = "watermark"
MOST_FEATURES = 128
"""So many features of a row are looked at."""
NUMBERS = 8
"""Whole numbers that name a cell."""
CELL, CELL_OF_A_TABLE = 0.2, 0.02
"""Widths for rows of at least `MOST_FEATURES` features and for shorter ones, whose values lie closer together."""
_LEVELS = 255
_DIGEST_BYTES = 16
_WHOLE = np.dtype("<i2")
_CELL_BYTES = _WHOLE.itemsize * NUMBERS

Numbers = npt.NDArray[np.int64]


class Marker:
    """Gives every input its number: 0 for none, else by how many classes the answer is moved on, 1 to K - 1.

    Args:
        key: the owner's misinformation key, 32 bytes.
        facts: of the model; its ranges make the features comparable.
        share: of all cells that are marked, in (0, 1).
        cell: width of a cell as a share of the features' ranges, root mean square; None for one by the number of features.
    """

    def __init__(self, key: bytes, facts: ModelFacts, share: float, cell: float | None = None) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the misinformation key must have {KEY_BYTES} bytes, found {len(key)}")
        self._moves = facts.outputs - 1
        self._limit = min(int(share * 2.0**64), 2**64 - 1).to_bytes(8, "big")
        prf = hashlib.blake2b(LABEL.encode(), key=key, digest_size=32, person=b"garrison-marks").digest()
        # Key and cell fill one block: half the time of the keyed mode, which gives the key a block of its own.
        self._keyed = hashlib.blake2s(prf, digest_size=_DIGEST_BYTES)
        rng = table_generator(key, LABEL)
        sizes = [math.prod(spec.shape) for spec in facts.inputs]
        chosen = np.sort(rng.choice(sum(sizes), min(MOST_FEATURES, sum(sizes)), replace=False))
        starts = np.cumsum([0, *sizes])
        parts = [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(starts.tolist())]
        self._parts = [_Part(spec, part) for spec, part in zip(facts.inputs, parts, strict=True) if len(part)]
        self._signs = rng.choice(np.array([-1.0, 1.0], np.float32), (len(chosen), NUMBERS))
        wide = CELL if len(chosen) == MOST_FEATURES else CELL_OF_A_TABLE
        width = max(1.0, (wide if cell is None else cell) * _LEVELS * math.sqrt(len(chosen)))
        # Halves: no whole number lies on a border then.
        self._shift = (np.floor(rng.random(NUMBERS) * width) + 0.5).astype(np.float32)
        self._scale = np.float32(1.0 / width)

    def __call__(self, inputs: Mapping[str, Array], rows: WhichRows = slice(None)) -> Numbers:
        """Numbers, shape (rows,). The values must be finite, but where they may be missing."""
        cells = self._cells(inputs, rows).astype(_WHOLE)
        raw, keyed, limit = cells.tobytes(), self._keyed, self._limit
        found = np.zeros(len(cells), dtype=np.int64)
        for start in range(0, len(raw), _CELL_BYTES):
            digest = keyed.copy()
            digest.update(raw[start : start + _CELL_BYTES])
            word = digest.digest()
            if word < limit:  # the first bytes decide
                found[start // _CELL_BYTES] = 1 + int.from_bytes(word[8:], "big") % self._moves
        return found

    def first_of_each_cell(self, inputs: Mapping[str, Array]) -> npt.NDArray[np.intp]:
        """Numbers of the rows, rising, without those whose cell an earlier row has: what a test may count once."""
        _, first = np.unique(self._cells(inputs, slice(None)), axis=0, return_index=True)
        return np.sort(first)

    def _cells(self, inputs: Mapping[str, Array], rows: WhichRows) -> FloatArray:
        """Shape (rows, NUMBERS), whole numbers."""
        levels = [part.levels(inputs[part.name], rows) for part in self._parts]
        q = levels[0] if len(levels) == 1 else np.concatenate(levels, axis=1)
        cells = q @ self._signs
        cells += self._shift
        cells *= self._scale
        found: FloatArray = np.floor(cells, out=cells)
        return found


class _Part:
    """The features that are looked at of one input."""

    def __init__(self, spec: InputFacts, features: npt.NDArray[np.intp]) -> None:
        size = math.prod(spec.shape)
        low, high = (np.broadcast_to(b.reshape(-1) if b.size > 1 else b, size)[features] for b in (spec.low, spec.high))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            scale = _LEVELS / (high.astype(np.float64) - low.astype(np.float64))
        if not np.isfinite(low.astype(np.float64)).all():
            raise GuardError(f"watermark: the range of {spec.name!r} has no lower end; give it one at sealing")
        self.name, self._size, self._features = spec.name, size, features
        self._low = low.astype(np.float32) if low.any() else None
        self._scale = np.where(np.isfinite(scale), scale, 0.0).astype(np.float32)
        self._may_be_missing = bool(spec.may_be_missing.any())

    def levels(self, x: Array, rows: WhichRows) -> FloatArray:
        """Whole numbers of 0 to `_LEVELS`, shape (rows, features)."""
        found: FloatArray = x[rows].reshape(-1, self._size)[:, self._features].astype(np.float32, copy=False)
        if self._low is not None:
            found -= self._low
        found *= self._scale
        np.rint(found, out=found)
        if self._may_be_missing:
            found[found != found] = -_LEVELS  # NaN is not itself
        return found
