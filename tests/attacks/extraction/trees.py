"""Real trees for the tests of path finding, the rows they were trained on, and what an attack got of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from garrison import datasets
from garrison.attacks.base import Attack, Trial
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.tree_service import Columns, TreeService
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Oracle
from garrison.types import Array

Categories = Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class German:
    """German credit: 1,000 rows, 20 features, 13 of them categories with numbers for values."""

    x: Array
    y: Array
    categories: Categories


def german() -> German:
    data = datasets.load("german-credit", "all")
    assert data.y is not None
    names = list(data.features)
    categories = {names.index(k): tuple(map(float, range(len(v)))) for k, v in data.categories.items()}
    return German(data.x.astype(np.float32), data.y, categories)


def table(name: str) -> tuple[Array, Array]:
    """Rows of a data set as they come, without what is missing, and their classes; "unscaled" has ten features with ranges from 1 to 1e5,
    and two classes that no single one tells apart."""
    if name != "unscaled":
        data = datasets.load(name, "all")
        assert data.y is not None
        return np.nan_to_num(data.x.astype(np.float32)), data.y
    z = np.random.default_rng(3).random((2000, 10))
    y = (z[:, 0] > 0.5) ^ (z[:, 3] > 0.5) | (z[:, 5] + z[:, 7] * z[:, 9] > 0.9)
    return (z * 10.0 ** np.linspace(0, 5, 10)).astype(np.float32), y.astype(np.int64)


def tree_service(data: German, leaves: int, *, categories: bool, **options: Any) -> TreeService:
    """A tree behind the service that answers at inner nodes; with `categories` it tests them value by value."""
    columns = Columns(data.x.shape[1], data.categories if categories else None)
    model = DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=0).fit(columns.encoded(data.x), data.y)
    return TreeService(model, data.x.min(axis=0), data.x.max(axis=0), columns=columns, **options)


def everywhere(target: Oracle, categories: Categories, count: int = 10_000, seed: int = 9) -> Array:
    """Rows drawn evenly from the stated ranges, and from the values of categories."""
    rng, facts = np.random.default_rng(seed), target.facts
    if facts.dtype.kind in "iu":
        rows: Array = rng.integers(facts.low, facts.high + 1, (count, *facts.shape)).astype(facts.dtype)
    else:
        drawn = (facts.low + rng.random((count, *facts.shape)) * (facts.high - facts.low)).astype(facts.dtype)
        rows = np.clip(drawn, facts.low, facts.high)
    for i, values in categories.items():
        rows[:, i] = rng.choice(np.array(values), count)
    return rows


def answers(target: Oracle, rows: Array) -> Array:
    found = target.query(rows)
    vector = found.values if target.facts.regression else found.probabilities
    assert vector is not None
    return vector


def steal(
    target: Oracle,
    x: Array,
    attack: Attack,
    *,
    categories: Categories | None = None,
    budget: int = 20_000,
    seed: int = 0,
    knowledge: Knowledge | None = None,
) -> Trial:
    """The trial, graded on the rows and on 10,000 uniform ones. The thief has uniform rows alone."""
    known = categories or {}
    uniform = everywhere(target, known)
    exam = Exam(x, None, answers(target, x), uniform, answers(target, uniform))
    own = knowledge or Knowledge(everywhere(target, known, 300, seed=77), categorical=known)
    return attack.carry_out(target, own, exam, budget=budget, seed=seed)


def exact(trial: Trial) -> bool:
    """Whether every answer is right: fidelity and uniform fidelity 1, and the probabilities the same but for rounding."""
    classes = min(trial.scores[name].min() for name in ("fidelity", "uniform_fidelity")) == 1.0
    return bool(classes and trial.scores["total_variation"].max() < 1e-6)
