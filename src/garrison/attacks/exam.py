"""What an extraction hands over, and how it is graded: on rows, and against a model, that no attack sees.

Metrics are those of the project's list and are never mixed: accuracy is measured against true classes, fidelity against the
undefended model. What an attack says of itself (`Loot.told`) is carried along under its own name and grades nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from garrison.attacks import measures
from garrison.attacks.oracle import Labels, OracleFacts
from garrison.errors import AuditError
from garrison.types import Array, FloatArray

Clone = Callable[[Array], FloatArray]
"""What an extraction hands over: rows (n, *shape) -> probabilities (n, classes), of a regressor its values (n, outputs). A pure
function, called in slices."""

EQUAL_VALUES = 1e-3
"""Two values of a regressor count as equal within this share of the reference's deviation."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Images that belong together, for a report: a source, a guide, a perturbation, a result.

    Attributes:
        caption: a sentence.
        names: one an image.
        images: each (channels, height, width) in [0, 1], 1 or 3 channels.
    """

    caption: str
    names: tuple[str, ...]
    images: tuple[FloatArray, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Loot:
    """What an attack hands over where a clone alone does not say it.

    Attributes:
        clone: see `Clone`.
        told: what the attack says of itself, such as leaves found or queries a leaf; shown under its name, never graded.
        hyperparameters: what it takes the model's hyperparameters to be; graded against `Exam.hyperparameters`.
        pictures: for the report.
        settled: whether the attack, by a check of its own, has nearly all that it can get. Chooses what else is tried; grades nothing.
    """

    clone: Clone
    told: Mapping[str, float] = field(default_factory=dict)
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()
    settled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Exam:
    """Rows that the loot is measured on; no attack sees them.

    Attributes:
        x: (rows, *shape).
        y: (rows,), true classes; None where there are no labels.
        reference: (rows, classes), the undefended model's probabilities, of a regressor its values; None where that model is not at
            hand.
        uniform: (n, *shape), rows drawn evenly from the range of the inputs; None where no range is stated.
        uniform_reference: (n, classes), the undefended model's answers to them.
        hyperparameters: the true ones, by name.
    """

    x: Array
    y: Labels | None
    reference: FloatArray | None = None
    uniform: Array | None = None
    uniform_reference: FloatArray | None = None
    hyperparameters: Mapping[str, float] = field(default_factory=dict)


def measure_loot(loot: Loot, exam: Exam, facts: OracleFacts) -> dict[str, FloatArray]:
    """By metric, one value a row, or a single one.

    Of a classifier: `clone_accuracy` where the exam has labels, `fidelity` and `total_variation` where it has a reference,
    `uniform_fidelity` where it has one on uniform rows. Of a regressor: `fidelity`, the share of rows within `EQUAL_VALUES`
    of the reference, and `value_error`, the difference in deviations of the reference. Of hyperparameters:
    `relative_error_NAME`, a single number.

    Raises:
        AuditError: the clone answered in another form than promised.
    """
    p = answer_of(loot.clone, exam.x, facts.classes)
    scores = _values(p, exam.reference) if facts.regression else _classes(p, exam)
    if exam.uniform is not None and exam.uniform_reference is not None and not facts.regression:
        named = answer_of(loot.clone, exam.uniform, facts.classes).argmax(axis=1)
        scores["uniform_fidelity"] = measures.correct(named, exam.uniform_reference.argmax(axis=1))
    for name, truth in exam.hyperparameters.items():
        if name in loot.hyperparameters:
            scores[f"relative_error_{name}"] = np.array([abs(loot.hyperparameters[name] - truth) / abs(truth)])
    return scores


def answer_of(clone: Clone, x: Array, classes: int) -> FloatArray:
    """The clone's answers, checked for shape and finiteness."""
    p = np.asarray(clone(x))
    if p.shape != (len(x), classes) or not np.isfinite(p).all():
        raise AuditError(f"the clone answered {p.shape} for {len(x)} rows, expected finite ({len(x)}, {classes})")
    return p


def _classes(p: FloatArray, exam: Exam) -> dict[str, FloatArray]:
    first = p.argmax(axis=1)
    scores = {} if exam.y is None else {"clone_accuracy": measures.correct(first, exam.y)}
    if exam.reference is not None:
        scores["fidelity"] = measures.correct(first, exam.reference.argmax(axis=1))
        scores["total_variation"] = measures.total_variation(p, exam.reference)
    return scores


def _values(p: FloatArray, reference: FloatArray | None) -> dict[str, FloatArray]:
    if reference is None:
        return {}
    spread = float(reference.std()) or 1.0
    error: FloatArray = np.abs(p - reference).max(axis=1) / spread
    return {"fidelity": (error <= EQUAL_VALUES).astype(np.float64), "value_error": error}


def chance_levels(exam: Exam, facts: OracleFacts) -> dict[str, float]:
    """What a constant answer gets, by metric."""
    if facts.regression:
        return {}
    found = {} if exam.y is None else {"clone_accuracy": measures.most_frequent_share(exam.y)}
    if exam.reference is not None:
        found["fidelity"] = measures.most_frequent_share(exam.reference.argmax(axis=1))
    if exam.uniform_reference is not None:
        found["uniform_fidelity"] = measures.most_frequent_share(exam.uniform_reference.argmax(axis=1))
    return found


def unit_of(metric: str) -> str:
    """What a metric's value is counted in."""
    if metric.startswith("relative_error_"):
        return "relative error"
    return {"value_error": "deviations"}.get(metric, "fraction")
