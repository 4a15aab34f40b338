"""Refuses to grade what is wired wrongly: a report on a wrongly wrapped model is worse than none.

Not checked: whether the data are what their names say, and whether the service answers an auditor as it answers others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from garrison.attacks.measures import most_frequent_share, share
from garrison.attacks.oracle import Answers, Labels, OracleFacts
from garrison.audit.data import AuditData, Rows
from garrison.audit.targets import Target
from garrison.errors import GarrisonError, PreflightError
from garrison.types import Array, BoolArray, FloatArray

LEAST_AGREEMENT = 0.9
"""Least share of rows, of those that the guard leaves alone, on which a target and its reference must name the same class."""
_SUM_TOLERANCE = 1e-3
_MOST_DECIMALS = 6
_ROUNDING = {2: 1e-2, 4: 1e-5, 8: 1e-12}
"""By bytes of a float, the relative change that a cast may bring."""
_SLICE = 4096


def check_rows(facts: OracleFacts, data: AuditData) -> None:
    """Raise `PreflightError` where the rows are not of the shape, type or range that the target takes."""
    for rows in (
        r for r in (data.test, data.surrogate, data.outside, data.own, *data.others.values()) if r is not None
    ):
        if rows.x.shape[1:] != facts.shape:
            raise PreflightError(
                f"{rows.source}: rows have the shape {list(rows.x.shape[1:])}, the target takes {list(facts.shape)}"
            )
        if not np.can_cast(rows.x.dtype, facts.dtype, "same_kind"):
            raise PreflightError(f"{rows.source}: {rows.x.dtype} cannot become the target's {facts.dtype} without loss")
        lost = _share_lost(rows.x, facts)
        if lost:
            raise PreflightError(
                f"{rows.source}: {lost:.1%} of the values change when they become the target's {facts.dtype}, as fractions cast to "
                "whole numbers do: prepare the rows as the model takes them"
            )
        beyond = _rows_beyond(rows.x, facts)
        if beyond:
            raise PreflightError(
                f"{rows.source}: {beyond} of {len(rows.x)} rows hold values outside the range that the target allows; bring them "
                "into it first"
            )


def check_knowledge(facts: OracleFacts, data: AuditData, categorical: Mapping[int, tuple[float, ...]]) -> None:
    """Raise `PreflightError` where the training rows, or the features that are categories, are not the target's."""
    if data.training is not None and data.training.x.shape[1:] != facts.shape:
        raise PreflightError(
            f"{data.training.source}: training rows have the shape {list(data.training.x.shape[1:])}, the target takes {list(facts.shape)}"
        )
    low, high = (np.broadcast_to(edge, facts.shape).reshape(-1) for edge in (facts.low, facts.high))
    for number, values in categorical.items():
        if number >= len(low):
            raise PreflightError(f"categorical: there is no feature {number}, the target has {len(low)}")
        if min(values) < low[number] or max(values) > high[number]:
            raise PreflightError(
                f"categorical: feature {number} is named values outside the range that the target allows"
            )


def _share_lost(x: Array, facts: OracleFacts) -> float:
    """Share of values that a cast to the target's type changes by more than single precision rounds; of the first rows."""
    part = x[:_SLICE].astype(np.float64)
    cast = x[:_SLICE].astype(facts.dtype).astype(np.float64)
    same = np.isclose(
        part, cast, rtol=_ROUNDING[facts.dtype.itemsize] if facts.dtype.kind == "f" else 0, equal_nan=True
    )
    return float(1.0 - same.mean())


def _rows_beyond(x: Array, facts: OracleFacts) -> int:
    """Rows with a value outside the target's range. NaN is left to the service, which knows where a value may be missing."""
    count = 0
    for first in range(0, len(x), _SLICE):
        part = x[first : first + _SLICE]
        wrong = ~((part >= facts.low) & (part <= facts.high))
        if part.dtype.kind == "f":
            wrong &= ~np.isnan(part)
        count += int(wrong.reshape(len(part), -1).any(axis=1).sum())
    return count


def check_classes(facts: OracleFacts, names: tuple[str, ...], test: Rows) -> None:
    """Raise `PreflightError` where the test rows' classes are not the target's."""
    if test.y is None or test.y.min() < 0 or test.y.max() >= facts.classes:
        raise PreflightError(f"{test.source}: class numbers must lie in 0 to {facts.classes - 1}, the target's classes")
    if test.labels and len(test.labels) != facts.classes:
        raise PreflightError(f"{test.source} has {len(test.labels)} classes, the target {facts.classes}")
    if test.labels and names and test.labels != names and set(test.labels) & set(names):
        raise PreflightError(
            f"{test.source} and the target name the same classes in another order, or only some of them: "
            f"{', '.join(test.labels)} against {', '.join(names)}"
        )


