"""Hardens a model that is already trained: finds its answer, trains f' where it has none, calibrates the guard.

    1 READ       the graph, its inputs and its answer
    2 HOLD OUT   rows that the model has not seen
    3 SCORE      those rows
    4 CALIBRATE  tau to the stated benign loss, the shape of honest answers
    5 MISINFORM  f': the graph's own head, or a network of its own
    6 WATCH      detectors of callers who steal
    7 CHAIN      the defenses in order, as they will be signed; with a frozen reference of what honest callers ask (drift)
    8 MEASURE    what honest rows lose and outliers get, through that very chain

Nothing is written here; the result goes to `garrison.hardening.artifact.write_hardened`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from garrison.bundle.manifest import UpstreamEntry
from garrison.errors import CalibrationError, MissingExtraError, UnsupportedModelError
from garrison.guard.pipeline import load_defense, specs_of
from garrison.hardening import graphs
from garrison.hardening.artifact import Hardened, software_versions
from garrison.hardening.calibration import Calibration, ScoreName, calibrate, confidence_of, rows_needed
from garrison.hardening.data import Part, Rows, for_model, split
from garrison.hardening.drift import with_drift
from garrison.hardening.feature_scores import add_feature_score
from garrison.hardening.measuring import Victim, measure
from garrison.hardening.outliers import outlier_set
from garrison.hardening.ranges import input_specs
from garrison.hardening.scoring import Report, open_session, score, silent
from garrison.hardening.watching import Ask, Watched, calibrate_watch, why_unwatched
from garrison.types import FEATURE_SCORES, Array, DefenseSpec, FloatArray, Task

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

OnOod = Literal["misinform", "refuse", "uncertain"]
Misinform = Literal["adaptive", "deceptive", "label-preserving"]
Wanted = Mapping[str, tuple[str, tuple[int | None, ...]]]
HELD_OUT = 0.2
SAMPLE_ROWS = 8
WATCH = "watch"
WEAK = 0.8
"""Share of outliers caught below which the owner is told to train with outlier exposure."""
DRAWN_OUTLIERS = 2_000
OwnNetwork = Callable[[Victim, Part, int, int, Report], bytes]
OWN_NETWORK = "garrison.hardening.own_network:train_graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the owner wants.

    Attributes:
        benign_loss: points of accuracy that honest callers may lose, as a share (0.005 is half a point).
        score: what tells honest rows from others.
        on_ood: what the others are answered.
        misinformation: which way of misinforming, by the defense `...-misinformation`.
        output: what the graph's answer is, see `graphs.normalise_outputs`.
        labels: names of the classes; None to take them from the data, or to number them.
        bounds: range of all input values, in place of the one seen in the data.
        budget: parameters of the defense `budget`, None for no budget.
        release: parameters of the defense `release`.
        constant_time: compute f' for every row.
        outlier_exposure: whether the model was trained with it; only noted down.
        detectors: calibrate detectors of callers who steal, and put them into the chain, in shadow.
        drift: put a reference of honest rows into the chain, that what callers ask later is compared with.
        seed, threads: of training and of the held-out rows.
    """

    benign_loss: float = 0.005
    score: ScoreName = "max-probability"
    on_ood: OnOod = "misinform"
    misinformation: Misinform = "adaptive"
    output: graphs.Declared = "auto"
    labels: tuple[str, ...] | None = None
    bounds: tuple[float, float] | None = None
    budget: dict[str, Any] | None = None
    release: dict[str, Any] = field(default_factory=lambda: {"mode": "full"})
    constant_time: bool = False
    outlier_exposure: bool = False
    detectors: bool = True
    drift: bool = True
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What `write_hardened` takes, and what the owner should know.

    Attributes:
        description: see `Hardened`.
        model, misinformation: the graphs' bytes; the first is None where another server runs the model, the second where there is no
            f' of its own.
        calibration: what was found.
        notes: in plain English.
    """

    description: Hardened
    model: bytes | None
    misinformation: bytes | None
    calibration: Calibration
    notes: tuple[str, ...]


def harden(
    model: Path | onnx.ModelProto,
    data: Rows,
    calibration: Rows | None = None,
    outliers: Rows | None = None,
    options: Options | None = None,
    report: Report = silent,
) -> Result:
    """See the module's docstring.

    Args:
        model: an ONNX file, or a graph that `graphs.check_model` has seen.
        data: the rows that f' is trained on; a fifth of them is held out where `calibration` is None.
        calibration: rows that the model has not seen.
        outliers: rows that are not the model's business, to measure on; None to have some drawn.
        options: see `Options`.
        report: told how far the work is.

    Raises:
        ModelFileError, UnsupportedModelError: the graph cannot be sealed as asked.
        CalibrationError: the data do not fit the graph, or do not allow a calibration.
        GuardError: a parameter of a defense is out of range.
        MissingExtraError: an f' of its own needs torch.
    """
    options = options or Options()
    # 1 READ
    report("reading", 0.0)
    graph = graphs.load_model(model) if isinstance(model, Path) else model
    wanted = graphs.graph_inputs(graph)
    # 2 HOLD OUT
    training, held_out = hold_out(data, calibration, wanted, options.seed)
    victim = _victim(graph, training, held_out, (data, calibration), options)
    # 3 SCORE, 4 CALIBRATE
    victim = with_feature_score(victim, training, options)
    probabilities, fitted = calibrated(victim, held_out, options, part(report, "scoring", 0.05, 0.3))
    # 5 MISINFORM
    if options.on_ood == "misinform" and not victim.facts().has_misinformation:
        victim = replace(
            victim, misinformation=train_own_network(victim, training, options, part(report, "training", 0.3, 0.9))
        )
    # 6 WATCH
    watched = watch_of(victim, held_out, options, part(report, "detectors", 0.9, 0.95))
    # 7 CHAIN
    chain = guard_chain(fitted, options, victim, watched.detectors)
    drifting: dict[str, float] = {}
    if options.drift:
        chain, drifting = with_drift(chain, victim.facts(), held_out.inputs, probabilities, seed=options.seed)
    # 8 MEASURE
    report("measuring", 0.95)
    outside = draw_outliers(outliers, wanted, victim, held_out, options.seed)
    answering = tuple(spec for spec in chain if spec.name != WATCH)  # all rows at once are no caller
    metrics = measure(victim, answering, fitted, held_out, outside) | watched.metrics | drifting
    digests = {"training": data.sha256} | ({} if calibration is None else {"calibration": calibration.sha256})
    description = describe_hardened(victim, chain, metrics, digests, options)
    report("", 1.0)
    notes = notes_of(fitted, metrics, in_sample=calibration is None) + watched.notes
    return Result(description, victim.model, victim.misinformation, fitted, notes)


def part(report: Report, what: str, start: float, end: float) -> Report:
    """A `Report` for one part of a longer piece of work."""
    return lambda message, fraction: report(f"{what} {message}".strip(), start + (end - start) * fraction)


def hold_out(data: Rows, calibration: Rows | None, wanted: Wanted, seed: int) -> tuple[Part, Part]:
    """(training, calibration) as the graph takes them."""
    inputs = for_model(data, wanted)
    if calibration is None:
        return split(inputs, _class_numbers(data.y), HELD_OUT, seed)
    held_out = Part(for_model(calibration, wanted), _class_numbers(calibration.y))
    return Part(inputs, _class_numbers(data.y)), held_out


def _class_numbers(y: Array | None) -> Array | None:
    if y is None or y.dtype.kind in "iu":
        return y
    if not np.isfinite(y).all() or (y != np.round(y)).any():
        raise CalibrationError("y holds real values; hardening is for classifiers, whose y are class numbers")
    return y.astype(np.int64)


def _victim(graph: Any, training: Part, held_out: Part, files: tuple[Rows, Rows | None], options: Options) -> Victim:
    """The graph with canonical outputs, its inputs' ranges and its labels."""
    if options.output not in ("auto", "logits", "probabilities"):
        raise UnsupportedModelError(f"hardening needs probabilities; a model of {options.output} is sealed as it is")
    sample = {name: x[:SAMPLE_ROWS] for name, x in held_out.inputs.items()}
    model, task = graphs.normalise_outputs(graph, options.output, sample, Task.CLASSIFICATION)
    if task is not Task.CLASSIFICATION:
        raise UnsupportedModelError(
            f"hardening needs probabilities; a model that answers {task.value} is sealed as it is"
        )
    both = {name: np.concatenate([x, held_out.inputs[name]]) for name, x in training.inputs.items()}
    bytes_ = model.SerializeToString()
    probabilities = score(open_session(bytes_), sample, ["probabilities"])["probabilities"]
    given = [options.labels, *(rows.labels for rows in files if rows is not None)]
    labels = next((names for names in given if names is not None), None)
    classes = probabilities.shape[1]
    if labels is not None and (len(labels) != classes or len(set(labels)) != classes):
        raise CalibrationError(
            f"expected {classes} different labels, one for each output, found {len(labels)}: {labels}"
        )
    return Victim(
        model=bytes_,
        outputs=tuple(o.name for o in model.graph.output),
        inputs=input_specs(both, options.bounds),
        labels=labels or tuple(str(k) for k in range(classes)),
        datatype=probabilities.dtype,
        threads=options.threads,
    )


