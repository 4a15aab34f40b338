"""The small learners that a thief with labels alone trains: linear, a support vector machine with a Gaussian kernel, a small network.

Invariant: equal points, classes and seed give an equal learner. Points are `garrison.attacks.extraction.ground`'s. Classes that no
answer named get the lowest score. Needs scikit-learn, and says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from garrison.attacks.exam import Clone
from garrison.attacks.extraction.bayes_point import BayesPoint
from garrison.attacks.extraction.ground import Ground
from garrison.attacks.oracle import Labels
from garrison.errors import MissingExtraError
from garrison.types import Array, FloatArray

try:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC
except ImportError as error:
    raise MissingExtraError("scikit-learn", "sklearn") from error

Family = Literal["linear", "rbf", "net"]
FAMILIES: tuple[Family, ...] = ("linear", "rbf", "net")
_WIDTHS = tuple(float(2.0**k) for k in range(-4, 4))
"""Kernel widths that are tried, as multiples of 1 / features."""
_MOST_FOR_WIDTH = 600
_FOLDS = 3
_MOST_ROUNDS = 400
_MOST_STEPS = 200_000
_STIFF = 1e3
"""Labels of a model hold no noise, so a clone is hardly regularised."""
_SETTLING = 30
_SLICE = 4096


class Learner(Protocol):
    """Trained on points and classes; gives scores (n, classes) whose largest names the class."""

    def scores(self, points: FloatArray) -> FloatArray: ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Nothing was learnt, or one class alone."""

    classes: int
    label: int

    def scores(self, points: FloatArray) -> FloatArray:
        found = np.zeros((len(points), self.classes))
        found[:, max(self.label, 0)] = 1.0
        return found


@dataclass(frozen=True, slots=True)
class Plane:
    """The middle of all planes between two classes that explain the answers."""

    posterior: BayesPoint

    def scores(self, points: FloatArray) -> FloatArray:
        side = self.posterior.side(points)
        return np.stack([-side, side], axis=1)


@dataclass(frozen=True, slots=True)
class Estimator:
    """A trained estimator of scikit-learn."""

    model: Any
    classes: int

    def scores(self, points: FloatArray) -> FloatArray:
        parts = [self._scores(points[i : i + _SLICE]) for i in range(0, len(points), _SLICE)]
        return np.concatenate(parts) if parts else np.zeros((0, self.classes))

    def _scores(self, points: FloatArray) -> FloatArray:
        probable = hasattr(self.model, "predict_proba")
        raw = self.model.predict_proba(points) if probable else self.model.decision_function(points)
        if raw.ndim == 1:
            raw = np.stack([-raw, raw], axis=1)
        found = np.full((len(points), self.classes), raw.min(initial=0.0) - 1.0)
        found[:, self.model.classes_] = raw
        return found


def train(
    family: Family, points: FloatArray, labels: Labels, classes: int, *, hidden: int, settings: Mapping[str, float]
) -> Learner:
    """A learner of a family on what was answered.

    Args:
        points: (n, features).
        labels: (n,), the answered classes.
        hidden: units of a network's one hidden layer.
        settings: of `settings_for`.
    """
    named = np.unique(labels)
    if len(named) < 2:
        return Constant(classes, int(named[0]) if len(named) else 0)
    if family == "linear" and classes == 2:
        return Plane(posterior_of(points, labels))
    model: Any
    if family == "linear":
        model = LogisticRegression(C=_STIFF, max_iter=2000)
    elif family == "rbf":
        model = SVC(C=_STIFF, gamma=settings["gamma"], cache_size=500, max_iter=_MOST_STEPS)
    else:
        model = MLPClassifier(
            (hidden,), "tanh", solver="lbfgs", alpha=settings["decay"], max_iter=_MOST_ROUNDS, random_state=0
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more steps would not change the classes
        return Estimator(model.fit(points, labels), classes)


def posterior_of(points: FloatArray, labels: Labels) -> BayesPoint:
    """The planes that explain the answers of two classes, 0 and 1."""
    posterior = BayesPoint(points.shape[1])
    for point, label in zip(points, labels, strict=True):
        posterior.learn(point, 1.0 if label == 1 else -1.0)
    posterior.settle(_SETTLING)
    return posterior


def settings_for(family: Family, points: FloatArray, labels: Labels, classes: int, hidden: int) -> dict[str, float]:
    """What a family is told beside the answers, chosen by cross-validation on them."""
    features = max(1, points.shape[1])
    if family == "rbf":
        tried = [{"gamma": width / features} for width in _WIDTHS]
    elif family == "net":
        tried = [{"decay": decay} for decay in (1e-4, 1e-2)]
    else:
        return {}
    points, labels = _some(points, labels)
    shares = [agreement(family, points, labels, classes, hidden=hidden, settings=each) for each in tried]
    return tried[int(np.argmax(shares))]


def family_of(points: FloatArray, labels: Labels, classes: int, hidden: int) -> Family:
    """The family that foretells answers best from other answers; of equal ones the simplest."""
    shares = []
    for family in FAMILIES:
        settings = settings_for(family, points, labels, classes, hidden)
        few, named = _some(points, labels)
        shares.append(agreement(family, few, named, classes, hidden=hidden, settings=settings))
    return FAMILIES[int(np.argmax(shares))]


def _some(points: FloatArray, labels: Labels) -> tuple[FloatArray, Labels]:
    """At most so many of the answers, from all rounds alike."""
    kept = np.unique(np.linspace(0, len(points) - 1, _MOST_FOR_WIDTH).astype(np.int64)) if len(points) else slice(0)
    return points[kept], labels[kept]


def agreement(
    family: Family, points: FloatArray, labels: Labels, classes: int, *, hidden: int, settings: Mapping[str, float]
) -> float:
    """Share of answers that a learner on the others foretells, by folds."""
    fold = np.arange(len(points)) % _FOLDS
    right = 0
    for k in range(_FOLDS):
        held = fold == k
        learner = train(family, points[~held], labels[~held], classes, hidden=hidden, settings=settings)
        right += int((learner.scores(points[held]).argmax(axis=1) == labels[held]).sum())
    return right / max(1, len(points))


def clone_of(ground: Ground, learner: Learner, classes: int) -> Clone:
    """What is handed over: one for the class, zero for the others; labels tell no more."""

    def answer(rows: Array) -> FloatArray:
        found = np.zeros((len(rows), classes))
        found[np.arange(len(rows)), learner.scores(ground.points(rows)).argmax(axis=1)] = 1.0
        return found

    return answer
