"""The reference and the thresholds of the defense `drift`, from honest rows that were held out; and the same check offline.

    1 LOOK       what the service would watch of each row
    2 FIT        bins of about equal share, means, the reference's shares: frozen, and signed with the bundle
    3 SIMULATE   long honest streams, through the sketch's own code
    4 THRESHOLD  so high that over all kinds together one false alarm is expected in `ROWS_BETWEEN_ALARMS` rows

The service looks after every block of 256 rows, at every column: so what is calibrated is the *highest* of all looks and all columns of a stretch of rows, and not
one look. Maxima of stretches fall off as Gumbel's law does; its parameters are found by moments. The reference is itself a sample: each simulated stream
is drawn from another resampling of the rows (Efron's bootstrap), so it differs from the reference as honest callers do.

Not covered: honest callers who differ from the held-out rows. That is drift, and it rings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from garrison.errors import CalibrationError
from garrison.guard.base import View
from garrison.guard.defenses.drift import Drift
from garrison.guard.defenses.projection import Projection
from garrison.guard.drifting.columns import (
    CLIP,
    MOST_CLASSES,
    Column,
    Layout,
    answer_values,
    asked_values,
    layout_of,
    looks_of,
    names_of,
    source_of,
    summarise,
)
from garrison.guard.drifting.sketch import BLOCK_ROWS, KINDS, Sketch
from garrison.guard.pipeline import load_defense, specs_of
from garrison.types import Array, Batch, Caller, DefenseSpec, FloatArray, ModelFacts, Phase, Task

FEWEST_ROWS = 2_500
"""Held-out rows below which there is no reference: its own noise would hide what moves."""
MOST_ROWS = 20_000
BINS = 20
ROWS_BETWEEN_ALARMS = 20_000_000
"""Honest rows in which one false alarm is expected, all kinds together."""
MARGIN = 1.1
_STREAMS = 16
_STRETCH = 8_192
_STRETCHES = 2
_EULER = 0.5772156649015329
_ROWS_AT_ONCE = 2_048


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was found.

    Attributes:
        drift: the defense, with reference and thresholds.
        metrics: for the manifest.
    """

    drift: Drift
    metrics: dict[str, float]


def with_drift(
    chain: Sequence[DefenseSpec], facts: ModelFacts, inputs: Mapping[str, Array], answers: FloatArray, *, seed: int = 0
) -> tuple[tuple[DefenseSpec, ...], dict[str, float]]:
    """A chain with `drift` at its end, and with `projection` where the model is watched by it; and figures for the manifest.

    The chain comes back as it is where there are too few rows.
    """
    if why_undrifted(len(answers)):
        return tuple(chain), {}
    defenses = [load_defense(spec) for spec in chain]
    projection = next((defense for defense in defenses if isinstance(defense, Projection)), None)
    if projection is None and source_of(facts) == "projection":
        projection = Projection()
        defenses.insert(sum(defense.phase < Phase.INSPECT for defense in defenses), projection)
    found = fit_drift(facts, inputs, answers, projection, seed=seed)
    found.drift.check(facts)
    shadow = frozenset(spec.name for spec in chain if spec.shadow)
    return specs_of([*defenses, found.drift], shadow), found.metrics


def why_undrifted(rows: int) -> str:
    """Why so many held-out rows make no reference; "" where they do."""
    return (
        "" if rows >= FEWEST_ROWS else f"no drift: a reference needs {FEWEST_ROWS} held-out rows, and there are {rows}"
    )


def fit_drift(
    facts: ModelFacts,
    inputs: Mapping[str, Array],
    answers: FloatArray,
    projection: Projection | None = None,
    *,
    half_life: float = 2_000.0,
    seed: int = 0,
) -> Fitted:
    """See the module's docstring.

    Args:
        facts: of the model.
        inputs: held-out honest rows.
        answers: what the model answers to them, shape (rows, outputs).
        projection: of the chain; needed for a model that is watched by it.
        half_life: rows after which a row counts half.
        seed: of all that is drawn.

    Raises:
        CalibrationError: too few rows.
    """
    why = why_undrifted(len(answers))
    if why:
        raise CalibrationError(why)
    rng = np.random.default_rng([seed, 7])
    if len(answers) > MOST_ROWS:
        kept = np.sort(rng.permutation(len(answers))[:MOST_ROWS])
        inputs, answers = {name: x[kept] for name, x in inputs.items()}, answers[kept]
    # 1 LOOK
    projection = projection or Projection()
    values = watched_values(facts, inputs, answers, projection)
    # 2 FIT
    names = names_of(facts, source_of(facts), projection.width)
    answered = len(answer_values(facts, answers[:1])[0])
    columns = [
        fit_column(name, values[:, k], answer=k >= len(names) - answered, classes=_classes(facts, name))
        for k, name in enumerate(names)
    ]
    # 3 SIMULATE, 4 THRESHOLD
    layout = layout_of(columns)
    peaks = simulate(layout, values, half_life, rng)
    thresholds = {kind: _threshold(peaks[:, k]) for k, kind in enumerate(KINDS)}
    metrics = {"drift_rows": float(len(values)), "drift_columns": float(len(columns))}
    metrics["drift_simulated_rows"] = float(_STREAMS * _STRETCHES * _STRETCH)
    metrics["drift_rows_between_alarms"] = float(ROWS_BETWEEN_ALARMS)
    drift = Drift(columns=tuple(columns), thresholds=thresholds, half_life=half_life, rows=len(values))
    return Fitted(drift, metrics)


