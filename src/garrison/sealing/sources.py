"""From a model as an owner has it to a draft that can be sealed.

draft = draft_from_hardened(Path("HARDENED"), options)
draft = draft_from_source(read_source(Path("model.onnx")), {"x": x}, y, options)
manifest = seal(draft, owner, Path("BUNDLE"))
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from garrison.bundle.manifest import InputSpec, Provenance, input_facts
from garrison.errors import ConfigError, MissingExtraError, ModelFileError, SealingError
from garrison.guard.defenses.adaptive_misinformation import AdaptiveMisinformation
from garrison.guard.defenses.max_probability import MaxProbability
from garrison.guard.defenses.projection import Projection
from garrison.guard.pipeline import load_defense
from garrison.hardening.artifact import Hardened, read_hardened, software_versions
from garrison.hardening.data import Rows, for_model
from garrison.hardening.drift import with_drift
from garrison.hardening.graph_walk import rename
from garrison.hardening.graphs import load_model, normalise_outputs
from garrison.hardening.scoring import open_session, score
from garrison.hardening.watching import Watched, calibrate_watch, why_unwatched
from garrison.runtime.runner import VALUES_OUTPUT
from garrison.sealing.chain import build_chain, edit_chain
from garrison.sealing.chosen import Answers, choices_of
from garrison.sealing.completing import complete
from garrison.sealing.draft import Draft
from garrison.sealing.formats.source import Source, check_against_reference
from garrison.sealing.inputs import check_rows, describe_inputs, drawn_rows, model_inputs
from garrison.sealing.options import SealOptions
from garrison.types import Array, DefenseSpec, ModelFacts, Task

try:
    import onnx
    from onnx import TensorProto, helper
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

UPSTREAM_FORMAT = "open inference protocol"
"""Stands for the format of a model that another server runs; the digest is that of its description."""
_PACKAGES = ("garrison", "onnx", "onnxruntime", "numpy")


def draft_from_hardened(path: Path, options: SealOptions, rows: Rows | None = None) -> Draft:
    """Everything as hardening left it, with the owner's choices on top.

    Args:
        path: the HARDENED folder.
        options: `range_margin`, `output` and `benign_loss` were decided at hardening and have no effect here.
        rows: real rows to try the sealed bundle on; without them rows are drawn from the allowed ranges.

    Raises:
        ModelFileError: the folder is damaged.
        GuardError: a choice that does not fit the chain.
    """
    found = read_hardened(path)
    if options.require_sealed and found.upstream is not None:
        raise ConfigError(
            "no enclave can open sealed requests for a model that another server runs: no --require-sealed"
        )
    model = None if found.model is None else load_model(path / found.model)
    held = None if rows is None else _inputs(found, model, rows)
    answers = None if model is None or held is None else _answers(model, found.task, held)
    chain = edit_chain(found.guard, options, answers)
    used = any(isinstance(load_defense(spec), AdaptiveMisinformation) for spec in chain)
    wrong = load_model(path / found.misinformation) if found.misinformation is not None and used else None
    tried = drawn_rows(found.inputs) if held is None else check_rows(held)
    origin = found.upstream.metadata_sha256 if found.upstream is not None else found.sha256[str(found.model)]
    columns = None if model is None else _in_columns(model, found.task, tried)
    done = complete(columns, chain, found.task, found.inputs, held, tried, _chosen(options))
    return Draft(
        name=options.name,
        version=options.version,
        model=done.model,
        upstream=found.upstream,
        misinformation=wrong,
        task=found.task,
        labels=_labels(options.labels, found.labels, len(found.labels)),
        inputs=found.inputs,
        guard=done.specs,
        provenance=Provenance(
            created=_now(),
            source_format="onnx" if found.upstream is None else UPSTREAM_FORMAT,
            source_sha256=origin,
            data_sha256=found.data_sha256,
            metrics={**found.metrics, **done.metrics},
            versions={**found.versions, **software_versions(_PACKAGES)},
            outlier_exposure=found.outlier_exposure,
        ),
        rows=tried,
        require_sealed=options.require_sealed,
    )


def _chosen(options: SealOptions) -> frozenset[str]:
    return frozenset(choice.name for choice in choices_of(options.defenses))


def _answers(model: onnx.ModelProto, task: Task, inputs: dict[str, Array]) -> Answers:
    """The model's answers, computed where somebody asks for them."""
    name = VALUES_OUTPUT[task]
    return lambda: score(open_session(model.SerializeToString()), inputs, [name])[name]


def _inputs(found: Hardened, model: onnx.ModelProto | None, rows: Rows) -> dict[str, Array]:
    if model is not None:
        return model_inputs(model, rows)
    return for_model(rows, {spec.name: (spec.datatype, spec.shape) for spec in found.inputs})


