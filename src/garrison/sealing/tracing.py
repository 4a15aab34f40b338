"""Traces a chain's arithmetic into two ONNX graphs, with ndonnx: the very lines that numpy runs.

    before   the model's inputs -> the same, safe to compute with; marks of ADMIT and INSPECT; signals
    after    the model's outputs -> marks of ANSWER, what may be released

A row that an armed ADMIT defense refuses leaves `before` as the lower bounds of the range, so that no value that was not admitted reaches
the model. Settings (tau, the scale of rounding) are inputs. Not traced: budgets, `watch`, and whatever else looks at the caller; new answers that
need keyed noise, whose rows are only marked (`garrison.guard.graph_form` makes them).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from garrison.bundle.manifest import asked
from garrison.errors import GarrisonError, MissingExtraError
from garrison.guard import marks
from garrison.guard.base import Marks, RecordDefense, ReleaseDefense, RowDefense, Rows, View
from garrison.guard.defenses.bounds import LONG
from garrison.guard.defenses.feature_squeezing import FeatureSqueezing
from garrison.guard.defenses.release import OUTPUT_NAME
from garrison.guard.pipeline import load_defense
from garrison.runtime.runner import LOGITS, MISINFORMATION, VALUES_OUTPUT
from garrison.sealing.unbranch import unbranch
from garrison.types import SQUEEZED, Array, Batch, DefenseSpec, InputFacts, ModelFacts, Phase, RawScores

try:
    import ndonnx as ndx
    import onnx

    # What ndonnx is made of, in the operator set that it writes.
    op: Any = importlib.import_module("spox.opset.ai.onnx.v21")
except ImportError as error:
    raise MissingExtraError("ndonnx", "seal") from error


class UntracedError(GarrisonError):
    """Why a chain runs in numpy. Never leaves sealing: it is no fault."""

    code = "sealing.untraced"


@dataclass(frozen=True, slots=True)
class Traced:
    """The graphs of a chain, and the model's outputs that answers with keyed noise are made of; none where no answer is."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    drawn_from: tuple[str, ...]


def trace(chain: tuple[DefenseSpec, ...], facts: ModelFacts) -> Traced:
    """Trace a chain.

    Raises:
        UntracedError: it cannot be; says why.
    """
    if len(chain) > marks.MOST_DEFENSES:
        raise UntracedError(f"a chain of {len(chain)} defenses; at most {marks.MOST_DEFENSES} are traced")
    tracer = _Tracer(chain, facts)
    try:
        before = tracer.before()
        return Traced(before, tracer.after(), tracer.drawn_from())
    except Exception as error:  # the tracer refuses in many ways what a graph cannot hold
        raise UntracedError(f"the chain cannot be traced ({type(error).__name__}: {error})") from error


@dataclass
class _State:
    """What the defenses so far have marked."""

    signals: dict[str, Any] = field(default_factory=dict)
    minded: dict[int, Any] = field(default_factory=dict)
    uncertain: Any = None
    refused: dict[int, Any] = field(default_factory=dict)

    def add(self, number: int, found: Marks, *, shadow: bool) -> None:
        # In shadow no signal takes the place of an earlier one.
        self.signals = {**found.signals, **self.signals} if shadow else {**self.signals, **found.signals}
        minds = marks.minds(number)
        if shadow:
            minded = [rows for rows in (found.refuse, found.replace) if rows is not None]
            if minded:
                self.minded[minds] = minded[0] if len(minded) == 1 else minded[0] | minded[1]
            return
        if found.refuse is not None:
            self.refused[number] = found.refuse
        if found.replace is not None:
            self.minded[minds] = found.replace
        if found.uncertain is not None:
            self.uncertain = found.uncertain if self.uncertain is None else self.uncertain | found.uncertain

    def marks(self, some_tensor: Any) -> Any:
        flags = self.minded if self.uncertain is None else self.minded | {marks.UNCERTAIN: self.uncertain}
        found = marks.encode(ndx, flags, self.refused)
        return _none(some_tensor) if found is None else found


