"""Runs a verified bundle's graphs in ONNX Runtime, on one thread, in slices that bound memory.

The parameters are handed to the runtime from the verified private copy, never from a file. Invariant: a row's result does not
depend on the batch that it came in beyond floating-point rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from garrison.bundle.manifest import GraphEntry, InputSpec
from garrison.bundle.reader import VerifiedBundle
from garrison.errors import ManifestError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.types import NUMPY_DTYPES, Array, FloatArray, RawScores, Task

VALUES_OUTPUT = {Task.CLASSIFICATION: "probabilities", Task.SCORES: "scores", Task.REGRESSION: "values"}

_ORT_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class Runner:
    """The victim's graph and, where there is one, the graph of f'.

    Args:
        bundle: a verified bundle.
        limits: `compute_rows` bounds one run of the runtime.

    Raises:
        ManifestError: the graph cannot be loaded, or its inputs or outputs are not those that the manifest names.
    """

    def __init__(self, bundle: VerifiedBundle, limits: Limits = DEFAULT_LIMITS) -> None:
        manifest = bundle.manifest
        self._slice = limits.compute_rows
        self._values = VALUES_OUTPUT[manifest.task]
        self._outputs = [name for name in (self._values, "logits", "misinformation") if name in manifest.graph.outputs]
        self._victim = _session(bundle, manifest.graph)
        _check_signature(self._victim, manifest.graph, manifest.inputs, self._values)
        self._wrong = None if manifest.misinformation is None else _session(bundle, manifest.misinformation)
        if self._wrong is not None and manifest.misinformation is not None:
            _check_signature(self._wrong, manifest.misinformation, manifest.inputs, "misinformation")

    def run(self, inputs: dict[str, Array]) -> RawScores:
        """Score rows.

        Args:
            inputs: by name, each (rows, ...) in the manifest's dtype and shape; at least one row.
        """
        found = dict(zip(self._outputs, self._sliced(self._victim, self._outputs, inputs), strict=True))
        return RawScores(
            found[self._values], found.get("logits"), self._misinformation(found.get("misinformation"), inputs)
        )

    def _misinformation(
        self, head: FloatArray | None, inputs: dict[str, Array]
    ) -> Callable[[npt.NDArray[np.intp]], FloatArray] | None:
        """A second head is computed with f in one run; a network of its own only for the rows where it matters."""
        if head is not None:
            return lambda rows: head[rows]
        session = self._wrong
        if session is None:
            return None
        return lambda rows: self._sliced(session, ["misinformation"], {n: x[rows] for n, x in inputs.items()})[0]

    def _sliced(self, session: Any, outputs: list[str], inputs: dict[str, Array]) -> Sequence[FloatArray]:
        rows = len(next(iter(inputs.values())))
        if rows <= self._slice:
            return _run(session, outputs, inputs)
        starts = range(0, rows, self._slice)
        parts = [_run(session, outputs, {n: x[i : i + self._slice] for n, x in inputs.items()}) for i in starts]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _run(session: Any, outputs: list[str], inputs: dict[str, Array]) -> Sequence[FloatArray]:
    found: Sequence[FloatArray] = session.run(outputs, inputs)
    return found


def _session(bundle: VerifiedBundle, graph: GraphEntry) -> Any:
    options = ort.SessionOptions()
    # One thread each: several pools would spin against each other, and requests are batched instead.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if graph.chunks:
        buffers = [bundle.files[chunk.file] for chunk in graph.chunks]
        names = [chunk.file for chunk in graph.chunks]
        options.add_external_initializers_from_files_in_memory(names, buffers, [len(b) for b in buffers])
    try:
        return ort.InferenceSession(bundle.files[graph.file], options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ManifestError(f"the runtime cannot load this graph: {type(error).__name__}", file=graph.file) from error


def _check_signature(session: Any, graph: GraphEntry, inputs: tuple[InputSpec, ...], needed: str) -> None:
    """What the runtime sees must be what the manifest promises to clients."""
    offered = {o.name for o in session.get_outputs()}
    absent = sorted(({needed} | set(graph.outputs)) - offered)
    if absent:
        raise ManifestError(
            f"the manifest names the output {absent[0]!r}, the graph offers {sorted(offered)}", file=graph.file
        )
    seen = {i.name: i for i in session.get_inputs()}
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


def example_inputs(inputs: tuple[InputSpec, ...], rows: int) -> dict[str, Array]:
    """Rows that every check of the range admits (the lower bounds), for warming up."""

    def lower(spec: InputSpec) -> Array:
        flat = np.broadcast_to(
            np.asarray(spec.minimum, dtype=NUMPY_DTYPES[spec.datatype]), (rows, math.prod(spec.shape))
        )
        return np.ascontiguousarray(flat).reshape(rows, *spec.shape)

    return {spec.name: lower(spec) for spec in inputs}
