"""Inputs that are not the model's business, for outlier exposure (Hendrycks et al., ICLR 2019).

The owner does not know what an attacker will ask. So the set is a mixture of unlike kinds: drawn strokes and shapes, several
kinds of noise, patches of photographs where given, and the owner's own inputs taken apart. None of it is a digit or a letter.

Invariant: the same arguments give the same set.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from garrison.errors import CalibrationError
from garrison.hardening.scoring import Report, silent
from garrison.types import Array, FloatArray

Images = npt.NDArray[np.float32]
Kind = Callable[[np.random.Generator, int, int, int], Images]
"""(generator, images, height, width) -> (images, height, width), values in [0, 1]."""

_POINTS = 24
"""Points at which a curve is stamped."""


def outlier_set(
    shape: tuple[int, ...],
    n: int,
    seed: int = 0,
    *,
    benign: FloatArray | None = None,
    photographs: FloatArray | None = None,
    low: float = 0.0,
    high: float = 1.0,
    report: Report = silent,
) -> Images:
    """A mixture of outliers.

    Args:
        shape: of one input: (channels, height, width) for images, (features,) for tables.
        n: how many.
        seed: of the generator.
        benign: (rows, *shape), the owner's own inputs; needed for tables.
        photographs: (rows, *shape) in [0, 1], patches of photographs.
        low, high: the range of an image's values; drawn images are stretched to it.
        report: told how far the drawing is.

    Returns:
        (n, *shape), float32, in random order.

    Raises:
        CalibrationError: a shape that is neither, or a table without `benign`.
    """
    rng = np.random.default_rng(seed)
    if len(shape) == 3 and min(shape[1:]) >= 8:
        parts = _image_parts(rng, shape, n, benign, photographs, (low, high), report)
    elif benign is not None and len(benign) >= 2:
        parts = [kind(rng, benign.reshape(len(benign), -1), -(-n // len(TABLE_KINDS))) for kind in TABLE_KINDS]
        parts = [part.reshape(-1, *shape) for part in parts]
    else:
        raise CalibrationError(
            f"inputs of shape {shape}: outliers are made from your own rows; give at least two of them"
        )
    mixture = np.concatenate(parts)
    return np.ascontiguousarray(mixture[rng.permutation(len(mixture))[:n]], dtype=np.float32)


def _image_parts(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    n: int,
    benign: FloatArray | None,
    photographs: FloatArray | None,
    bounds: tuple[float, float],
    report: Report,
) -> list[Images]:
    given = [np.asarray(x, dtype=np.float32) for x in (photographs,) if x is not None and len(x)]
    own = benign is not None and len(benign) >= 2
    weights = sum(IMAGE_KINDS.values()) + PHOTOGRAPH_WEIGHT * len(given) + OWN_WEIGHT * own
    low, high = bounds

    def share(weight: float) -> int:
        return math.ceil(n * weight / weights)

    parts: list[Images] = []
    for kind, weight in IMAGE_KINDS.items():
        parts.append(low + (high - low) * _drawn(rng, kind, share(weight), shape))
        report(kind.__name__, len(parts) / len(IMAGE_KINDS))
    for x in given:
        patches = _relight(rng, x[rng.integers(0, len(x), share(PHOTOGRAPH_WEIGHT))])
        parts.append(low + (high - low) * patches)
    if own and benign is not None:
        parts.append(taken_apart(rng, np.asarray(benign, dtype=np.float32), share(OWN_WEIGHT)))
    return [part.reshape(-1, *shape) for part in parts]


def _drawn(rng: np.random.Generator, kind: Kind, n: int, shape: tuple[int, ...]) -> Images:
    """Grey drawings in every channel, with a random weight each where there are several."""
    channels, height, width = shape
    grey = kind(rng, n, height, width)[:, np.newaxis]
    if channels == 1:
        return grey
    weights = rng.uniform(0.2, 1.0, (n, channels, 1, 1)).astype(np.float32)
    return grey * weights


# Drawings ------------------------------------------------------------------------------------------------------------


def strokes(rng: np.random.Generator, n: int, height: int, width: int) -> Images:
    """One to four smooth curves of one pen, bright on dark."""
    curves = rng.integers(1, 5, n)
    canvas = np.zeros((n, height, width), dtype=np.float32)
    size = rng.uniform(0.3, 1.1, (n, 1, 1))
    centre = rng.uniform(0.35, 0.65, (n, 1, 2))
    pen = rng.uniform(0.012, 0.045, n)
    for i in range(4):
        control = centre + size * rng.uniform(-0.6, 0.6, (n, 4, 2))
        closed = rng.random(n) < 0.25
        control[closed, 3] = control[closed, 0]
        drawn = _stamp(_bezier(control), pen, height, width)
        canvas = np.where((i < curves)[:, np.newaxis, np.newaxis], np.maximum(canvas, drawn), canvas)
    return canvas * _column(rng.uniform(0.5, 1.0, n))


def segments(rng: np.random.Generator, n: int, height: int, width: int) -> Images:
    """One to five straight lines."""
    lines = rng.integers(1, 6, n)
    canvas = np.zeros((n, height, width), dtype=np.float32)
    pen = rng.uniform(0.012, 0.05, n)
    for i in range(5):
        ends = rng.uniform(0.1, 0.9, (n, 2, 2))
        t = np.linspace(0, 1, _POINTS)[np.newaxis, :, np.newaxis]
        drawn = _stamp(ends[:, :1] * (1 - t) + ends[:, 1:] * t, pen, height, width)
        canvas = np.where((i < lines)[:, np.newaxis, np.newaxis], np.maximum(canvas, drawn), canvas)
    return canvas * _column(rng.uniform(0.4, 1.0, n))


def arcs(rng: np.random.Generator, n: int, height: int, width: int) -> Images:
    """One to three arcs of ellipses, from a short bow to a closed ring."""
    count = rng.integers(1, 4, n)
    canvas = np.zeros((n, height, width), dtype=np.float32)
    pen = rng.uniform(0.012, 0.045, n)
    for i in range(3):
        start, sweep = rng.uniform(0, 2 * np.pi, (n, 1)), rng.uniform(0.5, 2 * np.pi, (n, 1))
        angle = start + sweep * np.linspace(0, 1, _POINTS)
        radius, tilt = rng.uniform(0.06, 0.4, (n, 1, 2)), rng.uniform(0, np.pi, n)
        points = radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        turn = np.stack([np.cos(tilt), -np.sin(tilt), np.sin(tilt), np.cos(tilt)], axis=-1).reshape(n, 2, 2)
        points = points @ turn + rng.uniform(0.3, 0.7, (n, 1, 2))
        canvas = np.where(
            (i < count)[:, np.newaxis, np.newaxis], np.maximum(canvas, _stamp(points, pen, height, width)), canvas
        )
    return canvas * _column(rng.uniform(0.5, 1.0, n))


def blocks(rng: np.random.Generator, n: int, height: int, width: int) -> Images:
    """One to four filled rectangles and discs of different greys, on a plain ground."""
    y, x = _grid(height, width)
    canvas = np.broadcast_to(_column(rng.choice([0.0, 0.0, 1.0, 0.5], n)), (n, height, width)).astype(np.float32)
    count = rng.integers(1, 5, n)
    for i in range(4):
        cy, cx, ry, rx = (_column(rng.uniform(a, b, n)) for a, b in ((0, 1), (0, 1), (0.05, 0.5), (0.05, 0.5)))
        box = (np.abs(y - cy) < ry) & (np.abs(x - cx) < rx)
        disc = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        inside = np.where(_column(rng.random(n)) < 0.5, box, disc) & (_column(count) > i)
        canvas = np.where(inside, _column(rng.random(n)), canvas).astype(np.float32)
    return canvas


def stripes(rng: np.random.Generator, n: int, height: int, width: int) -> Images:
    """Plane waves, hard stripes and checkerboards of any direction, and smooth ramps."""
    y, x = _grid(height, width)
    angle, waves, phase = rng.uniform(0, np.pi, n), rng.uniform(0.3, 9, n), rng.uniform(0, 2 * np.pi, n)
    along = np.cos(_column(angle)) * x + np.sin(_column(angle)) * y
    across = -np.sin(_column(angle)) * x + np.cos(_column(angle)) * y
    wave = np.sin(2 * np.pi * _column(waves) * along + _column(phase))
    board = wave * np.sin(2 * np.pi * _column(waves) * across)
    wave = np.where(_column(rng.random(n)) < 0.3, board, wave)
    wave = np.where(_column(rng.random(n)) < 0.5, np.sign(wave), wave)
    images: Images = _contrast(rng, (wave + 1) / 2)
    return images


def noise(rng: np.random.Generator, n: int, height: int, width: int) -> Images:
    """Uniform, normal, sparse (few bright dots) and two-valued noise."""
    uniform = rng.random((n, height, width), dtype=np.float32)
    normal = np.clip(0.5 + rng.uniform(0.05, 0.5) * rng.standard_normal((n, height, width)), 0, 1)
    dots = uniform * (rng.random((n, height, width)) < _column(rng.uniform(0.005, 0.3, n)))
    binary = rng.random((n, height, width)) < _column(rng.uniform(0.05, 0.95, n))
    kinds = np.stack([uniform, normal, dots, binary]).astype(np.float32)
    images: Images = kinds[rng.integers(0, 4, n), np.arange(n)] * _column(rng.uniform(0.3, 1.0, n))
    return images


def clouds(rng: np.random.Generator, n: int, height: int, width: int) -> Images:
    """Noise with a random correlation length; half of it cut at a level, which gives blobs and islands."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width)[np.newaxis, :])
    length = _column(np.exp(rng.uniform(np.log(0.6), np.log(6.0), n)))
    spectrum = np.fft.rfft2(rng.standard_normal((n, height, width))) * np.exp(
        -0.5 * (2 * np.pi * frequency * length) ** 2
    )
    field = np.fft.irfft2(spectrum, s=(height, width))
    field /= field.std(axis=(1, 2), keepdims=True) + 1e-6
    cut = field > _column(rng.uniform(0.0, 1.6, n))
    island = np.where(_column(rng.random(n)) < 0.5, cut, cut * (field / 3))
    images: Images = np.where(_column(rng.random(n)) < 0.5, island, _contrast(rng, 0.5 + field / 5)).astype(np.float32)
    return np.clip(images, 0, 1)


