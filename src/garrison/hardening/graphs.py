"""ONNX graphs: read them safely, find what they take and answer, give the outputs their canonical names.

Canonical names: `probabilities` (classification), `scores` or `values` for the answer; beside it `logits` and
`misinformation` (log f') where the graph offers them. All other outputs are cut off, with the nodes that only they need.

Not checked here: whether a graph's operators are cheap; an owner seals a graph that he trusts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from garrison.errors import MissingExtraError, ModelFileError, UnsupportedModelError
from garrison.hardening.graph_walk import all_nodes, all_tensors, prune, rename
from garrison.hardening.scoring import open_session, score
from garrison.types import DATATYPES, Array, Task

try:
    import onnx
    from onnx import external_data_helper, helper, inliner
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

MOST_MODEL_BYTES = 2**31 - 1
"""Protobuf's own limit, for the graph with all its parameters."""
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
Declared = Literal["auto", "logits", "probabilities", "scores", "values"]
TASKS: dict[str, Task] = {
    "logits": Task.CLASSIFICATION,
    "probabilities": Task.CLASSIFICATION,
    "scores": Task.SCORES,
    "values": Task.REGRESSION,
}
PORTABLE_IR_VERSION = 10
"""The newest container version that every ONNX Runtime we support reads; the newer ones add nothing that we use."""
SUM_TOLERANCE = 1e-3
BATCH_TOLERANCE = 1e-3


# Reading -----------------------------------------------------------------------------------------------------------


def load_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file, with its external data where it has some.

    Local functions are inlined, initializers that are also listed as inputs become plain initializers.

    Raises:
        ModelFileError: not readable, not ONNX, too large, external data missing or outside the model's own folder.
        UnsupportedModelError: operators of a custom domain.
    """
    try:
        if path.stat().st_size > MOST_MODEL_BYTES:
            raise ModelFileError(f"{path}: larger than {MOST_MODEL_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise ModelFileError(f"{path}: not an ONNX model") from error
    _load_external(model, path)
    return check_model(model, str(path))


def check_model(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """As `load_model`, for a model that is already in memory and has no external data; `name` is for messages."""
    if not model.HasField("graph") or not model.graph.node:
        raise ModelFileError(f"{name}: not an ONNX model, or one without any node")
    _check_domains(model, name)
    try:
        onnx.checker.check_model(model)
        model = inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:
        raise ModelFileError(f"{name}: not a valid ONNX model: {str(error).strip()[:300]}") from error
    _drop_initializer_inputs(model)
    return model


def _check_domains(model: onnx.ModelProto, name: str) -> None:
    own = {function.domain for function in model.functions}
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    for node in (node for body in bodies for node in all_nodes(body)):
        local = node.domain in own and any(f.domain == node.domain and f.name == node.op_type for f in model.functions)
        if node.domain not in DOMAINS and not local:
            raise UnsupportedModelError(
                f"{name}: the operator {node.domain}::{node.op_type} is a custom one; only standard ONNX operators "
                f"(domains ai.onnx and ai.onnx.ml) can be sealed. Export the model again without it"
            )


def _drop_initializer_inputs(model: onnx.ModelProto) -> None:
    """Before IR version 4 every initializer had to be listed as an input too."""
    initial = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    kept = [i for i in model.graph.input if i.name not in initial]
    if len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.ir_version = max(model.ir_version, 4)


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    """Check where external data lies before anything of it is read."""
    external = [t for t in all_tensors(model) if external_data_helper.uses_external_data(t)]
    total = model.ByteSize()
    for tensor in external:
        total += _check_external(tensor, path)
        if total > MOST_MODEL_BYTES:
            raise ModelFileError(f"{path}: with its external data larger than {MOST_MODEL_BYTES} bytes")
    for tensor in external:
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except Exception as error:
            raise ModelFileError(f"{path}: external data of {tensor.name!r} cannot be read: {error}") from error
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _check_external(tensor: onnx.TensorProto, path: Path) -> int:
    """Bytes that the tensor takes from its file."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location, folder = fields.get("location", ""), path.parent.resolve()
    file = (folder / location).resolve()
    inside = location and not Path(location).is_absolute() and "\\" not in location and "\0" not in location
    if not inside or not file.is_relative_to(folder):
        raise ModelFileError(f"{path}: external data of {tensor.name!r} lies outside the model's own folder")
    if not file.is_file():
        raise ModelFileError(f"{path}: external data of {tensor.name!r}: no file {location!r} beside the model")
    size = file.stat().st_size
    try:
        offset = int(fields.get("offset", "0"))
        length = int(fields.get("length", str(size - offset)))
    except ValueError as error:
        raise ModelFileError(f"{path}: external data of {tensor.name!r}: offset and length must be numbers") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelFileError(f"{path}: external data of {tensor.name!r} reaches beyond the end of {location!r}")
    return length


