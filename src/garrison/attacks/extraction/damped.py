"""One step of a damped Newton method (Levenberg 1944, Marquardt 1963)."""

from __future__ import annotations

import numpy as np

from garrison.types import FloatArray


def damped_step(matrix: FloatArray, gradient: FloatArray, diagonal: FloatArray, damping: float) -> FloatArray | None:
    """The solution of (matrix + damping * diag(diagonal)) step = gradient.

    Args:
        matrix: (n, n), symmetric.
        gradient: (n,).
        diagonal: (n,), what the damping is measured by.
        damping: above 0.

    Returns:
        (n,); None where there is none in double precision, as for a matrix of zeros: more damping may help.
    """
    try:
        return np.linalg.solve(matrix + np.diag(damping * diagonal), gradient)
    except np.linalg.LinAlgError:
        return None