def plain(rng: np.random.Generator, n: int, height: int, width: int) -> Images:
    """One grey all over, with hardly any noise."""
    level = _column(rng.choice([0.0, 1.0, 0.5, 0.25, 0.75], n)) + rng.normal(0, 0.02, (n, height, width))
    images: Images = np.clip(level, 0, 1).astype(np.float32)
    return images


IMAGE_KINDS: dict[Kind, float] = {
    strokes: 3.0,
    arcs: 2.0,
    segments: 1.5,
    blocks: 1.0,
    stripes: 0.5,
    noise: 1.0,
    clouds: 1.5,
    plain: 0.1,
}
"""The drawn kinds and their weights in the mixture."""
PHOTOGRAPH_WEIGHT = 1.5
OWN_WEIGHT = 1.0


# The owner's own inputs ------------------------------------------------------------------------------------------------


def taken_apart(rng: np.random.Generator, benign: Images, n: int) -> Images:
    """Own images with their quarters in another order, inverted, or two laid over each other."""
    low, high = float(benign.min()), float(benign.max())
    one, two = (benign[rng.integers(0, len(benign), n)] for _ in range(2))
    h, w = one.shape[2] // 2, one.shape[3] // 2
    quarters = np.stack([one[..., :h, :w], one[..., :h, -w:], one[..., -h:, :w], one[..., -h:, -w:]], axis=1)
    order = rng.permuted(np.tile(np.arange(4), (n, 1)), axis=1)
    order = np.where((order == np.arange(4)).all(axis=1, keepdims=True), order[:, ::-1], order)
    shuffled = one.copy()
    for i, (rows, columns) in enumerate(((0, 0), (0, -w), (-h, 0), (-h, -w))):
        part = quarters[np.arange(n), order[:, i]]
        shuffled[..., slice(rows, rows + h or None), slice(columns, columns + w or None)] = part
    kinds = np.stack([shuffled, low + high - one, (one + np.flip(two, axis=2)) / 2])
    mixed: Images = kinds[rng.choice(3, n, p=(0.6, 0.15, 0.25)), np.arange(n)]
    return mixed


