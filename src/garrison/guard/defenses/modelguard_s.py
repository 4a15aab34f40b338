"""ModelGuard-S (Tang et al., USENIX Security 2024): answers quantised to a codebook, so that no restorer finds what is not in them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import Rows
from garrison.guard.perturbing import LEAD, Perturbing
from garrison.types import FloatArray, ModelFacts

MOST_NUMBERS = 16_384
"""In a codebook: it is compared with every answer, and stands in the manifest."""
_ELSEWHERE = 4.0
"""In place of the distance of codes of another first class; no two probability vectors are farther apart than 2."""


def nearest(xp: Any, p: Any, codes: FloatArray) -> Any:
    """For each row the nearest code in L1 among those with the same first class, shape (rows, classes)."""
    book = xp.astype(xp.asarray(codes), p.dtype)
    first = xp.argmax(p, axis=1, keepdims=True) == xp.asarray(codes.argmax(axis=1)[np.newaxis])
    apart = xp.sum(xp.abs(xp.expand_dims(p, axis=1) - xp.expand_dims(book, axis=0)), axis=2)
    return xp.take(book, xp.argmin(xp.where(first, apart, _ELSEWHERE), axis=1), axis=0)


class ModelguardS(Perturbing, frozen=True, kw_only=True):
    """Serve the nearest code of the same first class: against thieves who know the defense and restore what they can.

    What an answer tells beyond its first class is at most the logarithm of that class's number of codes, whoever restores it. The paper builds its
    codebook as queries come in; here it is calibrated once, at sealing, from held-out honest answers, so that the answer depends on the input
    alone and nothing is remembered. An answer farther than epsilon from every code is moved towards the nearest by epsilon, and that one does tell
    more: the share of such rows is printed on the page.

    Does not stop: whoever reads the first class alone.

    Attributes:
        codes: probability vectors, at least one for each first class; calibrated (`garrison.hardening.codebook`).
    """

    name: ClassVar[str] = "modelguard-s"

    codes: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.codes or len({len(code) for code in self.codes}) != 1:
            raise ValueError("modelguard-s.codes must be vectors of one length")
        if sum(len(code) for code in self.codes) > MOST_NUMBERS:
            raise ValueError(f"modelguard-s.codes may hold at most {MOST_NUMBERS} numbers")
        book = np.array(self.codes)
        if not (book >= 0).all() or (np.abs(book.sum(axis=1) - 1) > 1e-4).any():
            raise ValueError("modelguard-s.codes must be probabilities that sum to 1")
        best = np.sort(book, axis=1)[:, -2:]
        if book.shape[1] < 2 or (best[:, 1] - best[:, 0] < LEAD - 1e-6).any():
            raise ValueError(f"modelguard-s.codes: the first class must stand {LEAD} before the second")

    def check(self, facts: ModelFacts) -> None:
        super().check(facts)
        book = np.array(self.codes)
        if book.shape[1] != facts.outputs:
            raise GuardError(f"{self.name}.codes have {book.shape[1]} classes, the model {facts.outputs}")
        missing = sorted(set(range(facts.outputs)) - set(book.argmax(axis=1).tolist()))
        if missing:
            raise GuardError(f"{self.name}.codes: none has class {missing[0]} first; calibrate them again")

    @property
    def bits(self) -> float:
        """The most that an answer within epsilon of a code tells beyond its first class."""
        return math.log2(np.bincount(np.array(self.codes).argmax(axis=1)).max())

    def target(self, xp: Any, rows: Rows) -> Any:
        return nearest(xp, rows.answer, np.array(self.codes, np.float32))
