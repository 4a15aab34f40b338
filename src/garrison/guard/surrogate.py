"""The clone that two defenses imagine: a small random network, whose gradients are known in closed form.

Prediction poisoning (MAD) and gradient redirection (GRAD2) bend answers so that the *gradient* of a clone that is trained on them turns. They need
G, one row a class: the gradient of log F_k(x) with respect to the clone's parameters. Here F has one hidden layer,

    h = relu(U r),   z = V h,   p = softmax(z),   r the signal `projection` of x, scaled to length 1,

with U and V drawn from a seed (and biases of 0). With D = [U r > 0], and J the gradient of z,

    G = (I - 1 p^T) J,    J J^T = (|h|^2 + 1) I + (|r|^2 + 1) V D V^T,

so no gradient is computed for an answer and none is kept: four small matrix products do. For q that sums to 1, G^T q = J^T (q - p).

Lost against the papers: they take a network of the clone's own kind, MAD one at its start (it found those best), GRAD2 one that was trained for some
epochs on answers. The wider a network at its start, the nearer J J^T is to a multiple of I (Jacot et al., NeurIPS 2018), whatever lies below;
so MAD loses little. GRAD2's trained surrogate knows which directions a clone will use, and this one does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from garrison.types import FloatArray

HIDDEN = 64
MOST_SEED = 2**63 - 1
_LARGEST = 1e15


@lru_cache(maxsize=16)
def weights(width: int, classes: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """U of shape (width, HIDDEN) and V of shape (HIDDEN, classes), normal, scaled so that h has about length sqrt(HIDDEN / 2) and z about 1/2."""
    rng = np.random.Generator(np.random.PCG64([seed, width, classes]))
    first, second = rng.normal(size=(width, HIDDEN)), rng.normal(size=(HIDDEN, classes)) / math.sqrt(HIDDEN)
    return first.astype(np.float32), second.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Gradients:
    """What is needed of the surrogate's gradients, for some rows. Arrays are numpy's or traced.

    Attributes:
        p: the surrogate's own answer, shape (rows, classes).
        active: D, shape (rows, HIDDEN), 0 or 1.
        own: |h|^2 + 1, shape (rows, 1).
        below: |r|^2 + 1: 2, but for inputs of which nothing is seen.
        total: the sum of r, and 1 for the bias, shape (rows, 1).
        out: V, shape (HIDDEN, classes).
    """

    p: Any
    active: Any
    own: Any
    below: Any
    total: Any
    out: Any

    def gram(self, xp: Any, u: Any) -> Any:
        """J J^T u, shape of u: (rows, classes)."""
        hidden = self.active * _times(xp, u, xp.permute_dims(self.out, (1, 0)))
        return self.own * u + self.below * _times(xp, hidden, self.out)

    def diagonal(self, xp: Any) -> Any:
        """The diagonal of J J^T, shape (rows, classes)."""
        return self.own + self.below * _times(xp, self.active, self.out * self.out)

    def all_ones(self, xp: Any) -> Any:
        """G 1, up to a number that all classes share: the sum of each class's gradient; shape (rows, classes)."""
        return self.total * _times(xp, self.active, self.out)


def _times(xp: Any, a: Any, b: Any) -> Any:
    """The matrix product. By `tensordot`, since a tracer needs a fifth of a second for a `matmul`, and then does not know its width."""
    return xp.tensordot(a, b, axes=1)


def gradients(xp: Any, projection: Any, classes: int, seed: int, dtype: Any) -> Gradients:
    """The surrogate's gradients for rows with these projections.

    Args:
        projection: shape (rows, width).
        dtype: of the answers, in which all is computed.
    """
    first, second = weights(projection.shape[1], classes, seed)
    out = xp.astype(xp.asarray(second), dtype)
    r = xp.where(xp.abs(projection) < _LARGEST, projection, 0.0)  # not NaN, not infinite, and the square is neither
    square = xp.sum(r * r, axis=1, keepdims=True)
    r = xp.astype(r / xp.sqrt(xp.where(square > 0.0, square, 1.0)), dtype)
    before = _times(xp, r, xp.astype(xp.asarray(first), dtype))
    active = xp.astype(before > 0.0, dtype)
    h = before * active
    z = _times(xp, h, out)
    e = xp.exp(z - xp.max(z, axis=1, keepdims=True))
    return Gradients(
        p=e / xp.sum(e, axis=1, keepdims=True),
        active=active,
        own=xp.sum(h * h, axis=1, keepdims=True) + 1.0,
        below=xp.sum(r * r, axis=1, keepdims=True) + 1.0,
        total=xp.sum(r, axis=1, keepdims=True) + 1.0,
        out=out,
    )