def _relight(rng: np.random.Generator, x: Images) -> Images:
    """Random contrast, brightness, turns and negatives of grey patches."""
    x = np.where(_spread(rng.random(len(x)), x) < 0.3, 1.0 - x, x)
    x = np.where(_spread(rng.random(len(x)), x) < 0.5, np.flip(x, axis=-1), x)
    centre = x.mean(axis=(1, 2, 3), keepdims=True)
    bent: Images = centre + (x - centre) * _spread(np.exp(rng.uniform(-0.7, 1.2, len(x))), x)
    return np.clip(bent, 0, 1).astype(np.float32)


def shuffled_columns(rng: np.random.Generator, benign: FloatArray, n: int) -> Images:
    """Each feature from another row: every value is likely, the row as a whole is not."""
    picks = rng.integers(0, len(benign), (n, benign.shape[1]))
    mixed: Images = benign[picks, np.arange(benign.shape[1])].astype(np.float32)
    return mixed


def uniform_box(rng: np.random.Generator, benign: FloatArray, n: int) -> Images:
    """Uniform over the range of each feature."""
    low, high = np.nanmin(benign, axis=0), np.nanmax(benign, axis=0)
    return rng.uniform(low, high, (n, benign.shape[1])).astype(np.float32)


def far_away(rng: np.random.Generator, benign: FloatArray, n: int) -> Images:
    """Own rows pushed away from the mean by a factor of 1.5 to 4."""
    mean = np.nanmean(benign, axis=0)
    rows = benign[rng.integers(0, len(benign), n)]
    pushed: Images = (mean + (rows - mean) * rng.uniform(1.5, 4.0, (n, 1))).astype(np.float32)
    return pushed