def draft_from_source(source: Source, rows: Rows, options: SealOptions) -> Draft:
    """A model that was not hardened, with ranges and thresholds from calibration data.

    Args:
        source: the model, see `garrison.sealing.formats`.
        rows: held-out benign rows, from `read_npz` or `rows_from_arrays`.
        options: the owner's choices.

    Raises:
        CalibrationError: data that do not fit the model, or that nothing can be calibrated on.
        UnsupportedModelError: an answer that is not understood, or a conversion that changed it.
        GuardError: a choice that cannot work for such a model.
    """
    inputs = model_inputs(source.model, rows)
    sample = check_rows(inputs)
    specs = describe_inputs(inputs, options)
    declared = source.declared if options.output == "auto" else options.output
    model, task = normalise_outputs(source.model, declared, sample, _task_of(rows.y))
    model = _in_columns(model, task, sample)
    session = open_session(model.SerializeToString())
    found = score(session, inputs)
    values = found[VALUES_OUTPUT[task]]
    if options.output == "auto":
        check_against_reference(source, inputs, values)
    watched = _watched(session, task, specs, values, inputs) if options.detectors else None
    chain = build_chain(found, task, rows.y, options, VALUES_OUTPUT[task], watched)
    guard, drifting = chain.specs, dict[str, float]()
    if options.drift and np.isfinite(values).all():
        guard, drifting = with_drift(guard, _facts(task, specs, values), inputs, values)
    done = complete(model, guard, task, specs, inputs, sample, _chosen(options))
    return Draft(
        name=options.name,
        version=options.version,
        model=done.model,
        task=task,
        labels=_labels(
            options.labels, source.labels or rows.labels or (), 0 if task is Task.REGRESSION else values.shape[1]
        ),
        inputs=specs,
        guard=done.specs,
        provenance=Provenance(
            created=_now(),
            source_format=source.format,
            source_sha256=source.sha256,
            data_sha256={"calibration": rows.sha256},
            metrics=chain.metrics | drifting | done.metrics,
            versions=software_versions((*_PACKAGES, *source.packages)),
        ),
        rows=sample,
        require_sealed=options.require_sealed,
        notes=chain.notes,
    )


def _watched(
    session: Any, task: Task, specs: tuple[InputSpec, ...], values: Array, inputs: dict[str, Array]
) -> Watched:
    """Calibrated detectors, where such a model and so many rows allow them; else a note says why there are none."""
    facts = _facts(task, specs, values)
    why = why_unwatched(facts, len(values))
    if why:
        return Watched({}, {}, (why,))
    looks = (DefenseSpec(name=Projection.name), DefenseSpec(name=MaxProbability.name))
    return calibrate_watch(lambda x: score(session, x, ["probabilities"]), facts, looks, inputs)


def _facts(task: Task, specs: tuple[InputSpec, ...], values: Array) -> ModelFacts:
    """What is known of a model that is not sealed yet."""
    return ModelFacts(
        task=task,
        inputs=tuple(input_facts(spec) for spec in specs),
        labels=() if task is Task.REGRESSION else tuple(str(k) for k in range(values.shape[1])),
        outputs=values.shape[1],
        value_dtype=values.dtype,
        has_logits=False,
        has_misinformation=False,
    )


def _task_of(y: Array | None) -> Task | None:
    return Task.REGRESSION if y is not None and y.dtype.kind == "f" else None


def _labels(chosen: tuple[str, ...], known: tuple[str, ...], outputs: int) -> tuple[str, ...]:
    labels = chosen or known or tuple(str(k) for k in range(outputs))
    if len(labels) != outputs:
        raise SealingError(f"expected {outputs} labels, one a class, found {len(labels)}")
    if len(set(labels)) != len(labels):
        raise SealingError("a label stands twice")
    return labels


def _in_columns(model: onnx.ModelProto, task: Task, sample: Mapping[str, Array]) -> onnx.ModelProto:
    """Real values of shape (rows,) become (rows, 1); everything else in Garrison knows rows of values only."""
    name = VALUES_OUTPUT[task]
    if name not in {o.name for o in model.graph.output}:
        raise ModelFileError(f"expected an output {name!r}, found {', '.join(o.name for o in model.graph.output)}")
    if score(open_session(model.SerializeToString()), sample, [name])[name].ndim != 1:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    flat = f"{name}_of_rows"
    rename(changed.graph, name, flat)
    changed.graph.initializer.append(helper.make_tensor("garrison_columns", TensorProto.INT64, [2], [-1, 1]))
    changed.graph.node.append(helper.make_node("Reshape", [flat, "garrison_columns"], [name]))
    output = next(o for o in changed.graph.output if o.name == flat)
    output.CopyFrom(helper.make_tensor_value_info(name, output.type.tensor_type.elem_type, ["rows", 1]))
    return changed


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
