"""Path finding: a decision tree, leaf by leaf, from the probabilities or values that it answers.

Tramer et al., "Stealing Machine Learning Models via Prediction APIs" (USENIX Security 2016), section 4.2, algorithm 1. All inputs
that reach one leaf get one answer, its *identity*. From an input the thief looks along every number for where the identity changes,
and asks every other value of every category; what agrees is the leaf's box, and beyond each of its faces lies another leaf.

Six things differ from the paper, and save most of the questions or mend what it cannot do:

    what lies in a box that is known already is not asked again
    changes of a feature that never led out of a leaf so far are asked several at once
    a place where one leaf ends on a feature is tried first where another one has to end, since one node makes many faces
    leaves that share an identity look like one along a line; points drawn from a box show it, and the box is cut until all agree
    a threshold is looked for at round numbers, and not left coarser than a small share of its feature's range
    at the end inputs are asked anew until enough agree, see `garrison.attacks.extraction.proving`

Invariant: with a large enough budget every box that is handed over gave one identity wherever it was asked. Not covered: a region that
no drawn point met, which the last check bounds; answers that differ from row to row for another reason than the tree
(rounding is none, misinformation is), which lead to boxes that describe the answers, not the tree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least, positive
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.boxes import Box, Region, Space
from garrison.attacks.extraction.leaves import Tree, moved, tree_obstacle
from garrison.attacks.extraction.proving import Prover, kept_back
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts, SpentError
from garrison.types import FloatArray

_CORNERS = 2
Change = tuple[int, float]
"""A feature, and what it is changed to."""


class PathFinding(Attack, frozen=True):
    """Find every leaf of a tree, and what it answers.

    Attributes:
        epsilon: how exactly a threshold is found, in the feature's own units; whole-number features are found exactly.
        checks: points drawn from each box to see whether it is one leaf.
        doubts: the same for boxes that share their identity with another one, at the end.
        sweep: points drawn from everywhere at the end, half of them between surrogate rows; those in no box are explored.
        proof: inputs that have to agree in a row at the very end, at least; 0 for no check. Where leaves share their answer it is more,
            see `garrison.attacks.extraction.proving`.
    """

    name: ClassVar[str] = "path-finding"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    epsilon: float = 1e-3
    checks: int = 8
    doubts: int = 12
    sweep: int = 2000
    proof: int = 200

    def __post_init__(self) -> None:
        positive(self, "epsilon")
        at_least(self, 0, "checks", "doubts", "sweep", "proof")

    def obstacle(self, facts: OracleFacts) -> str:
        return tree_obstacle(facts)

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        space = Space.of(oracle.facts, self.epsilon, knowledge.categorical)
        surrogate = space.flat(knowledge.surrogate)
        explorer = Explorer(Tree(oracle, space, kept_back=kept_back(self.proof, oracle)), rng, surrogate, self.checks)
        prover = Prover(explorer.tree, rng, surrogate, self.proof)
        try:
            explorer.explore([space.draw(rng, space.whole)])
            while True:
                self._complete(explorer)
                explorer.tree.merge()
                points, found = prover.errors()
                if not found:
                    break
                explorer.mend(points, found)
        except SpentError:
            prover.measure()  # what is known by now is the loot
        return tree_loot(explorer.tree, prover)

    def _complete(self, explorer: Explorer) -> None:
        """Explore what lies in no box, and look closer at boxes that share their identity, until neither finds anything."""
        space, left = explorer.tree.space, True
        while left:  # what a doubt took away may leave a gap
            left = False
            for points in sweeps(space, explorer.surrogate, self.sweep, explorer.rng):
                uncovered = explorer.tree.outside(space.narrowed(points))
                left = left or bool(uncovered)
                explorer.explore(uncovered)
            left = explorer.doubt(self.doubts) or left


def tree_loot(tree: Tree, prover: Prover) -> Loot:
    """The leaves as a clone, and what the attack says of itself: what was found, and what its last check covers."""
    space, leaves = tree.space, len(tree.boxes)
    told = {
        "leaves found": float(leaves),
        "questions a leaf": tree.oracle.rows / max(1, leaves),
        "leaves that share their answer": float(len(tree.shared())),
    }
    return Loot(lambda rows: tree.predict(space.flat(rows)), told | dict(prover.told()), settled=prover.settled)


def sweeps(space: Space, surrogate: FloatArray, count: int, rng: np.random.Generator) -> Iterable[FloatArray]:
    """Points from everywhere, then points that take each feature from a surrogate row of their own."""
    half = count // 2
    if half:
        yield np.array([space.draw(rng, space.whole) for _ in range(half)])
    if len(surrogate):
        mixed = surrogate[rng.integers(len(surrogate), size=(count - half, len(space.low))), np.arange(len(space.low))]
        yield np.clip(mixed, space.low, space.high)


@dataclass(slots=True)
class Explorer:
    """Goes from leaf to leaf."""

    tree: Tree
    rng: np.random.Generator
    surrogate: FloatArray
    checks: int
    sure: list[Box] = field(default_factory=list)
    telling: set[Change] = field(default_factory=set)

    def doubt(self, draws: int) -> bool:
        """Look closer at boxes that share their identity with another: along a line they may have been taken for one leaf.

        Returns:
            Whether any of them was wrong.

        Raises:
            SpentError: the budget is used up.
        """
        any_wrong = False
        while draws and (doubtful := [b for b in self.tree.shared() if not any(b is other for other in self.sure)]):
            box = doubtful[0]
            self.sure.append(box)
            points = np.array([self.tree.draw(self.rng, box.region, self.surrogate) for _ in range(draws)])
            found = self.tree.fresh_identities(points)
            wrong = [i for i, identity in enumerate(found) if identity != box.identity]
            if wrong:
                any_wrong = True
                self.mend(points[wrong], [found[i] for i in wrong])
        return any_wrong

    def mend(self, points: FloatArray, identities: Sequence[bytes]) -> None:
        """Find anew what points (n, features) of these identities show to be wrong: the boxes that claim one and have another identity.

        Raises:
            SpentError: the budget is used up, or this is no tree.
        """
        wrong = self.tree.remove_wrong(points, identities)
        self.explore([*(box.point for box, _ in wrong), *points])  # the last come first: they bound the others

    def explore(self, points: Iterable[FloatArray]) -> None:
        """Find the boxes of these points, and of all that are reached from there.

        Raises:
            SpentError: the budget is used up, or this is no tree.
        """
        waiting = list(points)
        while waiting:
            point = self.tree.space.narrowed(waiting.pop()[np.newaxis])[0]
            if self.tree.is_smooth():
                raise SpentError
            if self.tree.place(point[np.newaxis])[0] < 0:
                waiting += self._box_of(point)

    def _box_of(self, x: FloatArray) -> list[FloatArray]:
        """Add the box around x; returns points behind its faces, and points that it was cut off from."""
        tree = self.tree
        own = tree.identity(x)
        region = tree.space.whole
        behind: list[FloatArray] = []
        for i, end in self._leaving(x, own):
            region, at = self._cut(region, x, i, end)
            behind.append(moved(moved(x, i, end), i, at))
        region = self._cut_from_known(x, own, region)
        region, off = self._check(x, own, region)
        tree.add(Box(region, own, tree.answer(x), x))
        return behind + off

    def _leaving(self, x: FloatArray, own: bytes) -> list[Change]:
        """The changes of one feature, to an end of a number or to another value of a category, that lose the identity.

        A change that never lost one so far is asked together with such changes of other features: a leaf that tests none of them
        keeps its identity. Where it is lost, halves are asked, down to the change that did it.
        """
        changes = self._changes(x)
        alone = [change for change in changes if change in self.telling]
        groups = [[change] for change in alone] + _apart([change for change in changes if change not in self.telling])
        found: list[Change] = []
        while groups:
            points = np.array([_all_moved(x, group) for group in groups])
            lost = [g for g, identity in zip(groups, self.tree.identities(points), strict=True) if identity != own]
            found += [group[0] for group in lost if len(group) == 1]
            groups = [half for g in lost if len(g) > 1 for half in (g[: len(g) // 2], g[len(g) // 2 :])]
        self.telling.update(found)
        return [change for change in changes if change in set(found)]

    def _changes(self, x: FloatArray) -> list[Change]:
        """Every number to its two ends, every category to its other values."""
        space = self.tree.space
        numbers = [i for i in range(len(x)) if i not in space.values]
        ends = [(i, float(bound[i])) for i in numbers for bound in (space.low, space.high)]
        ends += [(i, float(value)) for i, values in space.values.items() for value in values]
        return [(i, end) for i, end in ends if end != x[i]]

    def _cut(self, region: Region, x: FloatArray, i: int, end: float) -> tuple[Region, float]:
        """The part of a region around x that ends before the identity changes along a feature, and the first value behind."""
        near, far = self.tree.change(x, i, end)
        if i in self.tree.space.values:
            others = self.tree.space.values[i] != far
            return region.only(i, others), far
        return region.cut(i, self.tree.threshold(near, far), below=far > near), far

    def _cut_from_known(self, x: FloatArray, own: bytes, region: Region) -> Region:
        """Make the box end where it would overlap a known one of another identity."""
        numbers = {i: number[0] for i, number in self._numbers(x).items()}
        for box in self.tree.boxes:
            known = box.region
            if box.identity == own or not region.overlaps(known):
                continue
            # Of the features on which x lies outside the other box, the one that costs the least of this one.
            with np.errstate(divide="ignore", invalid="ignore"):
                wide = region.high - region.low
                left = np.where((x <= known.low) & (wide > 0), (region.high - known.low) / wide, np.inf)
                right = np.where((x > known.high) & (wide > 0), (known.high - region.low) / wide, np.inf)
            left[list(numbers)] = right[list(numbers)] = np.inf
            costs = np.minimum(left, right)
            for i, number in numbers.items():
                if not known.allowed[i][number]:
                    costs[i] = (region.allowed[i] & known.allowed[i]).sum() / region.allowed[i].sum()
            i = int(costs.argmin())
            if not np.isfinite(costs[i]):
                continue
            if i in numbers:
                region = region.only(i, ~known.allowed[i])
            else:
                below = bool(left[i] <= right[i])
                region = region.cut(i, float(known.low[i] if below else known.high[i]), below=below)
        return region

    def _numbers(self, x: FloatArray) -> Mapping[int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        return {i: self.tree.space.number_of(i, x[i : i + 1]) for i in self.tree.space.values}

    def _check(self, x: FloatArray, own: bytes, region: Region) -> tuple[Region, list[FloatArray]]:
        """Its two corners, and points drawn from the box; where one has another identity, cut the box between them and draw again."""
        off: list[FloatArray] = []
        agreed = 0
        while agreed < self.checks:
            if agreed < _CORNERS:
                point = self.tree.corner(self.rng, region, high=agreed > 0)
            else:
                point = self.tree.draw(self.rng, region, self.surrogate)
            if self.tree.identity(point) == own:
                agreed += 1
                continue
            agreed = 0
            i, station = walk(self.tree, self.rng, x, point)
            before = station.copy()
            before[i] = x[i]
            smaller, _ = self._cut(region, before, i, float(point[i]))
            if not region.larger_than(smaller):
                break  # two answers closer than epsilon: there is nothing left to cut
            region = smaller
            off.append(point)
        return region, off


def _apart(changes: Iterable[Change]) -> list[list[Change]]:
    """Groups in which no feature is changed twice: the first change of each, the second of each, and so on."""
    groups: list[list[Change]] = []
    count: Counter[int] = Counter()
    for change in changes:
        if count[change[0]] == len(groups):
            groups.append([])
        groups[count[change[0]]].append(change)
        count[change[0]] += 1
    return groups


def _all_moved(x: FloatArray, changes: Iterable[Change]) -> FloatArray:
    found = x.copy()
    for i, value in changes:
        found[i] = value
    return found


def walk(tree: Tree, rng: np.random.Generator, x: FloatArray, y: FloatArray) -> tuple[int, FloatArray]:
    """On a way from x to y, which have different identities, that changes one feature after the other: the feature with which the
    identity of x is lost, and the point behind it."""
    own = tree.identity(x)
    order = rng.permutation(np.flatnonzero((x != y) & ~(np.isnan(x) & np.isnan(y))))

    def station(k: int) -> FloatArray:
        point = x.copy()
        point[order[:k]] = y[order[:k]]
        return point

    same, other = 0, len(order)
    while other - same > 1:
        middle = (same + other) // 2
        if tree.identity(station(middle)) == own:
            same = middle
        else:
            other = middle
    return int(order[same]), station(other)
