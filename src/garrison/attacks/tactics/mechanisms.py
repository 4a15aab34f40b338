"""Defenses as a thief who has read about them imagines them: from clean probabilities to bent ones, with a key that is guessed.

Kerckhoffs: the mechanism is public, its key and its calibrated values are not, so the thief draws them at random.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from garrison.types import FloatArray

Mechanism = Literal["misinformation", "poisoning", "quantised", "reverse-sigmoid", "rounding"]
Bend = Callable[[FloatArray, np.random.Generator], FloatArray]
_SMALL = 1e-9
_FLATTEST, _SHARPEST = 2.0, 0.02


def imagined_answers(rng: np.random.Generator, rows: int, classes: int) -> FloatArray:
    """Clean probability vectors as models give them: Dirichlet draws from flat to nearly sure; shape (rows, classes)."""
    concentration = np.exp(rng.uniform(np.log(_SHARPEST), np.log(_FLATTEST), (rows, 1)))
    drawn = rng.standard_gamma(np.broadcast_to(concentration, (rows, classes))) + _SMALL
    found: FloatArray = drawn / drawn.sum(axis=1, keepdims=True)
    return found


def bent(p: FloatArray, mechanism: Mechanism, rng: np.random.Generator) -> FloatArray:
    """The probabilities as the imagined defense would answer them; shape (rows, classes)."""
    raw = _MECHANISMS[mechanism](p, rng).clip(min=0.0) + _SMALL
    found: FloatArray = raw / raw.sum(axis=1, keepdims=True)
    return found


def _misinformation(p: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Kariyappa and Qureshi (CVPR 2020) with a hard switch: where the first probability is below an unknown tau, another vector whose
    first class is another."""
    tau = rng.uniform(0.3, 0.95, len(p))
    other = imagined_answers(rng, len(p), p.shape[1])
    rows, first = np.arange(len(p)), p.argmax(axis=1)
    # A wrong first class: the other vector is turned round until it differs.
    turn = (other.argmax(axis=1) - first) % p.shape[1]
    shift = np.where(turn == 0, rng.integers(1, max(2, p.shape[1]), len(p)), 0)
    columns = (np.arange(p.shape[1]) + shift[:, np.newaxis]) % p.shape[1]
    other = other[rows[:, np.newaxis], columns]
    return np.where((p.max(axis=1) < tau)[:, np.newaxis], other, p)


def _reverse_sigmoid(p: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Lee et al., "Defending Against Neural Network Model Stealing Attacks Using Deceptive Perturbations" (2019), equation 4."""
    beta, gamma = rng.uniform(0.2, 0.9, (len(p), 1)), rng.uniform(0.1, 1.0, (len(p), 1))
    q = p.clip(_SMALL, 1 - _SMALL)
    found: FloatArray = p - beta * (1.0 / (1.0 + (q / (1 - q)) ** -gamma) - 0.5)
    return found


def _poisoning(p: FloatArray, rng: np.random.Generator) -> FloatArray:
    """What prediction poisoning (Orekondy et al., ICLR 2020), gradient redirection (Mazeika et al., ICML 2022) and ModelGuard-W come to where they
    keep the first class: it gives to another one, drawn here, as much as an unknown budget and its own first place allow."""
    rows = np.arange(len(p))
    first, other = p.argmax(axis=1), rng.integers(0, p.shape[1], len(p))
    rest = p.copy()
    rest[rows, first] = rest[rows, other] = -1.0
    top = p[rows, first]
    room = np.minimum(0.495 * (top - p[rows, other]), 0.99 * (top - rest.max(axis=1)))  # just not a tie
    given = np.minimum(rng.uniform(0.05, 0.75, len(p)), room)
    found = p.copy()
    found[rows, first] -= given
    found[rows, other] += given
    return found


def _quantised(p: FloatArray, rng: np.random.Generator) -> FloatArray:
    """What ModelGuard-S (Tang et al., USENIX Security 2024) comes to: one of a few vectors of the same first class, with a codebook that is
    guessed."""
    levels = np.sort(rng.uniform(0.0, 1.0, 3))
    first = p.argmax(axis=1)
    others = (1.0 - p.max(axis=1)) * p.shape[1] / (p.shape[1] - 1)  # 0 of one that is sure, 1 of one that is even
    nearest = levels[np.abs(others[:, np.newaxis] - levels).argmin(axis=1)][:, np.newaxis]
    found: FloatArray = nearest / p.shape[1] + (1.0 - nearest) * np.eye(p.shape[1])[first]
    return found


def _rounding(p: FloatArray, rng: np.random.Generator) -> FloatArray:
    decimals = rng.integers(1, 4, (len(p), 1))
    found: FloatArray = np.round(p * 10.0**decimals) / 10.0**decimals
    return found


_MECHANISMS: dict[Mechanism, Bend] = {
    "misinformation": _misinformation,
    "poisoning": _poisoning,
    "quantised": _quantised,
    "reverse-sigmoid": _reverse_sigmoid,
    "rounding": _rounding,
}
