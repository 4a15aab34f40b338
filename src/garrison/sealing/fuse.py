"""Joins the traced guard and the model's graph into one graph.

    guarded = fuse(model, traced)       # asked inputs -> marks, what may be released, scores

The model's nodes, names and parameters stay as they are; only the guard's own tensors are renamed. Where model and guard have different operator sets,
the older is raised to the newer; `garrison.sealing.seal` checks the answers.
"""

from __future__ import annotations

from collections.abc import Iterable

from garrison.errors import MissingExtraError
from garrison.runtime.runner import VALUES_OUTPUT
from garrison.sealing.tracing import Traced, UntracedError
from garrison.sealing.unbranch import without_nan_guard
from garrison.types import Task

try:
    import onnx
    from onnx import compose, version_converter
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

_PLAIN = {"", "ai.onnx"}
PROBABILITIES = VALUES_OUTPUT[Task.CLASSIFICATION]


def fuse(model: onnx.ModelProto, traced: Traced) -> onnx.ModelProto:
    """One graph from three. Its outputs are the guard's, then the model's.

    Raises:
        UntracedError: the older of model and guard cannot be raised to the newer's operator set, or a name stands in both.
    """
    risen, first, last = level(model, traced.before, traced.after)
    before, after = _apart(first, "guard.before/"), _apart(last, "guard.after/")
    _check_names(risen.graph, before.graph, after.graph)
    made = {output.name for graph in (before.graph, risen.graph) for output in graph.output}
    graph = onnx.helper.make_graph(
        [*before.graph.node, *risen.graph.node, *after.graph.node],
        "guarded",
        [*before.graph.input, *(value for value in after.graph.input if value.name not in made)],
        [*_own(before, {value.name for value in risen.graph.input}), *after.graph.output, *risen.graph.output],
        [*before.graph.initializer, *risen.graph.initializer, *after.graph.initializer],
        value_info=risen.graph.value_info,
    )
    joined = onnx.ModelProto()
    joined.CopyFrom(risen)
    joined.graph.CopyFrom(graph)
    joined.ir_version = max(risen.ir_version, before.ir_version)
    without_nan_guard(joined.graph, PROBABILITIES)
    return joined


def level(*models: onnx.ModelProto) -> tuple[onnx.ModelProto, ...]:
    """These graphs in the newest of their operator sets.

    Raises:
        UntracedError: one cannot be raised to it.
    """
    newest = max(map(_version_of, models))
    return tuple(_raised(model, newest) for model in models)


def _version_of(model: onnx.ModelProto) -> int:
    """The operator set of a graph; 0 where it names none."""
    return next((opset.version for opset in model.opset_import if opset.domain in _PLAIN), 0)


def _raised(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    found = _version_of(model)
    if found == version:
        return model
    try:
        return version_converter.convert_version(model, version)
    except Exception as error:  # the converter knows no errors of its own
        raise UntracedError(f"a graph of the operator set {found} cannot be raised to {version}") from error


def _apart(model: onnx.ModelProto, prefix: str) -> onnx.ModelProto:
    """Inner tensors and nodes under a name of their own."""
    return compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)


def _own(before: onnx.ModelProto, models: set[str]) -> list[onnx.ValueInfoProto]:
    return [value for value in before.graph.output if value.name not in models]


def _check_names(*graphs: onnx.GraphProto) -> None:
    """No tensor is made twice."""
    made: set[str] = set()
    for graph in graphs:
        names = [*_outputs(graph.node), *(tensor.name for tensor in graph.initializer)]
        twice = made & set(names)
        if twice:
            raise UntracedError(f"the name {min(twice)!r} stands in the model and in the guard")
        made |= set(names)


def _outputs(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    return (name for node in nodes for name in node.output if name)
