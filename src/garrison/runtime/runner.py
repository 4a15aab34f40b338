"""Runs a verified bundle's graphs in ONNX Runtime, on one thread, in slices that bound memory.

The parameters are handed to the runtime from the verified private copy, never from a file. With a parameter memory that is smaller than
the model, they go out again, under a tag that only this process can make, and come in segment by segment (see
`garrison.runtime.on_demand`). Invariant: a row's result does not depend on the batch that it came in beyond floating-point rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from garrison.bundle.manifest import GraphEntry, InputSpec
from garrison.bundle.reader import VerifiedBundle
from garrison.errors import ManifestError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.runtime.on_demand import Memory
from garrison.runtime.segments import Pieces, WholeError, cut, optimise, session_options
from garrison.runtime.store import Budget, OutsideMemory, ParameterSource, Tagger, VerifiedStore
from garrison.types import NUMPY_DTYPES, Array, FloatArray, RawScores, Task

VALUES_OUTPUT = {Task.CLASSIFICATION: "probabilities", Task.SCORES: "scores", Task.REGRESSION: "values"}

_ORT_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


logger = logging.getLogger(__name__)

RESIDENT, ON_DEMAND, WHOLE = "resident", "on demand", "whole"
_SELF_CHECK_ROWS = 2
_SELF_CHECK_TOLERANCE = 1e-3


class _Network(Protocol):
    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> Sequence[FloatArray]: ...


class Runner:
    """The victim's graph and, where there is one, the graph of f'. Keeps no reference to the bundle.

    Args:
        bundle: a verified bundle.
        limits: `compute_rows` bounds one run of the runtime.
        parameter_memory: most bytes of parameters in memory at once, from here on; None for all of them.
        outside: where parameters lie while they are not in memory; None for a file without a name in the machine's memory.
        tagger: recognises them when they come back; None for a `Gmac` under a fresh key. Another one is for measurements alone.

    Attributes:
        budget: the bytes of parameters in memory, counted.
        parameters: "resident", "on demand", or "whole: ..." with the reason why a smaller parameter memory has no effect.

    Raises:
        ManifestError: the graph cannot be loaded, or its inputs or outputs are not those that the manifest names.
        ConfigError: `parameter_memory` is too small for this model; says what the least is.
    """

    def __init__(
        self,
        bundle: VerifiedBundle,
        limits: Limits = DEFAULT_LIMITS,
        *,
        parameter_memory: int | None = None,
        outside: ParameterSource | None = None,
        tagger: Tagger | None = None,
    ) -> None:
        manifest = bundle.manifest
        self._slice = limits.compute_rows
        self._values = VALUES_OUTPUT[manifest.task]
        self._outputs = [name for name in (self._values, "logits", "misinformation") if name in manifest.graph.outputs]
        self.budget = Budget(parameter_memory)
        wanted = [(manifest.graph, self._outputs)]
        if manifest.misinformation is not None:
            wanted.append((manifest.misinformation, ["misinformation"]))
        networks: list[_Network] = []
        for graph, outputs in wanted:
            session = _session(bundle, graph)
            _check_signature(session, graph, manifest.inputs, outputs[0])
            networks.append(_Whole(session))
        size = sum(_parameter_bytes(graph) for graph, _ in wanted)
        self.parameters = RESIDENT
        if parameter_memory is not None and size > parameter_memory:
            store = VerifiedStore(OutsideMemory() if outside is None else outside, tagger)
            try:
                networks = _on_demand(bundle, wanted, networks, self.budget, store)
                self.parameters = ON_DEMAND
            except WholeError as error:
                self.budget = Budget()  # the bound cannot be kept, and this says so
                self.parameters = f"{WHOLE}: {error}"
                logger.warning("the model is run whole, %d bytes of parameters in memory: %s", size, error)
        if self.parameters != ON_DEMAND:
            self.budget.take(size)
        self._victim = networks[0]
        self._wrong = networks[1] if len(networks) > 1 else None

    def run(self, inputs: dict[str, Array]) -> RawScores:
        """Score rows.

        Args:
            inputs: by name, each (rows, ...) in the manifest's dtype and shape; at least one row.

        Raises:
            BundleError: parameters were changed outside after they had been verified; nothing was computed with them.
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
        network = self._wrong
        if network is None:
            return None
        return lambda rows: self._sliced(network, ["misinformation"], {n: x[rows] for n, x in inputs.items()})[0]

    def _sliced(self, network: _Network, outputs: list[str], inputs: dict[str, Array]) -> Sequence[FloatArray]:
        rows = len(next(iter(inputs.values())))
        if rows <= self._slice:
            return network.run(outputs, inputs)
        starts = range(0, rows, self._slice)
        parts = [network.run(outputs, {n: x[i : i + self._slice] for n, x in inputs.items()}) for i in starts]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]


class _Whole:
    """One session over the whole graph, with all parameters in it."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> Sequence[FloatArray]:
        found: Sequence[FloatArray] = self._session.run(outputs, inputs)
        return found


def _parameter_bytes(graph: GraphEntry) -> int:
    """Bytes of a graph's parameters; of one that keeps them in its nodes, the graph's own."""
    return sum(chunk.size for chunk in graph.chunks) if graph.chunks else graph.size


def _on_demand(
    bundle: VerifiedBundle,
    wanted: Sequence[tuple[GraphEntry, list[str]]],
    whole: Sequence[_Network],
    budget: Budget,
    store: VerifiedStore,
) -> list[_Network]:
    """The graphs in segments, checked against the whole ones; one that cannot be cut stays whole beside one that can.

    Raises:
        WholeError: none can be cut, or one answers otherwise then.
    """
    cuts: dict[int, Pieces] = {}
    reasons, fixed = [], 0
    for i, (graph, outputs) in enumerate(wanted):
        try:
            cuts[i] = pieces_of(bundle, graph, outputs)
        except WholeError as error:
            reasons.append(error)
            fixed += _parameter_bytes(graph)
    if not cuts:
        raise reasons[0]
    memory = Memory(list(cuts.values()), budget, store, fixed)
    networks = memory.networks(list(cuts.values()), [wanted[i][1] for i in cuts])
    rows = example_inputs(bundle.manifest.inputs, _SELF_CHECK_ROWS)
    found = list(whole)
    for i, network in zip(cuts, networks, strict=True):
        outputs = wanted[i][1]
        pairs = zip(network.run(outputs, rows), whole[i].run(outputs, rows), strict=True)
        if not all(np.allclose(a, b, rtol=_SELF_CHECK_TOLERANCE, atol=_SELF_CHECK_TOLERANCE) for a, b in pairs):
            raise WholeError("in segments it does not answer as it does whole")
        found[i] = network
    return found


def pieces_of(bundle: VerifiedBundle, graph: GraphEntry, outputs: Sequence[str]) -> Pieces:
    """A graph of a bundle, optimised for this processor and cut.

    Raises:
        WholeError: it cannot be cut, or it does not pay.
    """
    if graph.whole:
        raise WholeError(graph.whole)
    files = {chunk.file: bundle.files[chunk.file] for chunk in graph.chunks}
    return cut(optimise(bundle.files[graph.file], files), outputs)


def _session(bundle: VerifiedBundle, graph: GraphEntry) -> Any:
    options = session_options()
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
