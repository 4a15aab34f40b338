"""Active learning with a service as the oracle: each round asks the surrogate rows that the clone would learn most from.

Pal, Gupta, Shukla, Kanade, Shevade and Ganapathy, "ActiveThief: Model Extraction Using Active Learning and Unannotated Public Data"
(AAAI 2020). Begin with rows drawn at random, train, pick the next rows of the pool by a strategy, ask, train on, and again.

    entropy        the clone is least sure: largest `-sum_k p_k log p_k`
    margin         smallest first minus second probability
    k-center       farthest, in the clone's probabilities, from all that was asked or picked (Sener and Savarese, ICLR 2018)
    dfal           nearest to the clone's boundary by DeepFool (Ducoffe and Precioso 2018; Moosavi-Dezfooli et al., CVPR 2016)
    dfal+k-center  k-center among the `wider` times as many rows that dfal picks
    random         a control

Different from the paper: no rows are set aside to stop a training, which takes a fixed number of passes; the clone is trained on
between rounds and anew at the end; DeepFool looks at the rows of smallest margin only, at the `RIVALS` likeliest other classes, and
takes `DEEPFOOL_STEPS` steps.
"""

from __future__ import annotations

import enum
import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from garrison.attacks.base import Goal
from garrison.attacks.checks import at_least, positive, share
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.clones import train_clone
from garrison.attacks.extraction.clusters import distances
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.extraction.students import Student
from garrison.attacks.extraction.transfer import TransferSet
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle
from garrison.types import Array, FloatArray

RIVALS = 2
DEEPFOOL_STEPS = 2
LOOKED_AT = 4
"""DeepFool looks at so many times as many rows as are picked, those of the smallest margin."""
OVERSHOOT = 0.02
_SLICE = 250

Numbers = npt.NDArray[np.int64]


class Strategy(enum.StrEnum):
    """How the next rows are picked; see the module's docstring."""

    ENTROPY = "entropy"
    MARGIN = "margin"
    K_CENTER = "k-center"
    DFAL = "dfal"
    DFAL_K_CENTER = "dfal+k-center"
    RANDOM = "random"


class ActiveThief(Knockoff, frozen=True):
    """Ask in rounds what the clone would learn most from.

    Attributes:
        strategy: "entropy", "margin", "k-center", "dfal", "dfal+k-center" or "random".
        rounds: after the first; each asks alike many rows.
        initial: share of the budget that is asked at random first.
        candidates: rows of the pool, drawn at random, that a round picks from.
        wider: see "dfal+k-center".
        round_epochs: passes between two rounds.
        epochs, fewest_steps, batch, learning_rate, weight_decay, averaged, balance: see
            `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "activethief"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    strategy: Strategy = Strategy.DFAL_K_CENTER
    rounds: int = 8
    initial: float = 0.1
    candidates: int = 5000
    wider: float = 2.0
    round_epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rounds", "candidates", "round_epochs", "wider")
        positive(self, "wider")
        share(self, "initial")

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        pool, held = knowledge.surrogate, TransferSet(oracle)
        if not len(pool):
            return Loot(train_clone(pool, held.targets, oracle.facts, self.recipe, 0))
        student = Student(oracle.facts, pool[:1000], int(rng.integers(2**63)))
        seed = int(rng.integers(2**63))
        left: Numbers = rng.permutation(len(pool))
        first = min(len(left), max(1, round(self.initial * oracle.remaining)))
        held.ask(pool[left[:first]])
        left, rounds = left[first:], 0
        share = -(-oracle.remaining // self.rounds)
        while oracle.remaining and len(left):
            student.learn(*held.usable(), self.recipe_of(self.round_epochs))
            wanted = min(share, oracle.remaining, len(left))
            left = rng.permutation(left)
            among = left[: max(self.candidates, wanted)]
            picked = picks(self.strategy, student, pool[among], held.x, wanted, self.wider)
            held.ask(pool[among[picked]])
            left, rounds = np.delete(left, picked), rounds + 1
        clone = train_clone(*held.usable(), oracle.facts, self.recipe, seed)
        return Loot(clone, {"rounds": float(rounds)})


def picks(strategy: Strategy, student: Student, x: Array, asked: Array, k: int, wider: float) -> Numbers:
    """Numbers of the k rows of `x` (rows, *shape) to ask next, none twice.

    Args:
        strategy: see the module's docstring.
        student: the clone so far.
        x: candidates in random order, at least k.
        asked: (n, *shape), rows asked before.
        k: how many.
        wider: see "dfal+k-center".
    """
    if strategy == Strategy.RANDOM:
        return np.arange(k)
    p = student.probabilities(x)
    if strategy == Strategy.MARGIN:
        return smallest(_margins(p), k)
    if strategy == Strategy.K_CENTER:
        return k_centers(p, student.probabilities(asked), k)
    if strategy == Strategy.DFAL:
        return nearest_to_boundary(student, x, p, k)
    if strategy == Strategy.DFAL_K_CENTER:
        near = nearest_to_boundary(student, x, p, min(len(x), math.ceil(wider * k)))
        return near[k_centers(p[near], student.probabilities(asked), k)]
    return smallest((p * np.log(np.maximum(p, 1e-12))).sum(axis=1), k)


def nearest_to_boundary(student: Student, x: Array, p: FloatArray, k: int) -> Numbers:
    """Numbers of the k rows that DeepFool moves least; `p` (rows, classes) are the student's probabilities."""
    doubtful = smallest(_margins(p), LOOKED_AT * k)
    return doubtful[smallest(boundary_distances(student, x[doubtful]), k)]


