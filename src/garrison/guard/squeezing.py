"""Squeezed copies of pictures: fewer values a pixel, and the median of neighbours. Written once over the Array API, and traced into the model's graph at sealing.

Xu, Evans and Qi, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks" (NDSS 2018), sections III.A and III.B. A squeezer hardly
changes what an honest picture shows, and takes away much of what an attacker added. The non-local means of the paper are left out: they cost more than a
small model.
"""

from __future__ import annotations

from typing import Any

from garrison.types import InputFacts

WINDOWS = (2, 3)
MOST_BITS = 8


def copies_of(bits: int, window: int) -> int:
    """How many squeezed copies of a row there are."""
    return int(bits > 0) + int(window > 0)


def squeezed(xp: Any, x: Any, spec: InputFacts, bits: int, window: int) -> list[Any]:
    """The squeezed copies of pictures.

    Args:
        x: shape (rows, channels, height, width), within the range of `spec`.
        spec: of the input; its range is taken as one for all pixels.
        bits: of a pixel; 0 for no such copy.
        window: side of the median's window, one of `WINDOWS`; 0 for no such copy.
    """
    found = []
    if bits:
        low, high = float(spec.low.min()), float(spec.high.max())
        levels = (2**bits - 1) / (high - low)
        found.append(xp.round((x - low) * levels) / levels + low)
    if window:
        found.append(median(xp, x, window))
    return found


def median(xp: Any, x: Any, window: int) -> Any:
    """The median of each pixel's neighbourhood: of two by two pixels, down and to the right, or of three by three around it.

    Beyond the edge the edge is repeated. Of four values the mean of the middle two.
    """
    if window == WINDOWS[0]:
        right = _shifted(xp, x, 3, 1)
        rows = [(x, right), (_shifted(xp, x, 2, 1), _shifted(xp, right, 2, 1))]
        (low_a, high_a), (low_b, high_b) = (_ordered(xp, a, b) for a, b in rows)
        return (xp.maximum(low_a, low_b) + xp.minimum(high_a, high_b)) * 0.5
    sorted_rows = []
    for down in (-1, 0, 1):
        line = _shifted(xp, x, 2, down)
        sorted_rows.append(_three(xp, _shifted(xp, line, 3, -1), line, _shifted(xp, line, 3, 1)))
    # The median of nine lies among: the largest of the smallest, the median of the middle ones, the smallest of the largest.
    lows, middles, highs = zip(*sorted_rows, strict=True)
    low = xp.maximum(xp.maximum(lows[0], lows[1]), lows[2])
    high = xp.minimum(xp.minimum(highs[0], highs[1]), highs[2])
    return _three(xp, low, _three(xp, *middles)[1], high)[1]


def _ordered(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    return xp.minimum(a, b), xp.maximum(a, b)


def _three(xp: Any, a: Any, b: Any, c: Any) -> tuple[Any, Any, Any]:
    """Three pictures with each pixel's values in rising order."""
    low, high = _ordered(xp, a, b)
    return xp.minimum(low, c), xp.maximum(low, xp.minimum(high, c)), xp.maximum(high, c)


def _shifted(xp: Any, x: Any, axis: int, by: int) -> Any:
    """Each pixel's neighbour that many (-1, 0 or 1) further along an axis."""
    if by == 0:
        return x
    keep, edge = (slice(1, None), slice(-1, None)) if by > 0 else (slice(None, -1), slice(None, 1))
    place: list[slice] = [slice(None)] * 4
    place[axis] = keep
    inner = x[tuple(place)]
    place[axis] = edge
    outer = x[tuple(place)]
    return xp.concat([inner, outer] if by > 0 else [outer, inner], axis=axis)


def disagreement(xp: Any, answer: Any, copies: Any, count: int) -> Any:
    """The largest L1 distance between the answers to a row and to its squeezed copies, shape (rows,); section IV of the paper.

    Args:
        answer: shape (rows, classes).
        copies: shape (rows, count * classes).
        count: of the copies.
    """
    classes = answer.shape[1]
    apart = [
        xp.sum(xp.abs(answer - copies[:, number * classes : (number + 1) * classes]), axis=1) for number in range(count)
    ]
    found = apart[0]
    for other in apart[1:]:
        # Not the maximum, which loses NaN in some runtimes; NaN is not itself.
        found = xp.where((other > found) | (other != other), other, found)
    return found
