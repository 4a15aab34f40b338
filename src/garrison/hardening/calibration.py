"""Calibrates the guard on held-out benign rows: tau to a stated loss, and the shape of honest answers.

Invariants: the guard's own arithmetic decides what a row loses; a calibrated value is rounded so that the loss can only
shrink. Not checked: whether the rows are really held out. On rows that the model was trained on, it is more confident
than it will be on new ones, tau comes out too high, and the loss in service exceeds the stated one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from garrison.confidence import LEVEL, lower_limit, upper_limit
from garrison.errors import CalibrationError
from garrison.guard.defenses import energy, max_probability
from garrison.guard.defenses.adaptive_misinformation import NEGLIGIBLE, alpha
from garrison.types import FEATURE_SCORES, Array, BoolArray, FloatArray

ScoreName = Literal["max-probability", "energy", "mahalanobis", "knn"]
FEWEST_ROWS = 100
MARGIN_QUANTILES = 32
_SMALLEST_PROBABILITY = 1e-12
_SMALLEST_MARGIN, _LARGEST_MARGIN = 0.01, 25.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was found on the calibration rows. Shares lie in [0, 1].

    Attributes:
        tau: threshold on the score.
        loss: share of rows that lose their right answer (without labels: whose answer changes).
        loss_low, loss_high: one-sided 95 % limits of it (Clopper-Pearson).
        asked: the benign loss that was asked for.
        holds: whether `loss_high` is at most `asked`; False where the rows are too few for any tau to promise it.
        labelled: whether labels were given.
        rows: number of calibration rows.
        accuracy: of the model as it is; NaN without labels.
        tail_scale, margins: shape of honest answers, see `garrison.guard.defenses.adaptive_misinformation`.
    """

    tau: float
    loss: float
    loss_low: float
    loss_high: float
    asked: float
    holds: bool
    labelled: bool
    rows: int
    accuracy: float
    tail_scale: float
    margins: tuple[float, ...]

    @property
    def served_accuracy(self) -> float:
        """Accuracy with the guard on, NaN without labels. A lower bound: a wrong row may be misinformed into the truth."""
        return self.accuracy - self.loss


def confidence_of(
    score: ScoreName,
    probabilities: FloatArray,
    logits: FloatArray | None = None,
    temperature: float = 1.0,
    feature_score: FloatArray | None = None,
) -> FloatArray:
    """The guard's signal `confidence`, shape (rows,).

    Raises:
        CalibrationError: energy is asked for, and there are no logits; or a score over features that the graph does not offer.
    """
    found: FloatArray
    if score in FEATURE_SCORES:
        if feature_score is None:
            raise CalibrationError(
                f"the score {score!r} needs the model's inner features, which are not at hand here; use max-probability"
            )
        found = feature_score[:, 0]
    elif score == "max-probability":
        found = max_probability.confidence(np, probabilities)
    else:
        if logits is None:
            raise CalibrationError(
                "the score 'energy' needs logits, which this graph does not offer; use max-probability"
            )
        found = energy.confidence(np, logits, temperature)
    return found.astype(np.float64)


def calibrate(
    probabilities: FloatArray,
    confidence: FloatArray,
    y: npt.NDArray[np.integer] | None = None,
    *,
    benign_loss: float = 0.005,
    nu: float = 1000.0,
    level: float = LEVEL,
) -> Calibration:
    """Calibrate tau, tail and margins.

    The loss grows with tau, so the largest tau whose upper confidence limit stays within `benign_loss` keeps that promise on
    new rows of the same kind with probability `level` (risk-controlling prediction sets, Bates et al. 2021).

    Args:
        probabilities: (rows, classes), of held-out benign rows.
        confidence: (rows,), see `confidence_of`.
        y: (rows,), class numbers; None where there are none.
        benign_loss: above 0, below 1.
        nu: steepness of the switch.
        level: probability with which the promise holds.

    Raises:
        CalibrationError: fewer than 100 rows, NaN, no probabilities, labels out of range, a benign loss out of range, or a
            model that is never right.
    """
    _check(probabilities, confidence, y, benign_loss)
    own_choice = probabilities.argmax(axis=1)
    right = np.ones(len(own_choice), dtype=np.bool_) if y is None else own_choice == y
    if not right.any():
        raise CalibrationError(
            "the model is wrong on every calibration row: are the labels class numbers in its own order?"
        )
    lead = lead_of(probabilities)
    allowed = allowed_events(len(right), benign_loss, level)
    tau = _largest_tau(confidence[right], lead[right], max(0, allowed), nu)
    lost = int((right & changed(confidence, lead, tau, nu)).sum())
    high = upper_limit(lost, len(right), level)
    tail_scale, margins = answer_shape(probabilities[confidence >= tau])
    return Calibration(
        tau=tau,
        loss=lost / len(right),
        loss_low=lower_limit(lost, len(right), level),
        loss_high=high,
        asked=benign_loss,
        holds=high <= benign_loss,
        labelled=y is not None,
        rows=len(right),
        accuracy=math.nan if y is None else float(right.mean()),
        tail_scale=tail_scale,
        margins=margins,
    )