def _margins(p: FloatArray) -> FloatArray:
    """First minus second probability, shape (rows,)."""
    if p.shape[1] < 2:
        return np.zeros(len(p))
    ordered = np.sort(p, axis=1)
    found: FloatArray = ordered[:, -1] - ordered[:, -2]
    return found


def smallest(values: FloatArray, k: int) -> Numbers:
    """Numbers of the k smallest values, the smallest first; the first of equal ones."""
    return np.argsort(values, kind="stable")[:k]


def k_centers(points: FloatArray, centres: FloatArray, k: int) -> Numbers:
    """Numbers of k points, each the farthest from all centres and all chosen before it."""
    nearest = np.full(len(points), np.inf)
    for i in range(0, len(centres), _SLICE):
        nearest = np.minimum(nearest, distances(points, centres[i : i + _SLICE]).min(axis=1))
    chosen: list[int] = []
    for _ in range(k):
        farthest = int(nearest.argmax())
        chosen.append(farthest)
        nearest = np.minimum(nearest, distances(points, points[farthest][None])[:, 0])
        nearest[chosen] = -1.0  # rows that are alike in all are still chosen once each
    return np.array(chosen, dtype=np.int64)


def boundary_distances(student: Student, x: Array) -> FloatArray:
    """Length of the shortest change that DeepFool finds to leave the clone's class, shape (rows,)."""
    parts = [_deepfool(student, x[i : i + _SLICE]) for i in range(0, len(x), _SLICE)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _deepfool(student: Student, x: Array) -> FloatArray:
    """Each step crosses the nearest of the linearised boundaries with the likeliest other classes."""
    start = np.nan_to_num(x.astype(np.float64))
    classes = np.argsort(-student.logits(start), axis=1, kind="stable")[:, : RIVALS + 1]
    moved = start.copy()
    for _ in range(DEEPFOOL_STEPS):
        z, slopes = student.slopes(moved, classes)
        gap = z[:, 1:] - z[:, :1]
        way = (slopes[:, 1:] - slopes[:, :1]).reshape(len(x), gap.shape[1], -1).astype(np.float64)
        length = np.maximum(np.sqrt((way**2).sum(axis=2)), 1e-9)
        nearest = (np.abs(gap) / length).argmin(axis=1)
        row = np.arange(len(x))
        share = (np.abs(gap[row, nearest]) + 1e-4) / length[row, nearest] ** 2
        inside = (gap < 0).all(axis=1)
        change = (inside * (1 + OVERSHOOT) * share)[:, None] * way[row, nearest]
        moved += change.reshape(x.shape)
    return np.asarray(np.sqrt(((moved - start) ** 2).reshape(len(x), -1).sum(axis=1)))