def watched_values(
    facts: ModelFacts, inputs: Mapping[str, Array], answers: FloatArray, projection: Projection
) -> FloatArray:
    """What `drift` watches of rows, shape (rows, columns), by the service's own code."""
    names = names_of(facts, source_of(facts), projection.width)
    values = np.zeros((len(answers), len(names)), np.float32)
    answered = answer_values(facts, answers)
    asked = len(names) - answered.shape[1]
    values[:, asked:] = answered
    looks = looks_of(facts)
    for start in range(0, len(answers), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows = {name: x[part] for name, x in inputs.items()}
        asked_values(looks, rows, _projected(facts, rows, projection), values[part, :asked])
    if source_of(facts) == "projection":
        summarise(looks, values, projection.width)
    return values


def _projected(facts: ModelFacts, inputs: dict[str, Array], projection: Projection) -> FloatArray | None:
    if source_of(facts) != "projection":
        return None
    rows = len(next(iter(inputs.values())))
    batch = Batch(inputs, np.zeros(rows, dtype=np.intp), (Caller("owner"),), (-1,))
    found: FloatArray = projection.judge(np, View(batch, facts), {}).signals["projection"]
    return found


def _classes(facts: ModelFacts, name: str) -> int:
    return facts.outputs if name == "predicted class" and facts.task is Task.CLASSIFICATION else 0


def fit_column(name: str, values: FloatArray, *, answer: bool, classes: int = 0) -> Column:
    """A column's bins and reference.

    Args:
        values: shape (rows,), single precision; NaN for a missing one.
        answer: whether it is of the model's answer.
        classes: how many classes there are, where the values are class numbers.
    """
    there = values[np.isfinite(values)]
    if 0 < classes <= MOST_CLASSES:
        edges = np.arange(1, classes, dtype=np.float32)
    elif len(there):
        edges = np.unique(np.quantile(there, np.linspace(0, 1, BINS + 1)[:-1], method="higher").astype(np.float32))
    else:
        edges = np.zeros(0, np.float32)
    counts = np.bincount(np.append(edges, np.float32(np.inf)).searchsorted(values, "right"), minlength=len(edges) + 2)
    shares = np.round(counts / len(values), 6)
    mean, scale = (float(there.mean()), float(there.std())) if len(there) else (0.0, 0.0)
    if classes or not math.isfinite(scale) or scale <= 1e-6 * max(1e-30, abs(mean)):
        mean = scale = 0.0
    else:
        mean = _settled(there.astype(np.float64), mean, scale)
    return Column(
        name=name,
        edges=tuple(float(str(edge)) for edge in edges),
        shares=tuple(shares.tolist()),
        mean=mean,
        scale=scale,
        answer=answer,
    )


def _settled(values: FloatArray, mean: float, scale: float) -> float:
    """The point about which the cut-off scores of these values have mean 0."""
    for _ in range(30):
        off = float(np.clip((values - mean) / scale, -CLIP, CLIP).mean())
        mean += off * scale
        if abs(off) < 1e-9:
            break
    return mean


def simulate(
    layout: Layout, values: FloatArray, half_life: float, rng: np.random.Generator, streams: int = _STREAMS
) -> FloatArray:
    """The highest look of each stretch of `_STRETCH` rows of honest streams, shape (stretches, kinds)."""
    codes, scores = layout.codes(values), layout.scores(values)
    bins, peaks = len(layout.shares), []
    for _ in range(streams):
        sketch, world = Sketch(layout, half_life), rng.integers(0, len(values), len(values))
        for _ in range(_STRETCHES):
            peak = np.zeros(len(KINDS))
            for _ in range(_STRETCH // BLOCK_ROWS):
                rows = world[rng.integers(0, len(world), BLOCK_ROWS)]
                sketch.add(np.bincount(codes[:, rows].ravel(), minlength=bins), scores[rows].sum(axis=0), BLOCK_ROWS)
                peak = np.maximum(peak, sketch.look().values)
            peaks.append(peak)
    return np.array(peaks)


def _threshold(peaks: FloatArray) -> float:
    """Where so few honest stretches come, by Gumbel's law; at least as high as any simulated one, and a little more."""
    scale = float(peaks.std(ddof=1)) * math.sqrt(6) / math.pi
    stretches = len(KINDS) * ROWS_BETWEEN_ALARMS / _STRETCH
    high = float(peaks.mean()) - _EULER * scale + scale * math.log(stretches)
    return float(f"{max(1e-6, MARGIN * max(high, float(peaks.max()))):.4g}")
