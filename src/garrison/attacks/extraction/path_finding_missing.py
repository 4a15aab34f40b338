"""Path finding from the root down, against a service that answers at inner nodes where a feature is missing.

Tramer et al., "Stealing Machine Learning Models via Prediction APIs" (USENIX Security 2016), section 4.2, algorithm 2. A row that lacks
the feature which a node tests is answered by that node. So a row of missing values alone shows the root; the first feature that changes
the answer is the one that the root tests; where along it the answer changes is the threshold; and so on below.

Differs from the paper: the feature that a node tests is found by halving the set of missing ones and not by trying each; points drawn
from what was found show where two nodes share an answer or a feature is tested twice, and the search goes on there.

Invariant: the same as `path_finding`'s, and nothing in the search relies on how missing values are treated: a service that does anything
else with them, equal for equal rows, costs more questions and is found as exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np

from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least, positive
from garrison.attacks.exam import Loot
from garrison.attacks.extraction.boxes import Box, Region, Space
from garrison.attacks.extraction.leaves import Tree, moved, tree_obstacle
from garrison.attacks.extraction.path_finding import tree_loot, walk
from garrison.attacks.extraction.proving import Prover, kept_back
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle, OracleFacts, SpentError
from garrison.types import BoolArray, FloatArray

_WEIGHT = 1.0
"""Half of what path finding spends on its last check: inner nodes answer too, and less stays hidden."""


class PathFindingMissing(Attack, frozen=True):
    """Find every node of a tree from the root down.

    Attributes:
        epsilon: how exactly a threshold is found, in the feature's own units.
        checks: whole rows drawn from each region that looks like a leaf, to see whether it is one.
        looks: rows drawn at each node beside its corners, to see whether a known feature is tested again below.
        doubts: further rows drawn at the end from leaves that share their answer with another one.
        proof: as in `path_finding`.
    """

    name: ClassVar[str] = "path-finding-missing"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    epsilon: float = 1e-3
    checks: int = 8
    looks: int = 0
    doubts: int = 8
    proof: int = 200

    def __post_init__(self) -> None:
        positive(self, "epsilon")
        at_least(self, 1, "checks")
        at_least(self, 0, "looks", "doubts", "proof")

    def obstacle(self, facts: OracleFacts) -> str:
        if facts.missing is None or not np.asarray(facts.missing).all():
            return "it leaves features out, and the service does not allow that for all of them"
        return tree_obstacle(facts)

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        space = Space.of(oracle.facts, self.epsilon, knowledge.categorical)
        descent = Descent(
            Tree(oracle, space, kept_back=kept_back(self.proof, oracle)), rng, space.flat(knowledge.surrogate), self
        )
        prover = Prover(descent.tree, rng, descent.surrogate, self.proof, _WEIGHT)
        try:
            descent.grow(Branch(space.whole, np.full(len(space.low), np.nan)))
            while True:
                descent.doubt()
                points, found = prover.errors()
                if not found:
                    break
                descent.mend(points, found)
        except SpentError:
            prover.measure()  # what is known by now is the loot
        descent.tree.merge()
        return tree_loot(descent.tree, prover)


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A part of the space that ends at one node, as far as is known, for rows that have the point's features alone.

    Attributes:
        region: bounds on the features that the point has; all of the space on the others.
        point: a point of it; NaN where a feature is missing.
    """

    region: Region
    point: FloatArray


