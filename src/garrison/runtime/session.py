"""Opens the runtime over a verified graph, and checks that it offers what the manifest promises."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnxruntime as ort

from garrison.bundle.manifest import GraphEntry, InputSpec
from garrison.bundle.reader import VerifiedBundle
from garrison.errors import ManifestError
from garrison.runtime.segments import session_options

_ORT_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def open_graph(bundle: VerifiedBundle, graph: GraphEntry) -> Any:
    """A session over a graph of the bundle, its parameters from the verified copy.

    Raises:
        ManifestError: the runtime does not take it.
    """
    options = session_options()
    if graph.chunks:
        buffers = [bundle.files[chunk.file] for chunk in graph.chunks]
        names = [chunk.file for chunk in graph.chunks]
        options.add_external_initializers_from_files_in_memory(names, buffers, [len(b) for b in buffers])
    try:
        return ort.InferenceSession(bundle.files[graph.file], options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ManifestError(f"the runtime cannot load this graph: {type(error).__name__}", file=graph.file) from error


def check_signature(
    session: Any, graph: GraphEntry, inputs: tuple[InputSpec, ...], settings: Collection[str] = ()
) -> None:
    """What the runtime sees must be what the manifest promises to clients."""
    offered = {o.name for o in session.get_outputs()}
    absent = sorted(set(graph.outputs) - offered)
    if absent:
        raise ManifestError(
            f"the manifest names the output {absent[0]!r}, the graph offers {sorted(offered)}", file=graph.file
        )
    seen = {i.name: i for i in session.get_inputs() if i.name not in settings}
    if set(seen) != {spec.name for spec in inputs}:
        raise ManifestError(
            f"the manifest names the inputs {[s.name for s in inputs]}, the graph {sorted(seen)}", file=graph.file
        )
    for spec in inputs:
        _check_input(seen[spec.name], spec, graph.file)


def _check_input(seen: Any, spec: InputSpec, file: str) -> None:
    datatype = _ORT_TYPES.get(seen.type, seen.type)
    if datatype != spec.datatype:
        raise ManifestError(f"input {spec.name!r}: the manifest says {spec.datatype}, the graph {datatype}", file=file)
    fixed = [n for n in seen.shape[1:] if isinstance(n, int)]
    if len(fixed) == len(seen.shape) - 1 and tuple(fixed) != spec.shape:
        raise ManifestError(f"input {spec.name!r}: the manifest says {spec.shape}, the graph {tuple(fixed)}", file=file)
