"""What honest users get: accuracy as served, what the guard changes, and what strangers' inputs are answered with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from garrison.attacks.base import Finding
from garrison.attacks.measures import Estimate, over_rows
from garrison.attacks.oracle import Answers, MeteredOracle, Oracle
from garrison.audit import metrics
from garrison.audit.data import AuditData
from garrison.types import Array, FloatArray

REPEATED_ROWS = 200
NORMAL_95 = 1.959964
_SAME = 1e-5
"""Largest difference of probabilities that counts as the same answer: single precision in another batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A target's answers to honest questions.

    Attributes:
        test, outside: answers to the test rows and to the rows from outside.
        again: answers to the first `REPEATED_ROWS` rows from outside, asked again one by one in reverse.
    """

    test: Answers
    outside: Answers
    again: Answers


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """What another model says of the same rows, to compare with: probabilities, (rows, classes)."""

    test: FloatArray
    outside: FloatArray


def ask_honestly(oracle: Oracle, data: AuditData) -> Served:
    """Ask all test rows and rows from outside; refusals and failures are marked, not raised."""
    repeated = data.outside.x[:REPEATED_ROWS]
    test, outside = _ask(oracle, data.test.x), _ask(oracle, data.outside.x)
    return Served(test, outside, _ask(oracle, repeated[::-1], 1))


def _ask(oracle: Oracle, x: Array, rows_a_request: int = 250) -> Answers:
    return MeteredOracle(oracle, 2 * len(x), rows_a_request).query(x)


def served_findings(
    target: str, served: Served, data: AuditData, classes: int, f: Baseline | None, own: Baseline | None
) -> tuple[Finding, ...]:
    """What a target's honest users get.

    Args:
        target: its name.
        served: its answers.
        data: what was asked.
        classes: how many there are.
        f: the undefended model, None where it is not at hand or is the target itself.
        own: the target's own model without its guard, None likewise.
    """
    y = data.test.y
    found = {} if y is None else {"served_accuracy": metrics.accuracy(served.test.labels, y)}
    if served.test.refused.any() or served.test.uncertain.any():
        found["unanswered"] = over_rows((~served.test.usable).astype(np.float64))
    whole = ~served.test.refused
    if y is not None and served.test.probabilities is not None and whole.any():
        found["calibration_error"] = metrics.calibration_error(served.test.probabilities[whole], y[whole])
    if f is not None:
        found |= _compared(served, y, f, "total")
    if own is not None:
        found |= _compared(served, y, own, "guard")
    findings = [_finding(target, name, e, len(data.test.x)) for name, e in found.items()]
    strangers = _strangers(served, classes, f, own)
    return (*findings, *(_finding(target, name, e, len(data.outside.x)) for name, e in strangers.items()))


def alarmed_finding(target: str, alarmed: int, callers: int, rows: int) -> Finding:
    """The share of honest callers who were alarmed, with Wilson's interval.

    Args:
        target: its name.
        alarmed, callers: how many of how many.
        rows: that they asked, all together.
    """
    share, z2 = alarmed / callers, NORMAL_95**2 / callers
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    e = Estimate(share, max(0.0, middle - half), min(1.0, middle + half), f"Wilson over {callers} callers, 95 %")
    return _finding(target, "honest_callers_alarmed", e, rows)


def _compared(served: Served, y: npt.NDArray[np.int64] | None, other: Baseline, suffix: str) -> dict[str, Estimate]:
    first = other.test.argmax(axis=1)
    found = {f"changed_top1_{suffix}": metrics.changed(served.test.labels, first)}
    if y is not None:
        found[f"benign_loss_{suffix}"] = metrics.paired_loss(first, served.test.labels, y)
    whole = ~served.test.refused
    if served.test.probabilities is not None and whole.any():
        found[f"mean_l1_{suffix}"] = metrics.mean_l1(served.test.probabilities[whole], other.test[whole])
    return found


def _strangers(served: Served, classes: int, f: Baseline | None, own: Baseline | None) -> dict[str, Estimate]:
    """What rows from outside are answered with."""
    labels = served.outside.labels
    found = {}
    if (labels >= 0).any():
        found["outside_classes_used"] = metrics.classes_used(labels)
        found["outside_entropy"] = metrics.normalised_entropy(labels, classes)
    found["repeated_alike"] = over_rows(_alike(served).astype(np.float64))
    if f is not None:
        found["outside_changed_top1_total"] = metrics.changed(labels, f.outside.argmax(axis=1))
    if own is not None:
        found["outside_changed_top1_guard"] = metrics.changed(labels, own.outside.argmax(axis=1))
    return found


def _alike(served: Served) -> npt.NDArray[np.bool_]:
    """Rows that got the same answer when they were asked again alone; shape (rows,)."""
    rows = len(served.again.labels)
    labels = served.again.labels[::-1] == served.outside.labels[:rows]
    p, q = served.outside.probabilities, served.again.probabilities
    if p is None or q is None:
        return np.asarray(labels)
    close = np.isclose(p[:rows], q[::-1], rtol=0, atol=_SAME, equal_nan=True).all(axis=1)
    same: npt.NDArray[np.bool_] = labels & close
    return same


def _finding(target: str, metric: str, e: Estimate, rows: int) -> Finding:
    unit = "classes" if metric == "outside_classes_used" else "fraction"
    unit = "L1 distance" if metric.startswith("mean_l1") else unit
    return Finding(
        attack="none",
        target=target,
        metric=metric,
        value=e.value,
        low=e.low,
        high=e.high,
        interval=e.interval,
        queries=rows,
        seeds=1,
        unit=unit,
    )