class _Tracer:
    """Walks one chain once a graph.

    `before` goes first, `drawn_from` last.
    """

    def __init__(self, chain: tuple[DefenseSpec, ...], facts: ModelFacts) -> None:
        self._facts = replace(facts, inputs=tuple(_compact(spec) for spec in facts.inputs))
        self._links = [(i, spec.shadow, load_defense(spec)) for i, spec in enumerate(chain)]
        self._settings = {
            i: {name: _argument(value) for name, value in defense.settings(facts).items()}
            for i, _, defense in self._links
        }
        self._early_signals: dict[str, tuple[int, ...]] = {}
        """The shape of one row of each."""
        self._replacers: list[RowDefense] = []
        self._watching = [
            defense for _, _, defense in self._links if isinstance(defense, RowDefense) and defense.only_signals
        ]
        self._recorded = any(d.looks_at_scores for _, _, d in self._links if isinstance(d, RecordDefense))
        self._copies = next((d.copies for _, _, d in self._links if isinstance(d, FeatureSqueezing)), 1)
        self._check_outside()

    def _check_outside(self) -> None:
        changed: set[str] = set()
        for _, _, defense in self._links:
            if not isinstance(defense, RowDefense):
                continue
            if defense.only_signals:
                changed |= defense.gives
            elif not defense.in_graph and (defense.phase is Phase.ANSWER or defense.gives):
                raise UntracedError(
                    f"{defense.name} cannot be part of a graph, and comes after the model or gives a signal"
                )
            elif defense.gives and defense.needs & changed:
                raise UntracedError(f"{defense.name} makes a signal of one that is changed after the graph")

    def before(self) -> onnx.ModelProto:
        inputs = {spec.name: _argument_of(spec.dtype, spec.shape) for spec in self._facts.inputs}
        state = _State()
        for i, shadow, defense in self._rows_of(Phase.ADMIT, Phase.INSPECT):
            view = View(_batch(inputs), self._facts, signals=state.signals)
            state.add(i, defense.judge(ndx, view, self._settings[i]), shadow=shadow)
        self._early_signals = {name: tuple(value.shape[1:]) for name, value in state.signals.items()}
        outputs = {spec.name: _safe(inputs[spec.name], spec, state.refused) for spec in self._facts.inputs}
        outputs[marks.ADMIT] = state.marks(next(iter(inputs.values())))
        outputs |= {marks.signal(name): value for name, value in state.signals.items()}
        return self._build({asked(name): value for name, value in inputs.items()}, outputs)

    def after(self) -> onnx.ModelProto:
        """ANSWER and RELEASE. Rows whose new answer needs noise are marked and left as they are; no later defense may look at their answer."""
        facts, scores = self._facts, self._scores()
        values = scores[VALUES_OUTPUT[facts.task]]
        signals = {name: scores[marks.signal(name)] for name in self._early_signals}
        raw = RawScores(
            values, scores.get(LOGITS), feature_score=scores.get(facts.feature_score), squeezed=scores.get(SQUEEZED)
        )
        state, answer = _State(signals), values
        for i, shadow, defense in self._rows_of(Phase.ANSWER):
            seen = None if self._draws else answer
            view = View(_batch({}), facts, raw, seen, None, state.signals)
            found = defense.judge(ndx, view, self._settings[i])
            state.add(i, found, shadow=shadow)
            if shadow or found.replace is None:
                continue
            self._replacers.append(defense)
            if not defense.draws:
                new = defense.rewrite(ndx, Rows(answer, state.signals), self._settings[i])
                answer = ndx.where(ndx.expand_dims(found.replace, axis=1), new, answer)
        number, release = next((i, d) for i, _, d in self._links if isinstance(d, ReleaseDefense))
        said = release.say(ndx, answer, facts, self._settings[number])
        outputs = {marks.MARKS: state.marks(values)} | {marks.released(name): value for name, value in said.items()}
        return self._build(scores, outputs | self._needed(state.signals))

    def drawn_from(self) -> tuple[str, ...]:
        values = VALUES_OUTPUT[self._facts.task]
        if self._draws:
            return values, MISINFORMATION
        release = next(d for _, _, d in self._links if isinstance(d, ReleaseDefense))
        said = {name for name, _, _ in release.describe_outputs(self._facts)}
        hidden = OUTPUT_NAME[self._facts.task] not in said  # what labels are made of is looked at before they leave
        return (values,) if self._watching or self._recorded or hidden else ()

    @property
    def _draws(self) -> bool:
        return any(defense.draws for defense in self._replacers)

    def _needed(self, signals: Mapping[str, Any]) -> dict[str, Any]:
        """Signals for answers that are made after the graph, and for defenses that look at callers, but for those that `before` gives."""
        users = [*self._watching, *(self._replacers if self._draws or self._watching else ())]
        names = {name for defense in users for name in defense.needs}
        return {marks.signal(name): signals[name] for name in sorted(names - self._early_signals.keys())}

    def _rows_of(self, *phases: Phase) -> Iterator[tuple[int, bool, RowDefense]]:
        for i, shadow, defense in self._links:
            if isinstance(defense, RowDefense) and defense.in_graph and defense.phase in phases:
                yield i, shadow, defense

    def _scores(self) -> dict[str, Any]:
        facts = self._facts
        found = {VALUES_OUTPUT[facts.task]: _argument_of(facts.value_dtype, (facts.outputs,))}
        if facts.has_logits:
            found[LOGITS] = _argument_of(facts.value_dtype, (facts.outputs,))
        if facts.feature_score:
            found[facts.feature_score] = _argument_of(facts.value_dtype, (1,))
        if facts.has_squeezed:
            found[SQUEEZED] = _argument_of(facts.value_dtype, (self._copies * facts.outputs,))
        return found | {
            marks.signal(name): _argument_of(np.dtype(np.float32), shape) for name, shape in self._early_signals.items()
        }

    def _build(self, arguments: dict[str, Any], outputs: dict[str, Any]) -> onnx.ModelProto:
        for i, _, defense in self._links:
            arguments |= {marks.setting(defense.name, name): value for name, value in self._settings[i].items()}
        return unbranch(ndx.build(arguments, outputs))


