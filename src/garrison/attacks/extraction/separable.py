"""Least squares for a model that is linear in its last layer: z(x) = sum_r k(x, c_r) a_r + b, with unknown centres c_r.

For given centres the weights a and b are one least squares, so only the centres are searched: variable projection (Golub and
Pereyra 1973) with Kaufman's gradient (1975) and the damping of Levenberg and Marquardt. Where answers are exact and as many centres
are searched as the model has, the descent ends at rounding.

Invariants: no randomness; the loss never rises from step to step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from garrison.attacks.extraction.damped import damped_step
from garrison.types import FloatArray

Kernel = Literal["rbf", "poly"]

Columns = Callable[[FloatArray, FloatArray, float], tuple[FloatArray, FloatArray, FloatArray]]
"""(rows, centres, gamma) -> k(x, c) (n, h), its derivative by the centre (n, h, d), its derivative by log gamma (n, h)."""

_MOST_DAMPING = 1e12
_FIRST_DAMPING = 1e-3
_SOLVED = 1e-26
_FLAT = 1e-10
_RANK = 1e-14


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Centres (h, d), gamma, weights (h + 1, outputs) with the constant last, and the mean squared error on the rows."""

    centres: FloatArray
    gamma: float
    weights: FloatArray
    loss: float


def rbf(x: FloatArray, centres: FloatArray, gamma: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """exp(-gamma |x - c|^2)."""
    away = x[:, np.newaxis] - centres[np.newaxis]
    squares = (away**2).sum(axis=2)
    k = np.exp(-gamma * squares)
    return k, (2 * gamma * k)[:, :, np.newaxis] * away, -gamma * squares * k


def polynomial(degree: int, coef0: float) -> Columns:
    """(gamma x.c + coef0)^degree."""

    def columns(x: FloatArray, centres: FloatArray, gamma: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        inner = gamma * (x @ centres.T)
        slope = degree * (inner + coef0) ** (degree - 1)
        return (inner + coef0) ** degree, (gamma * slope)[:, :, np.newaxis] * x[:, np.newaxis], slope * inner

    return columns


def values(columns: Columns, fit: Fit, x: FloatArray) -> FloatArray:
    """What a fit says of rows, shape (n, outputs)."""
    found: FloatArray = columns(x, fit.centres, fit.gamma)[0] @ fit.weights[:-1] + fit.weights[-1]
    return found


def search(
    columns: Columns, x: FloatArray, z: FloatArray, centres: FloatArray, gamma: float, *, free: bool, steps: int
) -> Fit:
    """Centres, and gamma where `free`, that explain z (n, outputs) best, from a start on."""
    state = _State.at(columns, x, z, centres, gamma)
    damping = _FIRST_DAMPING
    for _ in range(steps):
        if not np.isfinite(state.loss) or state.loss <= _SOLVED * max(1.0, float((z**2).mean())):
            break
        matrix, gradient = state.equations(free=free)
        diagonal = np.maximum(np.diag(matrix), _FLAT * np.diag(matrix).max())
        following = None
        while following is None and damping < _MOST_DAMPING:
            step = damped_step(matrix, gradient, diagonal, damping)
            tried = None if step is None else _moved(columns, x, z, state, step, free=free)
            better = tried is not None and tried.loss < state.loss
            following, damping = (tried, damping / 6) if better else (None, damping * 4)
        if following is None:
            break
        state, damping = following, max(damping, 1e-14)
    return Fit(state.centres, state.gamma, state.weights, state.loss)


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    centres: FloatArray
    gamma: float
    derivative: FloatArray
    by_width: FloatArray
    basis: FloatArray
    rest: FloatArray
    weights: FloatArray
    loss: float

    @classmethod
    def at(cls, columns: Columns, x: FloatArray, z: FloatArray, centres: FloatArray, gamma: float) -> _State:
        with np.errstate(over="ignore", invalid="ignore"):
            k, derivative, by_width = columns(x, centres, gamma)
        if not all(np.isfinite(part).all() for part in (k, derivative, by_width)):  # a step too far
            nothing = np.zeros((len(x), centres.shape[0] + 1))
            return cls(
                centres, gamma, derivative, by_width, nothing, z, np.zeros((nothing.shape[1], z.shape[1])), np.inf
            )
        basis, triangle = np.linalg.qr(np.concatenate([k, np.ones((len(x), 1))], axis=1))
        u, s, v = np.linalg.svd(triangle, full_matrices=False)
        kept = s > _RANK * s[0]  # where two centres give one column, the basis of QR spans more than the columns do
        basis = basis @ u[:, kept]
        found = basis.T @ z
        rest = z - basis @ found
        weights = v[kept].T @ (found / s[kept, np.newaxis])
        loss = float((rest**2).mean())
        return cls(centres, gamma, derivative, by_width, basis, rest, weights, loss if np.isfinite(loss) else np.inf)

    def equations(self, *, free: bool) -> tuple[FloatArray, FloatArray]:
        """The matrix and the right side of the step's normal equations."""
        h, d = self.centres.shape
        a = self.weights[:-1]
        flat = self.derivative.reshape(len(self.rest), h * d)
        inside = self.basis.T @ flat
        gram = (flat.T @ flat - inside.T @ inside).reshape(h, d, h, d)
        matrix = (gram * (a @ a.T)[:, np.newaxis, :, np.newaxis]).reshape(h * d, h * d)
        gradient = ((flat.T @ self.rest).reshape(h, d, -1) * a[:, np.newaxis]).sum(axis=2).reshape(-1)
        if not free:
            return matrix, gradient
        width = self.by_width @ a
        width = width - self.basis @ (self.basis.T @ width)
        cross = ((flat.T @ width).reshape(h, d, -1) * a[:, np.newaxis]).sum(axis=2).reshape(-1, 1)
        own = np.array([[(width**2).sum()]])
        whole = np.block([[matrix, cross], [cross.T, own]])
        return whole, np.append(gradient, (width * self.rest).sum())


def _moved(columns: Columns, x: FloatArray, z: FloatArray, state: _State, step: FloatArray, *, free: bool) -> _State:
    size = state.centres.size
    gamma = state.gamma * float(np.exp(np.clip(step[-1], -1.0, 1.0))) if free else state.gamma
    return _State.at(columns, x, z, state.centres + step[:size].reshape(state.centres.shape), gamma)
