"""What an evasion attack is: it moves one picture a little until the service names another class (OWASP ML01).

An attack is a frozen, strict value that writes `search`: a coroutine over one picture, which yields rows to be asked and is sent the answers. So one
picture knows nothing of another, and what is found for it does not depend on which others are attacked beside it. The base's `carry_out` asks, meters,
holds the budget, notes the first row that would do, and measures what was found: an attack does not grade itself.

Distances are shares of each feature's stated range: 8/255 is the same change for pictures in [0, 1] and in 0 to 255.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import msgspec
import numpy as np
import numpy.typing as npt

from garrison.attacks.base import Goal
from garrison.attacks.draws import has_range
from garrison.attacks.evasion.box import Box, Norm
from garrison.attacks.oracle import ROWS_A_REQUEST, Answers, Labels, MeteredOracle, Oracle, OracleFacts
from garrison.errors import AuditError, QueryBudgetError
from garrison.types import Array, BoolArray, FloatArray

Search = Generator[FloatArray, Answers, FloatArray]
"""Yields rows in [0, 1], shape (k, *shape), at least one and at most as many as the budget leaves; is sent their answers; returns the picture found."""
Judge = Callable[[Array], Labels]
"""Rows -> the class that each is named, -1 where there is none."""
Counts = npt.NDArray[np.int64]
ROUNDING = 1e-5
"""A distance may be this share above what is allowed: single precision."""
_AXES_OF_A_PICTURE = 3


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What an attack begins with.

    Attributes:
        x: the picture, in [0, 1], of a row's shape.
        label: its true class, which the service names too.
        soft: whether answers come with probabilities.
        budget: rows that may be asked.
        others: pictures of the model's own kind that the attacker has, in [0, 1]; may be none.
    """

    x: FloatArray
    label: int
    soft: bool
    budget: int
    others: FloatArray

    def fooled(self, answers: Answers) -> BoolArray:
        """Rows that got a class, and another than the true one. Neither a refusal nor "uncertain" is one."""
        found: BoolArray = answers.usable & (answers.labels != self.label)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Pictures to be attacked: all are named rightly by the service.

    Attributes:
        x: (pictures, *shape), in the service's dtype.
        y: (pictures,), true classes.
        others: (n, *shape), pictures of the model's own kind that the attacker has.
        accounts: (pictures,), the account that each is attacked from; None for account 0.
    """

    x: Array
    y: Labels
    others: Array | None = None
    accounts: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EvasionTrial:
    """One attack with one budget and one seed on some pictures; arrays have one entry a picture.

    Attributes:
        attack: with all its parameters, as it prints itself.
        epsilon, norm: what counted as a success.
        budget: rows that might be asked for a picture.
        queries: rows that were.
        succeeded_at: number of the first row asked, from 1, that lay within `epsilon` and was named another class; 0 for none.
        found: the pictures that the attack handed over, in the service's dtype.
        distance: of those.
        fools: by judge, whether it names the picture found another class, and that picture lies within `epsilon`.
        unanswered: of all rows asked, those that were refused or lost.
        seconds, waiting: wall time, and that of waiting for answers.
    """

    attack: str
    epsilon: float
    norm: Norm
    budget: int
    seed: int
    queries: Counts
    succeeded_at: Counts
    found: Array
    distance: FloatArray
    fools: Mapping[str, BoolArray]
    unanswered: int
    seconds: float
    waiting: float


class Evasion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every evasion attack: its fields are its parameters. Subclasses write `search`.

    Attributes:
        norm: "linf" bounds the largest change of a value, "l2" the root of the summed squares.
        epsilon: largest change that counts as a success, in shares of the range.
    """

    name: ClassVar[str]
    goal: ClassVar[Goal] = Goal.EVASION

    norm: Norm = "linf"
    epsilon: float = 8 / 255

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"{self.name}: epsilon must be above 0 and finite, found {self.epsilon}")

    def obstacle(self, facts: OracleFacts) -> str:
        """Why this attack cannot be carried out against such a service; "" where it can."""
        if facts.regression:
            return "a regressor names no classes"
        if not has_range(facts):
            return "the service does not state the range of its inputs"
        return ""

    def search(self, start: Start, rng: np.random.Generator) -> Search:
        """Look for a picture near `start.x` that is named another class; see `Search`. Draws all randomness from `rng`."""
        raise NotImplementedError

    @final
    def carry_out(
        self,
        oracle: Oracle,
        pictures: Pictures,
        judges: Mapping[str, Judge],
        *,
        budget: int,
        seed: int,
        at_once: int = 64,
    ) -> EvasionTrial:
        """Attack all pictures under one meter, and have what was found judged.

        Args:
            oracle: the service.
            pictures: at least one.
            judges: by name, who says whether a picture fools it: the undefended model, and the service as another user asks it.
            budget: most rows for a picture.
            seed: of all randomness; what is drawn for a picture depends on its place among them and on nothing else.
            at_once: pictures that are attacked side by side; 1 for one after the other.

        Raises:
            QueryBudgetError: the budget is below 1, or the attack asked for more.
            AuditError: the attack cannot be carried out here, see `obstacle`.
        """
        why_not = self.obstacle(oracle.facts)
        if why_not:
            raise AuditError(f"{self.name}: {why_not}")
        if budget < 1 or not len(pictures.x):
            raise QueryBudgetError(f"a budget of {budget} rows for each of {len(pictures.x)} pictures asks nothing")
        begun = time.perf_counter()
        chase = _Chase(self, oracle, pictures, budget, seed)
        for first in range(0, len(pictures.x), max(1, at_once)):
            chase.run(range(first, min(first + max(1, at_once), len(pictures.x))))
        seconds = time.perf_counter() - begun
        distance = np.concatenate([chase.distance(i, chase.found[i : i + 1]) for i in range(len(pictures.x))])
        near = distance <= self.epsilon * (1 + ROUNDING)
        return EvasionTrial(
            attack=repr(self),
            epsilon=self.epsilon,
            norm=self.norm,
            budget=budget,
            seed=seed,
            queries=chase.queries,
            succeeded_at=chase.succeeded_at,
            found=chase.found,
            distance=distance,
            fools={name: near & _fooled(judge(chase.found), pictures.y) for name, judge in judges.items()},
            unanswered=chase.meter.refused,
            seconds=seconds,
            waiting=chase.meter.seconds,
        )


