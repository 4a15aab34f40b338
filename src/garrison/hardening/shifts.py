"""What honest callers do to inputs: pictures are mirrored, moved, brighter or darker; a table's numbers are measured a little otherwise.

Used to calibrate detectors: what an honest caller might do must not look like theft. What is not simulated here, may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from garrison.types import Array

Shift = Callable[[Array, np.random.Generator], Array]
PLAIN, MIXED = "plain", "mixed"
MOST_STEPS = (2, 3)
"""Pixels by which pictures are moved."""
BRIGHTNESS = (0.7, 1.3)
NOISE = 0.05
"""Of a table's numbers, as a share of the deviation of their feature."""
REPLACED = 0.02
"""Share of a table's values that are exchanged for those of another row."""
_PICTURE_AXES = 4
_FEW_VALUES = 20


def shifts_of(x: Array) -> dict[str, Shift]:
    """By name, what may be done to rows of such an input; nothing where it is neither pictures nor a table of real numbers."""
    if x.dtype.kind != "f":
        return {}
    if x.ndim == _PICTURE_AXES and min(x.shape[2:]) > 2 * max(MOST_STEPS):
        return {"flip": mirrored, "move": moved, "bright": brighter}
    return {"noise": noisy, "replaced": replaced} if x.ndim == 2 else {}


def shifted(inputs: Mapping[str, Array], rng: np.random.Generator) -> dict[str, dict[str, Array]]:
    """By kind of shift, all inputs: as they are, by each shift, and mixed, where each row has had one of these; row i is always the same row.

    Of several inputs, none is changed.
    """
    (name, x), *more = inputs.items()
    found = {PLAIN: dict(inputs)}
    if more:
        return found
    made = {kind: shift(x, rng) for kind, shift in shifts_of(x).items()}
    if made:
        drawn = rng.integers(0, len(made) + 1, len(x))
        made[MIXED] = np.stack([x, *made.values()])[drawn, np.arange(len(x))]
    return found | {kind: {name: np.ascontiguousarray(y, dtype=x.dtype)} for kind, y in made.items()}


def mirrored(x: Array, rng: np.random.Generator) -> Array:
    """Half of the pictures, left for right."""
    half = rng.random(len(x)) < 0.5
    found: Array = np.where(half[:, None, None, None], x[..., ::-1], x)
    return found


def moved(x: Array, rng: np.random.Generator) -> Array:
    """Each picture down, across or both, by 2 or 3 pixels either way; what comes into view is as the nearest edge's darkest value."""
    sizes = np.array([-max(MOST_STEPS), -min(MOST_STEPS), min(MOST_STEPS), max(MOST_STEPS)])
    steps = rng.choice(sizes, (len(x), 2))
    way = rng.integers(0, 3, len(x))
    steps[way == 0, 1], steps[way == 1, 0] = 0, 0
    found = np.full_like(x, x.min() if x.size else 0)
    for down in (0, *sizes.tolist()):
        for across in (0, *sizes.tolist()):
            rows = (steps == (down, across)).all(axis=1)
            if rows.any():
                found[rows] = _by(x[rows], down, across, found.dtype.type(x.min()))
    return found


def _by(x: Array, down: int, across: int, ground: Array) -> Array:
    found = np.full_like(x, ground)
    height, width = x.shape[2:]
    h, w = height - abs(down), width - abs(across)
    to, start = (max(down, 0), max(across, 0)), (max(-down, 0), max(-across, 0))
    found[..., to[0] : to[0] + h, to[1] : to[1] + w] = x[..., start[0] : start[0] + h, start[1] : start[1] + w]
    return found


def brighter(x: Array, rng: np.random.Generator) -> Array:
    """Each picture 0.7 to 1.3 times as bright, within the range of all."""
    low, high = x.min(), x.max()
    found: Array = np.clip(low + (x - low) * rng.uniform(*BRIGHTNESS, (len(x), 1, 1, 1)), low, high)
    return found


def noisy(x: Array, rng: np.random.Generator) -> Array:
    """Numbers a little off, where a feature takes many values; within the range of all; what is missing stays missing."""
    found = x.astype(np.float64)
    for column in range(x.shape[1]):
        values = found[:, column]
        known = values[~np.isnan(values)]
        if len(np.unique(known)) > _FEW_VALUES:
            moved_by = values + NOISE * known.std() * rng.standard_normal(len(x))
            found[:, column] = np.clip(moved_by, known.min(), known.max())
    return found


def replaced(x: Array, rng: np.random.Generator) -> Array:
    """A few values as they are in another row."""
    others = np.take_along_axis(x, rng.integers(0, len(x), x.shape), axis=0)
    found: Array = np.where(rng.random(x.shape) < REPLACED, others, x)
    return found