def with_feature_score(victim: Victim, training: Part, options: Options) -> Victim:
    """The victim whose graph computes the score over its features, where that is the score asked for."""
    if options.score not in FEATURE_SCORES:
        return victim
    graph = onnx.load_model_from_string(victim.model)
    scored = add_feature_score(graph, options.score, training, options.seed, options.threads)
    return replace(victim, model=scored.SerializeToString(), outputs=tuple(o.name for o in scored.graph.output))


def calibrated(victim: Victim, held_out: Part, options: Options, report: Report) -> tuple[FloatArray, Calibration]:
    """The model's probabilities for the held-out rows, and the threshold that follows from them."""
    found = score(open_session(victim.model, options.threads), held_out.inputs, report=report)
    probabilities = found["probabilities"]
    confidence = confidence_of(
        options.score, probabilities, found.get("logits"), feature_score=found.get(options.score)
    )
    return probabilities, calibrate(probabilities, confidence, held_out.y, benign_loss=options.benign_loss)


def train_own_network(victim: Victim, training: Part, options: Options, report: Report) -> bytes:
    """A network of its own for f'. Only here is torch needed, so only here is it loaded."""
    module, _, name = OWN_NETWORK.partition(":")
    train: OwnNetwork = getattr(importlib.import_module(module), name)
    return train(victim, training, options.seed, options.threads, report)