def lead_of(probabilities: FloatArray) -> FloatArray:
    """p1 - p2 of each row, shape (rows,)."""
    best = np.partition(probabilities.astype(np.float64), -2, axis=1)[:, -2:]
    lead: FloatArray = best[:, 1] - best[:, 0]
    return lead


def changed(confidence: FloatArray, lead: FloatArray, tau: float, nu: float) -> BoolArray:
    """Rows whose first choice may change, shape (rows,): alpha (m_c - m_1) can reach (1 - alpha)(f_1 - f_2).

    The difference in m is taken as 1, its largest, so nothing here depends on f' or on the owner's key.
    """
    a = alpha(np, confidence, tau, nu)
    found: BoolArray = a >= (1.0 - a) * np.maximum(lead, NEGLIGIBLE)
    return found


def allowed_events(rows: int, benign_loss: float, level: float = LEVEL) -> int:
    """Most lost rows whose upper confidence limit is within the benign loss; -1 where even none is too many."""
    low, high = -1, max(0, math.floor(rows * benign_loss))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if upper_limit(middle, rows, level) <= benign_loss else (low, middle - 1)
    return low


def rows_needed(benign_loss: float, level: float = LEVEL) -> int:
    """Fewest calibration rows with which any tau can promise this benign loss."""
    return math.ceil(math.log(1 - level) / math.log1p(-benign_loss))


def _largest_tau(confidence: FloatArray, lead: FloatArray, allowed: int, nu: float) -> float:
    """Largest tau, rounded down, at which at most `allowed` of these rows change; the inverse of `changed`."""
    critical = np.sort(confidence + np.log(np.maximum(lead, NEGLIGIBLE)) / nu)
    limit = float(critical[min(allowed, len(critical) - 1)])
    scale = 10.0 ** (6 - max(0, math.ceil(math.log10(abs(limit) + 1e-9))))
    tau = math.floor(limit * scale) / scale
    while changed(confidence, lead, tau, nu).sum() > allowed:
        tau -= 1.0 / scale
    return tau


def answer_shape(probabilities: FloatArray) -> tuple[float, tuple[float, ...]]:
    """Tail scale and margins of honest answers, in nats.

    Args:
        probabilities: (rows, classes), rows above tau; at least one.

    Returns:
        The median over rows of the standard deviation of the log-probabilities of all classes but the first choice; and
        quantiles of log(p1 / p2), smallest first.
    """
    if not len(probabilities):
        raise CalibrationError("no calibration row lies above tau; is the model trained?")
    logs = np.log(np.maximum(np.sort(probabilities.astype(np.float64), axis=1), _SMALLEST_PROBABILITY))
    tail = float(np.median(logs[:, :-1].std(axis=1))) if logs.shape[1] > 2 else 1.0
    steps = (np.arange(MARGIN_QUANTILES) + 0.5) / MARGIN_QUANTILES
    margins = np.clip(np.quantile(logs[:, -1] - logs[:, -2], steps), _SMALLEST_MARGIN, _LARGEST_MARGIN)
    return max(0.01, round(tail, 3)), tuple(round(float(m), 3) for m in margins)


def _check(probabilities: Array, confidence: Array, y: Array | None, benign_loss: float) -> None:
    if not 0 < benign_loss < 1:
        raise CalibrationError(f"the benign loss must lie between 0 and 1 (0.005 is half a point), found {benign_loss}")
    rows = len(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or confidence.shape != (rows,):
        raise CalibrationError(f"expected probabilities (rows, classes), found shape {probabilities.shape}")
    if rows < FEWEST_ROWS:
        raise CalibrationError(
            f"expected at least {FEWEST_ROWS} calibration rows, found {rows}; give more of them "
            "(without --calibration, `garrison harden` holds out a fifth of --data)"
        )
    if not np.isfinite(probabilities).all() or not np.isfinite(confidence).all():
        raise CalibrationError(
            "the model answers NaN or infinite values on calibration rows; check the data and the model"
        )
    if (probabilities < -1e-6).any() or (np.abs(probabilities.sum(axis=1) - 1) > 1e-2).any():
        raise CalibrationError("the model's answers are no probabilities: each row must be non-negative and sum to 1")
    if y is not None:
        _check_labels(y, rows, probabilities.shape[1])


def _check_labels(y: Array, rows: int, classes: int) -> None:
    if y.shape != (rows,) or y.dtype.kind not in "iu":
        raise CalibrationError(f"expected whole class numbers of shape ({rows},), found {y.dtype} {y.shape}")
    if y.min() < 0 or y.max() >= classes:
        raise CalibrationError(f"class numbers must lie in 0 to {classes - 1}, found {y.min()} to {y.max()}")