# Outputs -----------------------------------------------------------------------------------------------------------


def normalise_outputs(
    model: onnx.ModelProto,
    declared: Declared,
    sample: dict[str, Array],
    task: Task | None = None,
) -> tuple[onnx.ModelProto, Task]:
    """Find the answer among the outputs and give it its canonical name.

    Args:
        model: see `load_model`; it is not changed.
        declared: what the owner says the answer is. "logits" appends a softmax. "auto" takes what the sample shows: rows that
            are non-negative and sum to 1 are probabilities; whatever is not plain is an error that names the choices.
        sample: a few real input rows by name, at least two.
        task: what the labels of the data suggest, for "auto" (real values: regression).

    Returns:
        A changed copy, and what its answer means.

    Raises:
        UnsupportedModelError: no output fits, several do, the graph cannot be run on batches of any size, or a row's answer
            depends on its batch.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.ir_version = min(changed.ir_version, PORTABLE_IR_VERSION)
    _unzip(changed.graph)
    found = _answers(changed, sample)
    extra = {name: found.pop(name) for name in ("misinformation",) if name in found and len(found) > 1}
    kind, name = _choose(found, declared, task)
    kept = _canonical(changed, kind, name)
    _keep_logits(changed, kind, kept, found)
    if extra and extra["misinformation"].shape == found[name].shape:
        kept.append("misinformation")
    outputs = [o for o in changed.graph.output if o.name in kept]
    del changed.graph.output[:]
    changed.graph.output.extend(sorted(outputs, key=lambda o: kept.index(o.name)))
    prune(changed.graph)
    return changed, TASKS[kind]


def _answers(model: onnx.ModelProto, sample: dict[str, Array]) -> dict[str, Array]:
    """Real-valued outputs on the sample, each (rows, k); checks that a row's answer does not depend on its batch."""
    session = open_session(model.SerializeToString())
    together = score(session, sample)
    alone = score(session, {name: x[:1] for name, x in sample.items()})
    found: dict[str, Array] = {}
    for name, value in together.items():
        if value.dtype.kind != "f" or value.ndim > 2:
            continue
        if not np.allclose(value[:1], alone[name], rtol=BATCH_TOLERANCE, atol=BATCH_TOLERANCE, equal_nan=True):
            raise UnsupportedModelError(
                f"output {name!r}: a row's answer depends on the other rows of its batch; "
                "export the model in evaluation mode (batch normalisation, dropout)"
            )
        if not np.isfinite(value).all():
            raise UnsupportedModelError(
                f"output {name!r}: NaN or infinite on the given rows; check the data and the model"
            )
        found[name] = value.reshape(len(value), -1)
    if not found:
        raise UnsupportedModelError(f"expected a real-valued output of shape (rows, k), found {sorted(together)}")
    return found


def _choose(found: dict[str, Array], declared: Declared, task: Task | None) -> tuple[str, str]:
    """(kind, name of the output)."""
    if declared == "auto":
        return _guess(found, task)
    wide = {n: v for n, v in found.items() if TASKS[declared] is Task.REGRESSION or v.shape[1] >= 2}
    if declared == "probabilities":
        wide = {n: v for n, v in wide.items() if is_probability(v)}
        expected = "of at least two columns, non-negative and with sum 1"
    else:
        expected = "of at least two columns" if TASKS[declared] is not Task.REGRESSION else "of real values"
    name = declared if declared in wide else next(iter(wide), None)
    if name is None:
        shown = ", ".join(f"{n} {v.shape[1:]}" for n, v in found.items())
        raise UnsupportedModelError(f"--output {declared}: expected an output {expected}, found {shown}")
    if len(wide) > 1 and name != declared:
        raise UnsupportedModelError(
            f"--output {declared}: several outputs could be meant ({', '.join(wide)}); rename one of them to {declared!r}"
        )
    return declared, name


def _guess(found: dict[str, Array], task: Task | None) -> tuple[str, str]:
    likely = [name for name, value in found.items() if is_probability(value)]
    if likely and task is not Task.REGRESSION:
        return "probabilities", "probabilities" if "probabilities" in likely else likely[0]
    name, value = next(iter(found.items()))
    if len(found) == 1 and (task is Task.REGRESSION or (value.shape[1] == 1 and task is None)):
        return "values", name
    shown = ", ".join(f"{n} with {v.shape[1]} columns" for n, v in found.items())
    raise UnsupportedModelError(
        f"the outputs ({shown}) are no probabilities; say what the answer is: --output logits (a softmax is appended), "
        "--output scores (class scores, served as they are) or --output values (real values)"
    )