def watch_of(victim: Victim, held_out: Part, options: Options, report: Report, ask: Ask | None = None) -> Watched:
    """Calibrated detectors, where the owner wants them and the data allow them.

    Args:
        ask: what the model answers; None to run it here.
    """
    facts = victim.facts()
    if not options.detectors:
        return Watched({}, {})
    why = why_unwatched(facts, len(held_out))
    if why:
        return Watched({}, {}, (why,))
    looks = (DefenseSpec(name="projection"), DefenseSpec(name=options.score))
    if ask is None:
        names = tuple(name for name in victim.outputs if name != "misinformation")
        ask = partial(_scored, open_session(victim.model, options.threads), names)
    return calibrate_watch(ask, facts, looks, held_out.inputs, seed=options.seed, report=report)


def _scored(session: Any, names: tuple[str, ...], inputs: dict[str, Array]) -> dict[str, Array]:
    return score(session, inputs, names)


def guard_chain(
    fitted: Calibration, options: Options, victim: Victim, detectors: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[DefenseSpec, ...]:
    """bounds, [budget], [projection], score, [watch, in shadow], misinformation or reject option, release; every parameter written out.

    Args:
        detectors: of `watch`, calibrated; without any there is no `watch`.

    Raises:
        GuardError: a parameter out of range, or a defense that such a model cannot have.
    """
    specs = [DefenseSpec(name="bounds")]
    if options.budget is not None:
        specs.append(DefenseSpec(name="budget", parameters=options.budget))
    if detectors:
        specs.append(DefenseSpec(name="projection"))
    specs.append(DefenseSpec(name=options.score))
    if detectors:
        specs.append(DefenseSpec(name=WATCH, parameters={"detectors": dict(detectors)}))
    if options.on_ood == "misinform":
        shape = {"tau": fitted.tau, "tail_scale": fitted.tail_scale, "margins": fitted.margins}
        parameters = shape | {"constant_time": options.constant_time}
        specs.append(DefenseSpec(name=f"{options.misinformation}-misinformation", parameters=parameters))
    else:
        specs.append(DefenseSpec(name="reject-option", parameters={"tau": fitted.tau, "action": options.on_ood}))
    specs.append(DefenseSpec(name="release", parameters=options.release))
    defenses = [load_defense(spec) for spec in specs]
    for defense in defenses:
        defense.check(victim.facts())
    return specs_of(defenses, frozenset({WATCH}))


def draw_outliers(
    given: Rows | None, wanted: Wanted, victim: Victim, held_out: Part, seed: int
) -> dict[str, Array] | None:
    """Given outliers, or drawn ones for a single real-valued input; None where neither can be had."""
    if given is not None:
        return for_model(given, wanted)
    (name, x), *more = held_out.inputs.items()
    if more or x.dtype.kind != "f" or np.isnan(x).any():
        return None
    low, high = np.min(victim.inputs[0].minimum), np.max(victim.inputs[0].maximum)
    drawn = outlier_set(x.shape[1:], DRAWN_OUTLIERS, seed, benign=x, low=float(low), high=float(high))
    return {name: drawn.astype(x.dtype)}


def describe_hardened(
    victim: Victim,
    chain: tuple[DefenseSpec, ...],
    metrics: dict[str, float],
    digests: dict[str, str],
    options: Options,
    upstream: UpstreamEntry | None = None,
) -> Hardened:
    """The description of what was done; `upstream` where another server runs the model."""
    return Hardened(
        upstream=upstream,
        task=Task.CLASSIFICATION,
        labels=victim.labels,
        inputs=victim.inputs,
        guard=chain,
        metrics=metrics,
        data_sha256=digests,
        outlier_exposure=options.outlier_exposure,
        versions=software_versions(("garrison", "numpy", "onnx", "onnxruntime", "torch")),
    )


def notes_of(fitted: Calibration, metrics: dict[str, float], *, in_sample: bool) -> tuple[str, ...]:
    """What the owner should know, in plain English."""
    notes = []
    if in_sample:
        notes.append(
            "a fifth of --data was held out for calibration. If the model was trained on these rows, it is surer of them than "
            "of new ones: tau is then too high, and honest callers lose more than stated. Give unseen rows by --calibration"
        )
    if not fitted.holds:
        notes.append(
            f"{fitted.rows} calibration rows are too few to promise a benign loss of {fitted.asked:.2%}: tau is set so that "
            f"none of them is lost, which proves no more than {fitted.loss_high:.2%}. {rows_needed(fitted.asked)} rows are needed"
        )
    if not fitted.labelled:
        notes.append(
            "there are no labels, so the benign loss is the share of rows whose answer changes, right or wrong"
        )
    if metrics.get("outliers_caught", 1.0) < WEAK:
        notes.append(
            f"the guard catches only {metrics['outliers_caught']:.1%} of outliers: the model is as sure of them as of honest "
            "inputs. Train it with outlier exposure (docs/hardening.md)"
        )
    return tuple(notes)