def _argument(value: Array) -> Any:
    return ndx.argument(shape=value.shape, dtype=ndx.asarray(value).dtype)


def _argument_of(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    return ndx.argument(shape=("rows", *shape), dtype=ndx.asarray(np.zeros(1, dtype)).dtype)


def _batch(inputs: dict[str, Any]) -> Batch:
    """Rows without requests: what is traced looks at tensors alone."""
    return Batch(inputs, np.zeros(0, dtype=np.intp), (), ())


def _compact(spec: InputFacts) -> InputFacts:
    """Bounds that are the same for every feature, as one number: a smaller graph, and a faster one."""

    def one(x: Array) -> Array:
        return x[:1] if (x == x[:1]).all() else x

    return replace(spec, low=one(spec.low), high=one(spec.high), may_be_missing=one(spec.may_be_missing))


def _safe(x: Any, spec: InputFacts, refused: Mapping[int, Any]) -> Any:
    """The input, where no armed defense refuses the row; else the lower bounds."""
    if not refused:
        return ndx.asarray(x, copy=True)
    bad = None
    for rows in refused.values():
        bad = rows if bad is None else bad | rows
    low = spec.low.reshape(spec.shape if spec.low.size > 1 else (1,) * len(spec.shape))
    if math.prod(spec.shape) >= LONG:
        return _rows_replaced(x, bad, low, spec.shape)
    return ndx.where(ndx.reshape(bad, (-1, *(1 for _ in spec.shape))), ndx.asarray(low), x)


def _rows_replaced(x: Any, bad: Any, low: Array, shape: tuple[int, ...]) -> Any:
    """Some rows replaced in a copy of a large tensor: half the time of a choice value by value, where rows are mostly good."""
    rows = op.transpose(op.non_zero(bad.unwrap_spox()))
    count = op.shape(rows, start=0, end=1)
    lows = op.expand(op.const(low), op.concat([count, op.const(np.array(shape, np.int64))], axis=0))
    return ndx.asarray(op.scatter_nd(x.unwrap_spox(), rows, lows))


def _none(tensor: Any) -> Any:
    """Marks of a chain that marks nothing, as many as the tensor has rows."""
    rows = op.shape(tensor.unwrap_spox(), start=0, end=1)
    return ndx.asarray(op.constant_of_shape(rows, value=np.zeros(1, np.int32)))
