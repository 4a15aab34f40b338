"""The closed forms against gradients by finite differences."""

from __future__ import annotations

import numpy as np

from garrison.guard.surrogate import HIDDEN, Gradients, gradients, weights
from garrison.types import Array, FloatArray

WIDTH, CLASSES, SEED = 3, 4, 3


def log_probabilities(r: Array, parameters: Array) -> FloatArray:
    """log F(x; w) of the network that the module describes, written plainly."""
    sizes = [WIDTH * HIDDEN, HIDDEN, HIDDEN * CLASSES, CLASSES]
    u, c, v, b = np.split(parameters, np.cumsum(sizes)[:-1])
    h = np.maximum(r @ u.reshape(WIDTH, HIDDEN) + c, 0)
    z: FloatArray = h @ v.reshape(HIDDEN, CLASSES) + b
    found: FloatArray = z - np.log(np.exp(z).sum())
    return found


def jacobian(projection: Array) -> tuple[FloatArray, FloatArray]:
    """(G, p): by central differences, shape (classes, parameters), and the surrogate's answer."""
    first, second = weights(WIDTH, CLASSES, SEED)
    w = np.concatenate([first.ravel(), np.zeros(HIDDEN), second.ravel(), np.zeros(CLASSES)]).astype(np.float64)
    r, step = projection / np.linalg.norm(projection), 1e-6
    shifts = step * np.eye(len(w))
    g = np.stack([log_probabilities(r, w + s) - log_probabilities(r, w - s) for s in shifts], axis=1) / (2 * step)
    return g, np.exp(log_probabilities(r, w))


def closed(projection: Array) -> Gradients:
    return gradients(np, projection, CLASSES, SEED, np.dtype(np.float64))


def projections(rows: int = 4) -> FloatArray:
    return np.random.default_rng(1).normal(size=(rows, WIDTH)) * 20


def test_gradients_are_those_of_the_network() -> None:
    x = projections()
    found = closed(x)
    q = np.random.default_rng(2).dirichlet(np.ones(CLASSES), len(x))
    for i, one in enumerate(x):
        g, p = jacobian(one)
        np.testing.assert_allclose(found.p[i], p, rtol=1e-9)
        turned = found.gram(np, q - found.p)[i]  # J J^T (q - p); G^T q = J^T (q - p)
        np.testing.assert_allclose((g.T @ q[i]) @ (g.T @ q[i]), (q[i] - p) @ turned, rtol=1e-5)
        np.testing.assert_allclose(g @ (g.T @ q[i]), turned - p @ turned, rtol=1e-4, atol=1e-5)
        ones = found.all_ones(np)[i]
        np.testing.assert_allclose(g.sum(axis=1), ones - p @ ones, rtol=1e-4, atol=1e-5)


def test_the_diagonal_is_that_of_the_gram_matrix() -> None:
    found = closed(projections())
    columns = [found.gram(np, np.tile(e, (4, 1)))[:, k] for k, e in enumerate(np.eye(CLASSES))]
    np.testing.assert_allclose(found.diagonal(np), np.stack(columns, axis=1), rtol=1e-12)


def test_an_input_of_which_nothing_is_seen_is_no_crash() -> None:
    found = closed(np.zeros((2, WIDTH)))
    np.testing.assert_allclose(found.p, 1 / CLASSES)
    assert np.isfinite(found.diagonal(np)).all()


def test_the_seed_decides() -> None:
    np.testing.assert_array_equal(weights(6, 4, 1)[0], weights(6, 4, 1)[0])
    assert not np.array_equal(weights(6, 4, 1)[0], weights(6, 4, 2)[0])


def test_an_input_beyond_all_bounds_is_no_crash() -> None:
    """Where no bounds stand before it; such a row is answered by its probabilities alone."""
    x = np.array([[np.nan] * WIDTH, [np.inf] * WIDTH, [3e38] * WIDTH], np.float32)
    found = gradients(np, x, CLASSES, SEED, np.dtype(np.float32))
    np.testing.assert_allclose(found.p, 1 / CLASSES)