@dataclass(slots=True)
class Descent:
    """Goes from the root to the leaves."""

    tree: Tree
    rng: np.random.Generator
    surrogate: FloatArray
    attack: PathFindingMissing
    _sure: list[Box] = field(default_factory=list)

    def grow(self, root: Branch) -> None:
        """Find all leaves below a branch.

        Raises:
            SpentError: the budget is used up.
        """
        waiting = [root]
        while waiting:
            branch = waiting.pop()
            below = self._apart(branch) or self._next_feature(branch)
            if not below:
                # The row that stands for the leaf may lack features that no node on its way tests.
                answer = self.tree.answer(branch.point)
                self.tree.add(Box(branch.region, self.tree.identity(branch.point), answer, branch.point))
            waiting += below

    def doubt(self) -> None:
        """Look closer at leaves that share their answer with another: they may hide one of another answer."""
        while self.attack.doubts:
            doubtful = [box for box in self.tree.shared() if not any(box is other for other in self._sure)]
            if not doubtful:
                return
            box = doubtful[0]
            self._sure.append(box)
            for _ in range(self.attack.doubts):
                point = self.tree.draw(self.rng, box.region, self.surrogate)
                if self.tree.fresh_identities(point[np.newaxis])[0] != box.identity:
                    self.tree.remove(box)
                    self.grow(Branch(box.region, point))
                    break

    def mend(self, points: FloatArray, identities: Sequence[bytes]) -> None:
        """Look again at the leaves that points (n, features) of these identities show to be none.

        Raises:
            SpentError: the budget is used up.
        """
        for box, point in self.tree.remove_wrong(points, identities):
            self.grow(Branch(box.region, point))

    def _apart(self, branch: Branch) -> list[Branch]:
        """The branch in parts, where features that its point has make a difference within its region; else nothing."""
        given = ~np.isnan(branch.point)
        if not given.any():
            return []
        own = self.tree.identity(branch.point)
        for corner in self._corners(branch.region, given):
            other = np.where(given, corner, np.nan)
            if self.tree.identity(other) != own:
                i, station = walk(self.tree, self.rng, branch.point, other)
                return self._parts(branch.region, station, i, float(branch.point[i]))
        return []

    def _corners(self, region: Region, given: BoolArray) -> Iterator[FloatArray]:
        """Points of a region of which a test of any given feature tells some apart: both ends of the numbers, all values of the
        categories; then points drawn from it."""
        values = {i: self.tree.space.values[i][mask] for i, mask in region.allowed.items() if given[i]}
        for k in range(max(2, *(len(some) for some in values.values()), 0)):
            point = self.tree.corner(self.rng, region, high=bool(k % 2))
            for i, some in values.items():
                point[i] = some[k % len(some)]
            yield point
        for _ in range(self.attack.looks):
            yield self.tree.draw(self.rng, region, self.surrogate)

    def _next_feature(self, branch: Branch) -> list[Branch]:
        """The branches below the node that the branch ends at; nothing where it is a leaf."""
        tree, point = self.tree, branch.point
        if not np.isnan(point).any():
            return []
        own = tree.identity(point)
        for _ in range(self.attack.checks):
            whole = tree.draw(self.rng, branch.region, self.surrogate)
            if tree.identity(whole) == own:
                continue
            # Features that the point lacks come first: the node tests one of them.
            other = np.where(np.isnan(point), whole, point)
            if tree.identity(other) == own:
                i, station = walk(tree, self.rng, other, whole)
                return self._parts(branch.region, station, i, float(point[i]))
            i, station = walk(tree, self.rng, point, other)
            alone = moved(point, i, float(station[i]))
            # Where a lone feature changes nothing, the service does not answer at inner nodes: keep the others too.
            start = alone if tree.identity(alone) != own else station
            return self._parts(branch.region, start, i, float(start[i]))
        return []

    def _parts(self, region: Region, point: FloatArray, i: int, value: float) -> list[Branch]:
        """A region in parts along a feature, by where the answer to a point changes as the feature moves.

        Args:
            value: one more value of the feature at which to look, beside the point's own and the ends.
        """
        tree, values = self.tree, self.tree.space.values
        if i in values:
            found: dict[bytes, list[int]] = {}
            for number in np.flatnonzero(region.allowed[i]):
                found.setdefault(tree.identity(moved(point, i, float(values[i][number]))), []).append(int(number))
            numbers = [np.array(same) for same in found.values()]
            masks = [np.isin(np.arange(len(values[i])), same) for same in numbers]
            return [
                Branch(region.only(i, mask), moved(point, i, float(values[i][same[0]])))
                for mask, same in zip(masks, numbers, strict=True)
            ]
        first, last = tree.space.ends(region, i)
        stops = sorted({first, value, float(point[i]), last})
        return self._pieces(region, point, i, stops)

    def _pieces(self, region: Region, point: FloatArray, i: int, stops: list[float]) -> list[Branch]:
        """`_parts` for a number: between neighbouring stops of different answers lies a threshold, or several."""
        tree = self.tree
        cuts: list[float] = []
        for first, last in pairwise(stops):
            at = first
            while tree.identity(moved(point, i, at)) != tree.identity(moved(point, i, last)):
                near, far = tree.change(moved(point, i, at), i, last)
                cuts.append(tree.threshold(near, far))
                at = far
        ends = [float(region.low[i]), *cuts, float(region.high[i])]
        branches = []
        for below, above in pairwise(ends):
            part = region
            part = part.cut(i, below, below=False) if below > region.low[i] else part
            part = part.cut(i, above, below=True) if above < region.high[i] else part
            inside = [stop for stop in stops if (below < stop or below == tree.space.low[i]) and stop <= above]
            value = inside[0] if inside else float(tree.space.draw(self.rng, part)[i])
            branches.append(Branch(part, moved(point, i, value)))
        return branches