def needs_pictures(facts: OracleFacts) -> str:
    """Why an attack that places squares in a picture cannot be carried out; "" where it can."""
    if len(facts.shape) != _AXES_OF_A_PICTURE:
        return f"it changes squares of a picture (channels, height, width); the service takes rows of shape {list(facts.shape)}"
    return ""


def _fooled(labels: Labels, y: Labels) -> BoolArray:
    found: BoolArray = (labels >= 0) & (labels != y)
    return found


@dataclass(slots=True)
class _Chase:
    """The searches of one trial."""

    attack: Evasion
    oracle: Oracle
    pictures: Pictures
    budget: int
    seed: int
    meter: MeteredOracle = field(init=False)
    queries: Counts = field(init=False)
    succeeded_at: Counts = field(init=False)
    found: Array = field(init=False)
    _box: Box = field(init=False)
    _others: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        x, facts = self.pictures.x, self.oracle.facts
        # A request that is refused for one of its rows is asked again row by row, once.
        self.meter = MeteredOracle(self.oracle, self.budget * len(x) + ROWS_A_REQUEST)
        self.queries, self.succeeded_at = (np.zeros(len(x), dtype=np.int64) for _ in range(2))
        self.found = np.array(x, dtype=facts.dtype)
        self._box = Box.of(facts)
        others = self.pictures.others
        self._others = self._box.scaled(x[:0] if others is None else others)

    def distance(self, picture: int, rows: Array) -> FloatArray:
        """Of rows from the picture that was begun with."""
        return self._box.distance(rows, self.pictures.x[picture], self.attack.norm)

    def run(self, numbers: Sequence[int]) -> None:
        """Attack these pictures side by side."""
        searches = {i: self._search(i) for i in numbers}
        wishes: dict[int, Array] = {}
        for i, search in searches.items():
            self._go_on(i, search, None, wishes)
        while wishes:
            answers, wishes = self._ask(wishes), {}
            for i, found in answers.items():
                self._go_on(i, searches[i], found, wishes)

    def _search(self, i: int) -> Search:
        start = Start(
            self._box.scaled(self.pictures.x[i : i + 1])[0],
            int(self.pictures.y[i]),
            self.oracle.facts.soft,
            self.budget,
            self._others,
        )
        return self.attack.search(start, np.random.default_rng([self.seed, i]))

    def _go_on(self, i: int, search: Search, answers: Answers | None, wishes: dict[int, Array]) -> None:
        try:
            asked = next(search) if answers is None else search.send(answers)
        except StopIteration as done:
            self.found[i] = self._box.rows(done.value[np.newaxis], self.pictures.x[i])[0]
            return
        left = self.budget - int(self.queries[i])
        if not 1 <= len(asked) <= left:
            raise QueryBudgetError(
                f"{self.attack.name}: {len(asked)} rows were asked for, {left} of the budget are left"
            )
        wishes[i] = self._box.rows(asked, self.pictures.x[i])

    def _ask(self, wishes: Mapping[int, Array]) -> dict[int, Answers]:
        """One request for all of them, or one for each where they have accounts of their own."""
        accounts = self.pictures.accounts
        if accounts is not None:
            found = {i: self.meter.query(rows, account=int(accounts[i])) for i, rows in wishes.items()}
        else:
            whole = self.meter.query(np.concatenate(list(wishes.values())))
            ends = np.cumsum([len(rows) for rows in wishes.values()])
            parts = zip(wishes, ends, strict=True)
            found = {i: whole[np.arange(end - len(wishes[i]), end)] for i, end in parts}
        for i, rows in wishes.items():
            self._note(i, rows, found[i])
        return found

    def _note(self, i: int, rows: Array, answers: Answers) -> None:
        fooled = answers.usable & (answers.labels != self.pictures.y[i])
        if not self.succeeded_at[i] and fooled.any():
            near = fooled & (self.distance(i, rows) <= self.attack.epsilon * (1 + ROUNDING))
            if near.any():
                self.succeeded_at[i] = self.queries[i] + 1 + int(np.argmax(near))
        self.queries[i] += len(rows)
