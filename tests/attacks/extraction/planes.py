"""Real models that answer labels alone, and the rows they were trained on, for the tests of the attacks with labels alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from garrison import datasets
from garrison.attacks.base import Attack, Trial
from garrison.attacks.exam import Exam
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, Labels, OracleFacts
from garrison.types import Array


@dataclass
class LabelService:
    """A classifier of scikit-learn whose answers are classes alone, in single precision.

    Attributes:
        spoil: changes the classes before they are answered, for a defended arm.
        asked: rows so far.
    """

    model: Any
    low: Array
    high: Array
    spoil: Callable[[Array, Labels], Labels] | None = None
    asked: int = 0

    @property
    def facts(self) -> OracleFacts:
        low, high = self.low.astype(np.float32), self.high.astype(np.float32)
        return OracleFacts(low.shape, np.dtype(np.float32), low, high, len(self.model.classes_), soft=False)

    @property
    def features(self) -> int:
        """Features that can vary."""
        return int((self.high > self.low).sum())

    def truth(self, x: Array) -> Labels:
        named = self.model.predict(x.astype(np.float64))
        found: Labels = np.searchsorted(self.model.classes_, named).astype(np.int64)
        return found

    def query(self, x: Array) -> Answers:
        self.asked += len(x)
        labels, nobody = self.truth(x), np.zeros(len(x), dtype=np.bool_)
        return Answers(labels if self.spoil is None else self.spoil(x, labels), None, nobody, nobody)


def table(name: str, split: str) -> tuple[Array, Array]:
    """Rows and classes of a table; a category becomes a column a value, a number to predict is halved at its median."""
    data, train = datasets.load(name, split), datasets.load(name, "train")
    assert data.y is not None
    assert train.y is not None
    names, columns = list(data.features), []
    sizes = {names.index(key): len(values) for key, values in data.categories.items()}
    for i, column in enumerate(data.x.T):
        columns += [column == value for value in range(sizes[i])] if i in sizes else [np.nan_to_num(column)]
    y = data.y if data.y.dtype.kind == "i" else data.y > np.median(train.y)
    return np.stack(columns, axis=1).astype(np.float64), y.astype(np.int64)


def label_service(model: Any, name: str, most: int = 8000) -> LabelService:
    """The model trained on a table's training rows."""
    x, y = table(name, "train")
    return LabelService(model.fit(x[:most], y[:most]), x.min(axis=0), x.max(axis=0))


def steal(target: LabelService, test: Array, attack: Attack, *, budget: int, seed: int = 0) -> Trial:
    """The trial, graded on test rows and on 10,000 uniform ones. The thief has uniform rows alone."""
    rng, facts, kinds = np.random.default_rng(99), target.facts, np.eye(len(target.model.classes_))
    uniform = (facts.low + rng.random((10_500, *facts.shape)) * (facts.high - facts.low)).astype(np.float32)
    uniform = np.clip(uniform, facts.low, facts.high)
    own, uniform = uniform[:500], uniform[500:]
    x = test.astype(np.float32)
    exam = Exam(x, None, kinds[target.truth(x)], uniform, kinds[target.truth(uniform)])
    return attack.carry_out(target, Knowledge(own), exam, budget=budget, seed=seed)


def fidelities(trial: Trial) -> tuple[float, float]:
    """On test rows and on uniform ones."""
    return float(trial.scores["fidelity"].mean()), float(trial.scores["uniform_fidelity"].mean())