def check_same_model(target: Target, reference: Target) -> None:
    """Raise `PreflightError` where a reference cannot be the target's model at all."""
    a, b = target.facts, reference.facts
    if a.shape != b.shape or a.classes != b.classes:
        raise PreflightError(
            f"the target takes {list(a.shape)} and has {a.classes} classes, {reference.identity.model!r} takes "
            f"{list(b.shape)} and has {b.classes}: this is not the same model"
        )
    mine, other = target.identity.labels, reference.identity.labels
    if mine and other and mine != other:
        raise PreflightError(f"the target's labels are not those of {reference.identity.model!r}, or in another order")


def check_answers(answers: Answers, source: str, error: GarrisonError | None = None) -> None:
    """Raise `PreflightError` where there are no answers, or where those that come as probabilities are none.

    Args:
        answers: to the probed rows.
        source: the target's name.
        error: what the target, or its client, said of a row that was not answered.
    """
    if answers.refused.all():
        why = "is the key or the budget at fault?" if error is None else f"{error} ({error.code})"
        raise PreflightError(f"{source}: the target answers none of the probed rows: {why}")
    p = answers.probabilities
    if p is None:
        return
    p = p[~answers.refused].astype(np.float64)
    if not np.isfinite(p).all() or p.min() < -1e-6:
        raise PreflightError(f"{source}: the target answers negative, NaN or infinite probabilities; are these logits?")
    wrong = np.abs(p.sum(axis=1) - 1.0) > sum_tolerance(p)
    if wrong.any():
        raise PreflightError(
            f"{source}: {wrong.sum()} of {len(p)} answers do not sum to 1, as probabilities do; are these logits? Seal the "
            "model with a softmax, or as scores"
        )


def sum_tolerance(p: FloatArray) -> float:
    """How far from 1 honest answers may sum: rounding to d decimals moves each class by up to half of 10^-d."""
    for decimals in range(_MOST_DECIMALS):
        step: float = 10.0**-decimals
        if np.abs(p / step - np.round(p / step)).max() * step < 10.0**-_MOST_DECIMALS:
            return max(_SUM_TOLERANCE, float(0.5 * p.shape[1] * step))
    return _SUM_TOLERANCE


def check_depends_on_input(answers: FloatArray, source: str) -> None:
    """Raise `PreflightError` where a model answers all probed rows alike: nothing can be learned from it, and every fidelity is 1."""
    if len(answers) > 1 and not (answers != answers[:1]).any():
        raise PreflightError(
            f"{source} answers {len(answers)} different rows with the same numbers to the last bit: its inputs are lost on the way, as "
            "by a cast to whole numbers or a scale that was applied twice"
        )


def check_better_than_chance(found: Labels, y: Labels, source: str) -> None:
    """Raise `PreflightError` where a model is no better than a constant answer, by more than three standard errors."""
    accuracy, chance, rows = float(np.mean(found == y)), most_frequent_share(y), len(y)
    if accuracy <= chance + 3 * math.sqrt(max(chance * (1 - chance), 1e-9) / rows):
        raise PreflightError(
            f"{source} is right on {accuracy:.1%} of the test rows, a constant answer on {chance:.1%}: classes in another order, "
            "or inputs prepared in another way than for training"
        )


def check_agreement(answers: Answers, reference: FloatArray, alone: BoolArray, source: str) -> None:
    """Raise `PreflightError` where the target disagrees with its reference far beyond what the guard explains.

    Args:
        answers: the target's, on test rows.
        reference: the reference's probabilities without its guard, (rows, classes).
        alone: rows that the signed guard leaves as they are.
        source: the reference's name.
    """
    rows = alone & answers.usable
    if not rows.any():
        return
    agree = share(np.equal(answers.labels[rows], reference.argmax(axis=1)[rows]))
    if agree < LEAST_AGREEMENT:
        raise PreflightError(
            f"on {rows.sum()} rows that the guard leaves alone, the target names the same class as {source!r} in {agree:.1%}: "
            "this reference is not the model that is served, or the inputs are prepared in another way"
        )
