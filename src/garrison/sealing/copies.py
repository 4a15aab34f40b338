"""A model's graph that answers squeezed copies of its input too, all rows stacked in one run, as one output more.

    x -> [x, squeezed x, ...] -> the model's own nodes -> answers to x, and `squeezed`

The squeezers' arithmetic (`garrison.guard.squeezing`) is traced, so it is that of the defense to the letter. The model's parameters stay as they are. Only its
answers to the rows as they came get their names; the answers to the copies, (rows, copies * outputs), are for the guard alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from garrison.bundle.manifest import InputSpec, input_facts
from garrison.errors import MissingExtraError, UnsupportedModelError
from garrison.guard.defenses.feature_squeezing import FeatureSqueezing
from garrison.guard.squeezing import squeezed
from garrison.hardening.graph_walk import rename
from garrison.hardening.scoring import open_session, score
from garrison.sealing.fuse import level
from garrison.sealing.tracing import UntracedError
from garrison.sealing.unbranch import unbranch
from garrison.types import SQUEEZED, Array

try:
    import ndonnx as ndx
    import onnx
    from onnx import compose, helper
except ImportError as error:
    raise MissingExtraError("ndonnx", "seal") from error

_PREFIX = "garrison_copies/"
_TOLERANCE = 1e-4
_WHOLE = np.dtype(np.int64)


def with_copies(
    model: onnx.ModelProto, spec: InputSpec, defense: FeatureSqueezing, values: str, sample: Mapping[str, Array]
) -> onnx.ModelProto:
    """A copy of the graph with the output `SQUEEZED`.

    Args:
        model: a classifier of pictures with canonical outputs; it is not changed.
        spec: of its one input.
        defense: says how rows are squeezed.
        values: the output that is answered to copies too.
        sample: a few rows, on which the new graph must answer like the old one.

    Raises:
        UnsupportedModelError: the graph cannot be run on stacked rows, or answers otherwise then.
    """
    expected = score(open_session(model.SerializeToString()), sample)
    try:
        own, squeezer = level(model, _squeezer(spec, defense))
    except UntracedError as error:
        raise UnsupportedModelError(f"{defense.name}: {error}") from error
    found = _joined(own, squeezer, spec, {name: x.shape[1] for name, x in expected.items()}, values, defense.copies)
    _compare(found, sample, expected, defense.name)
    return found


def _squeezer(spec: InputSpec, defense: FeatureSqueezing) -> onnx.ModelProto:
    facts = input_facts(spec)
    x = ndx.argument(shape=("rows", *spec.shape), dtype=ndx.asarray(np.zeros(1, facts.dtype)).dtype)
    stacked = ndx.concat([x, *squeezed(ndx, x, facts, defense.bits, defense.window)], axis=0)
    return unbranch(ndx.build({spec.name: x}, {f"{_PREFIX}stacked": stacked}))


def _joined(
    model: onnx.ModelProto,
    squeezer: onnx.ModelProto,
    spec: InputSpec,
    widths: Mapping[str, int],
    values: str,
    copies: int,
) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    rename(graph, spec.name, f"{_PREFIX}stacked")
    before = compose.add_prefix(squeezer, f"{_PREFIX}squeezer/", rename_inputs=False, rename_outputs=False).graph
    kinds = {output.name: output.type.tensor_type.elem_type for output in graph.output}
    names = [output.name for output in graph.output]
    for name in names:
        rename(graph, name, f"{_PREFIX}{name}")
    nodes, constants, outputs = [], [], []
    for name in names:
        width = widths[name]
        constants.append(_constant(f"{name}/form", [copies + 1, -1, width]))
        nodes.append(helper.make_node("Reshape", [f"{_PREFIX}{name}", constants[-1].name], [f"{_PREFIX}{name}/apart"]))
        nodes += _taken(constants, f"{name}/apart", name, 0, 1, [-1, width])
        outputs.append(helper.make_tensor_value_info(name, kinds[name], ["rows", width]))
    nodes += _taken(constants, f"{values}/apart", SQUEEZED, 1, copies + 1, [-1, copies * widths[values]])
    outputs.append(helper.make_tensor_value_info(SQUEEZED, kinds[values], ["rows", copies * widths[values]]))
    inner = list(graph.node)
    for part, new in (
        (graph.node, [*before.node, *inner, *nodes]),
        (graph.input, before.input),
        (graph.output, outputs),
    ):
        kept = [type(one).FromString(one.SerializeToString()) for one in new]
        del part[:]
        part.extend(kept)
    graph.initializer.extend([*before.initializer, *constants])
    del graph.value_info[:]  # their number of rows is another now
    changed.ir_version = max(changed.ir_version, squeezer.ir_version)
    return changed


def _constant(name: str, numbers: list[int]) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array(numbers, _WHOLE), f"{_PREFIX}{name}")


def _taken(
    constants: list[onnx.TensorProto], apart: str, name: str, first: int, end: int, shape: list[int]
) -> list[onnx.NodeProto]:
    """Nodes that take some of the stacked answers, those to one row beside each other."""
    made = [
        _constant(f"{name}/{what}", numbers)
        for what, numbers in (("first", [first]), ("end", [end]), ("axis", [0]), ("shape", shape))
    ]
    constants += made
    start, stop, axis, form = (constant.name for constant in made)
    slices, turned = f"{_PREFIX}{name}/slice", f"{_PREFIX}{name}/turned"
    return [
        helper.make_node("Slice", [f"{_PREFIX}{apart}", start, stop, axis], [slices]),
        helper.make_node("Transpose", [slices], [turned], perm=[1, 0, 2]),
        helper.make_node("Reshape", [turned, form], [name]),
    ]


def _compare(model: onnx.ModelProto, sample: Mapping[str, Array], expected: Mapping[str, Array], name: str) -> None:
    try:
        found = score(open_session(model.SerializeToString()), sample)
    except Exception as error:  # the runtime refuses in many ways
        raise UnsupportedModelError(
            f"{name}: this graph cannot be run on stacked rows ({type(error).__name__})"
        ) from error
    for output, value in expected.items():
        if not np.allclose(found[output], value, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            raise UnsupportedModelError(
                f"{name}: this graph answers a row otherwise where other rows are beside it, so copies cannot be stacked"
            )