def is_probability(values: Array) -> bool:
    """Whether every row is non-negative and sums to 1."""
    total = np.abs(values.sum(axis=1) - 1.0)
    return bool(values.shape[1] >= 2 and (values >= -1e-6).all() and (total <= SUM_TOLERANCE).all())


def _canonical(model: onnx.ModelProto, kind: str, name: str) -> list[str]:
    """Give the chosen output its canonical name, and a softmax where it is logits. Returns the names to keep."""
    graph, target = model.graph, "probabilities" if kind == "logits" else kind
    _move(graph, name, "logits" if kind == "logits" else target)
    if kind != "logits":
        return [target]
    _free(graph, target)
    graph.node.append(helper.make_node("Softmax", ["logits"], [target], name="garrison_softmax", axis=1))
    logits = next(o for o in graph.output if o.name == "logits")
    answer = onnx.ValueInfoProto()
    answer.CopyFrom(logits)
    answer.name = target
    graph.output.append(answer)
    return [target, "logits"]


def _keep_logits(model: onnx.ModelProto, kind: str, kept: list[str], found: dict[str, Array]) -> None:
    """Offer logits beside probabilities, where the graph has them: as an output, or as what its last softmax takes."""
    graph = model.graph
    if kind != "probabilities":
        return
    if "logits" in found and any(o.name == "logits" for o in graph.output):
        kept.append("logits")
        return
    last = next((n for n in graph.node if "probabilities" in n.output), None)
    if last is None or last.op_type != "Softmax" or last.domain not in {"", "ai.onnx"}:
        return
    if not any(last.input[0] in node.output for node in graph.node):
        return
    _move(graph, last.input[0], "logits")
    answer = next(o for o in graph.output if o.name == "probabilities")
    logits = onnx.ValueInfoProto()
    logits.CopyFrom(answer)
    logits.name = "logits"
    if not any(o.name == "logits" for o in graph.output):
        graph.output.append(logits)
    kept.append("logits")


def _move(graph: onnx.GraphProto, old: str, new: str) -> None:
    if old == new:
        return
    if any(old == i.name for i in graph.input):
        raise UnsupportedModelError(f"output {old!r} is one of the inputs")
    _free(graph, new)
    rename(graph, old, new)


def _free(graph: onnx.GraphProto, name: str) -> None:
    """Make a name free for our use."""
    if any(name == i.name for i in graph.input):
        raise UnsupportedModelError(f"an input is named {name!r}, which is the name of an answer; rename it")
    rename(graph, name, f"{name}_before_sealing")


def _unzip(graph: onnx.GraphProto) -> None:
    """skl2onnx's default wraps probabilities in a list of dictionaries (ZipMap); take the tensor that goes in."""
    for node in [n for n in graph.node if n.op_type == "ZipMap"]:
        for output in [o for o in graph.output if o.name == node.output[0]]:
            graph.output.remove(output)
            graph.output.append(helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, [None, None]))
        graph.node.remove(node)


# Inputs ------------------------------------------------------------------------------------------------------------


def graph_inputs(model: onnx.ModelProto) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """By input name: its Open Inference Protocol datatype, and the shape of one row (None where any size goes).

    Raises:
        UnsupportedModelError: an input that is no tensor, of a type that the protocol lacks, or without a batch dimension
            that is free.
    """
    return {value.name: _graph_input(value) for value in model.graph.input}


def _graph_input(value: onnx.ValueInfoProto) -> tuple[str, tuple[int | None, ...]]:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedModelError(f"input {value.name!r}: expected a tensor")
    tensor = value.type.tensor_type
    try:
        datatype = DATATYPES[np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))]
    except KeyError:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UnsupportedModelError(f"input {value.name!r}: tensors of {kind} cannot be served") from None
    if not tensor.HasField("shape") or not tensor.shape.dim:
        raise UnsupportedModelError(f"input {value.name!r}: expected a shape (rows, ...), the graph states none")
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if sizes[0] is not None and sizes[0] > 0:
        raise UnsupportedModelError(
            f"input {value.name!r}: the batch is fixed to {sizes[0]} rows; export the model with a dynamic first dimension"
        )
    return datatype, tuple(sizes[1:])
