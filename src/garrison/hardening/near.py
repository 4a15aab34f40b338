"""The parameters of the detector `near-duplicates`: honest callers and simulated thieves, run through the detector's own code.

A thief's step is simulated where the detector sees it, in the projection: a random projection makes a step in no particular direction of the data
normal, with the step's length. So no model is asked, and no attack of the audit is known here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.near_duplicates import FEWEST, NearDuplicates
from garrison.guard.detectors.steps import MOST_NATS, TERMS, terms
from garrison.hardening.callers import ROWS, columns_of, draw, seen_as, shares_of, unit_of
from garrison.hardening.shifts import PLAIN
from garrison.types import FloatArray

_CALLERS = 4
_FEWEST_OF_A_CLASS = 100
_THIEVES = 40
_SEEDS = FEWEST
STEPS = (0.15, 1.6)
"""Shortest and longest step, over the median distance between an honest row and the nearest remembered one."""
_LONG = 0.6
"""Three in four simulated thieves' steps are at least so long: these are the hard ones."""
_ALIKE = (0.0, 0.5)
"""Correlation between the direction in which a row was stepped and that of the next step from it, which goes back: steps follow a model's gradients,
to and fro. Thieves of both kinds take turns."""
_RARE = 0.002
"""Share of honest rows, of any kind, that may project as one before them if such rows are to say anything."""
_ROUNDS = 30
_DIGITS = 6


def fit_near_duplicates(pools: Mapping[str, Seen], seed: int) -> NearDuplicates | None:
    """See the module's docstring; None where there are too few rows to simulate callers, or nearly all are equal.

    Args:
        pools: honest rows by kind of shift.
        seed: of all that is drawn.
    """
    rng = np.random.default_rng([seed, 3])
    plain = pools[PLAIN].projection
    if len(plain) < ROWS:
        return None
    bare = NearDuplicates(threshold=math.inf, unit=unit_of(pools), weights=(0.0,) * TERMS)
    kinds = [_looked_at(bare, callers, FEWEST) for callers in _honest(pools, rng)]
    honest = [found for found, _ in kinds]
    if not len(honest[0]):  # nobody asked three different rows
        return None
    honest = [part for part in honest if len(part)]
    usual = usual_distance(honest[0])
    thieves = [_terms_of(bare, [thief_rows(plain, usual, number, rng)], _SEEDS) for number in range(_THIEVES)]
    equal = _equal(bare.stepped, max(share for _, share in kinds))
    return msgspec.structs.replace(bare, weights=logistic(honest, thieves), equal=equal)


def _equal(stepped: float, share: float) -> float:
    """Nats of a row that projects as one before it and is another, where such a share of honest rows does; a thief's steps may all do so."""
    return round(math.log1p(stepped * math.expm1(MOST_NATS)), _DIGITS) if share <= _RARE else 0.0


def usual_terms(detector: NearDuplicates, projection: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The terms of the rows of a few honest callers."""
    callers = [projection[rng.permutation(len(projection))[:ROWS]] for _ in range(_CALLERS)]
    return _terms_of(detector, callers, FEWEST)


def usual_distance(terms_of_rows: FloatArray) -> float:
    """The median distance between a row and the nearest remembered one."""
    return math.exp(float(np.median(terms_of_rows[:, 1])))


def logistic(honest: Sequence[FloatArray], thieves: Sequence[FloatArray]) -> tuple[float, ...]:
    """Weights of the log odds, by iterated least squares; every caller of a kind counts alike, honest ones together as much as thieves.
    Then the odds are lowered until their mean is at most 1 for each honest kind, as a likelihood ratio's is.

    Args:
        honest, thieves: terms of the rows of each caller or kind of caller, (rows, terms).
    """
    x = np.concatenate([*honest, *thieves])
    y = np.repeat([0.0, 1.0], [sum(map(len, honest)), sum(map(len, thieves))])
    share = [np.full(len(part), 0.5 / (len(parts) * len(part))) for parts in (honest, thieves) for part in parts]
    weight = np.concatenate(share)
    scale = np.sqrt(weight @ x**2)
    x = x / scale
    found = np.zeros(x.shape[1])
    for _ in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -30, 30)))
        bend = weight * np.maximum(p * (1 - p), 1e-6)
        hessian = (x * bend[:, np.newaxis]).T @ x + 1e-9 * np.eye(x.shape[1])
        found = found + np.linalg.solve(hessian, x.T @ (weight * (y - p)) - 1e-9 * found)
    found /= scale
    for _ in range(_ROUNDS):  # clipped odds do not fall: again
        found[0] -= max(
            0.0, *(math.log(np.exp(np.clip(part @ found, -MOST_NATS, MOST_NATS)).mean()) for part in honest)
        )
    return tuple(round(float(number), _DIGITS) for number in found)


def _honest(pools: Mapping[str, Seen], rng: np.random.Generator) -> list[list[FloatArray]]:
    """Projections of the rows of honest callers: several of each kind, the plain one first, and one of each class alone."""
    drawn = draw(pools, rng, each=_CALLERS, fewest_of_a_class=_FEWEST_OF_A_CLASS)
    found = [[pools[kind].projection[rows] for rows in callers] for kind, callers in drawn.mixed.items()]
    return found + [[pools[kind].projection[rows]] for kind, rows in drawn.of_a_class]


def thief_rows(plain: FloatArray, usual: float, number: int, rng: np.random.Generator) -> FloatArray:
    """Rows of a thief who steps all rows asked so far, in random order, and again; all steps are equally long, and every other round goes back."""
    low = _LONG if number % 4 else STEPS[0]
    length = usual * low * (STEPS[1] / low) ** rng.random()
    alike = _ALIKE[number // 2 % len(_ALIKE)]
    found = plain[rng.permutation(len(plain))[:ROWS]].copy()
    width = found.shape[1]
    ways = rng.normal(size=found.shape)
    row, way = _SEEDS, 1.0
    while row < len(found):
        for source in rng.permutation(row)[: len(found) - row]:
            ways[row] = alike * ways[source] + math.sqrt(1 - alike**2) * ways[row]
            found[row] = found[source] + way * length / math.sqrt(width) * ways[row]
            row += 1
        way = -way
    return found


def _terms_of(detector: NearDuplicates, callers: Sequence[FloatArray], first: int) -> FloatArray:
    """The terms of callers' rows from row `first` on, as the detector measures them, (rows, terms)."""
    return _looked_at(detector, callers, first)[0]


def _looked_at(detector: NearDuplicates, callers: Sequence[FloatArray], first: int) -> tuple[FloatArray, float]:
    """`_terms_of`, and the share of these rows that project as one before them."""
    asked = np.concatenate([np.arange(len(x)) for x in callers])
    turn = np.argsort(asked, kind="stable")  # callers take turns
    place = np.repeat(np.arange(len(callers)), [len(x) for x in callers])[turn]
    asked = asked[turn]
    projection = np.concatenate(callers)[turn]
    width = projection.shape[1]
    squares, equal = detector.apart(
        seen_as(place, asked, projection), columns_of(detector, width, len(callers)), shares_of(detector, width)
    )
    nearest, second = np.sqrt(squares) * detector.unit
    late = asked >= first
    there = np.isfinite(second) & late
    share = 0.0 if equal is None else float(equal[late].mean())
    return terms(nearest[there], second[there], asked[there], detector.slots), share