TABLE_KINDS: tuple[Callable[[np.random.Generator, FloatArray, int], Images], ...] = (
    shuffled_columns,
    uniform_box,
    far_away,
)


# Helpers ---------------------------------------------------------------------------------------------------------------


def _stamp(points: Array, pen: Array, height: int, width: int) -> Images:
    """Ink of a round pen at points (n, p, 2) in the unit square; `pen` is its radius, shape (n,)."""
    spread = 2 * (_column(pen) * (height + width) / 2) ** 2
    points = points.astype(np.float32)
    y = (np.arange(height, dtype=np.float32) - points[..., :1] * height) ** 2 / spread
    x = (np.arange(width, dtype=np.float32) - points[..., 1:] * width) ** 2 / spread
    ink: Images = np.exp(-y).transpose(0, 2, 1) @ np.exp(-x)
    drawn: Images = np.clip(1.6 * ink, 0, 1).astype(np.float32)
    return drawn


def _bezier(control: Array) -> Array:
    """Cubic Bézier curves: control points (n, 4, 2) -> points (n, _POINTS, 2)."""
    t = np.linspace(0, 1, _POINTS)[:, np.newaxis]
    basis = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    points: Array = np.einsum("pk,nkd->npd", basis, control)
    return points


def _contrast(rng: np.random.Generator, images: Array) -> Images:
    """Random contrast and brightness, one a picture."""
    n = len(images)
    gain = _column(rng.uniform(0.2, 1.0, n))
    stretched: Images = np.clip(gain * images + (1 - gain) * _column(rng.random(n)), 0, 1).astype(np.float32)
    return stretched


def _grid(height: int, width: int) -> tuple[Array, Array]:
    y, x = np.linspace(0, 1, height, dtype=np.float32), np.linspace(0, 1, width, dtype=np.float32)
    return y[np.newaxis, :, np.newaxis], x[np.newaxis, np.newaxis, :]


def _column(values: Array) -> Images:
    return values.reshape(-1, 1, 1).astype(np.float32)


def _spread(values: Array, x: Array) -> Array:
    return values.reshape(-1, *([1] * (x.ndim - 1)))
