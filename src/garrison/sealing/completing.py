"""What defenses that an owner chose learn from honest rows, once the chain stands: `schema` what values there are, `feature-squeezing` its threshold and the
model's graph with squeezed copies. And what `randomized-smoothing` certifies is released, where the owner said so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from garrison.bundle.manifest import InputSpec, input_facts
from garrison.confidence import upper_limit
from garrison.errors import CalibrationError, ConfigError, MissingExtraError
from garrison.guard.defenses.feature_squeezing import FeatureSqueezing
from garrison.guard.defenses.randomized_smoothing import RandomizedSmoothing
from garrison.guard.defenses.release import Release
from garrison.guard.defenses.schema import Schema
from garrison.guard.pipeline import load_defense
from garrison.guard.squeezing import disagreement
from garrison.hardening.calibration import allowed_events, rows_needed
from garrison.hardening.schema import learned
from garrison.hardening.scoring import open_session, score
from garrison.runtime.runner import VALUES_OUTPUT
from garrison.sealing.copies import with_copies
from garrison.types import SQUEEZED, Array, DefenseSpec, FloatArray, ModelFacts, Task

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

_SCALE = 1e6
"""Thresholds are rounded up to multiples of its inverse."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The model and the chain as they are sealed, and what was measured on the way."""

    model: onnx.ModelProto | None
    specs: tuple[DefenseSpec, ...]
    metrics: dict[str, float] = field(default_factory=dict)


def complete(
    model: onnx.ModelProto | None,
    specs: Sequence[DefenseSpec],
    task: Task,
    inputs: tuple[InputSpec, ...],
    rows: Mapping[str, Array] | None,
    sample: Mapping[str, Array],
    chosen: frozenset[str],
) -> Completed:
    """See the module's docstring.

    Args:
        model: with canonical outputs; None where another server runs it.
        specs: the chain.
        task: of the model.
        inputs: of the model.
        rows: held-out honest rows by input; None where there are none.
        sample: a few rows, drawn ones where there are no others.
        chosen: names of the defenses that the owner chose now; what stands in the chain from before is complete.

    Raises:
        ConfigError: rows are needed, and there are none.
        GuardError: squeezing makes no sense for such a model.
        CalibrationError: too few rows for the share of false alarms that was asked for.
        UnsupportedModelError: the model's graph cannot be run on copies.
    """
    done = Completed(model, tuple(specs))
    if Schema.name in chosen:
        done = _schema(done, rows)
    if FeatureSqueezing.name in chosen:
        done = _squeezing(done, task, inputs, rows, sample)
    if any(isinstance(d, RandomizedSmoothing) and d.tell for d in map(load_defense, done.specs)):
        release = next(spec for spec in done.specs if spec.name == Release.name)
        done = replace(done, specs=_replaced(done.specs, release.name, release.parameters | {"radius": True}))
    return done


def _replaced(specs: Sequence[DefenseSpec], name: str, parameters: dict[str, object]) -> tuple[DefenseSpec, ...]:
    return tuple(msgspec.structs.replace(s, parameters=parameters) if s.name == name else s for s in specs)


def _schema(done: Completed, rows: Mapping[str, Array] | None) -> Completed:
    if rows is None:
        raise ConfigError("--defense schema: --data is needed: held-out rows, which show what values there are")
    spec = next(spec for spec in done.specs if spec.name == Schema.name)
    empty = msgspec.to_builtins(Schema())
    given = {name: value for name, value in spec.parameters.items() if value != empty[name]}
    return Completed(done.model, _replaced(done.specs, Schema.name, learned(rows, given)), done.metrics)


def _squeezing(
    done: Completed,
    task: Task,
    inputs: tuple[InputSpec, ...],
    rows: Mapping[str, Array] | None,
    sample: Mapping[str, Array],
) -> Completed:
    defense = next(d for d in map(load_defense, done.specs) if isinstance(d, FeatureSqueezing))
    if done.model is None:
        raise ConfigError(
            f"--defense {defense.name}: another server runs this model, so its graph cannot be made to answer squeezed copies"
        )
    facts = tuple(input_facts(spec) for spec in inputs)
    defense.check_inputs(
        ModelFacts(task, facts, (), 0, np.dtype(np.float32), has_logits=False, has_misinformation=False)
    )
    values = VALUES_OUTPUT[task]
    model = with_copies(done.model, inputs[0], defense, values, sample)
    metrics = dict(done.metrics)
    if not defense.threshold:
        if rows is None:
            raise ConfigError(f"--defense {defense.name}: --data is needed: held-out rows, on which it is calibrated")
        found = score(open_session(model.SerializeToString()), rows, [values, SQUEEZED])
        apart = disagreement(np, found[values], found[SQUEEZED], defense.copies)
        threshold = threshold_of(apart, defense.false_alarms)
        defense = msgspec.structs.replace(defense, threshold=threshold)
        over = int((apart > threshold).sum())
        metrics |= {
            "squeezing_false_alarms": over / len(apart),
            "squeezing_false_alarms_high": upper_limit(over, len(apart)),
        }
    return Completed(model, _replaced(done.specs, defense.name, msgspec.to_builtins(defense)), metrics)


def threshold_of(apart: FloatArray, false_alarms: float) -> float:
    """The smallest threshold above which, with 95 % confidence, at most such a share of honest rows lies.

    Raises:
        CalibrationError: too few rows to promise it, or answers that are not finite.
    """
    allowed = allowed_events(len(apart), false_alarms)
    if allowed < 0 or not np.isfinite(apart).all():
        raise CalibrationError(
            f"feature-squeezing: expected at least {rows_needed(false_alarms)} rows with finite answers to promise at most "
            f"{false_alarms:.2%} false alarms, found {len(apart)}"
        )
    limit = float(np.sort(apart.astype(np.float64))[len(apart) - 1 - allowed])
    return min(2.0, max(1, math.ceil(limit * _SCALE)) / _SCALE)
