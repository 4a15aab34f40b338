"""Runs a verified bundle's graphs in ONNX Runtime, on one thread, in slices that bound memory.

The parameters are handed to the runtime from the verified private copy, never from a file. With a parameter memory that is smaller than
the model, they go out again, under a tag that only this process can make, and come in segment by segment (see
`garrison.runtime.on_demand`). Invariant: a row's result does not depend on the batch that it came in beyond floating-point rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from garrison.bundle.manifest import GraphEntry, InputSpec
from garrison.bundle.reader import VerifiedBundle
from garrison.errors import ManifestError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.runtime.guarded import Guarded
from garrison.runtime.loading import cores
from garrison.runtime.on_demand import Memory, OnDemand, least_bytes
from garrison.runtime.parting import NOT_PARTED, PART_BYTES
from garrison.runtime.segments import Pieces, WholeError, cut, optimise
from garrison.runtime.session import check_signature, open_graph
from garrison.runtime.store import Budget, OutsideMemory, ParameterSource, Tagger, VerifiedStore
from garrison.types import FEATURE_SCORES, NUMPY_DTYPES, SQUEEZED, Array, FloatArray, RawScores, Task

VALUES_OUTPUT = {Task.CLASSIFICATION: "probabilities", Task.SCORES: "scores", Task.REGRESSION: "values"}

LOGITS, MISINFORMATION = "logits", "misinformation"

logger = logging.getLogger(__name__)

_NOTHING: Mapping[str, Array] = {}

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
        settings: run the guarded graph, with these numbers of the guard; None for the model's own graph.

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
        settings: Mapping[str, Array] | None = None,
    ) -> None:
        manifest = bundle.manifest
        self._slice = limits.compute_rows
        self._values = VALUES_OUTPUT[manifest.task]
        known = (self._values, LOGITS, MISINFORMATION, *FEATURE_SCORES, SQUEEZED)
        self._outputs = [name for name in known if name in manifest.graph.outputs]
        self._feature_score = next((name for name in FEATURE_SCORES if name in self._outputs), "")
        self._guarded: Guarded | None = None
        wanted = [_Wanted(manifest.graph, self._outputs, manifest.inputs)]
        if manifest.guarded is not None and settings is not None:
            found = self._guarded = Guarded(bundle, manifest.guarded, settings)
            wanted = [_Wanted(found.entry, found.every_output, found.inputs, found.settings)]
        if manifest.misinformation is not None:
            wanted.append(_Wanted(manifest.misinformation, [MISINFORMATION], manifest.inputs))
        self.budget = Budget(parameter_memory)
        networks: list[_Network] = [_Whole(_open(bundle, graph)) for graph in wanted]
        size = sum(_parameter_bytes(graph.entry) for graph in wanted)
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
        self._on_demand = next((network for network in networks if isinstance(network, OnDemand)), None)

    def run(self, inputs: dict[str, Array]) -> RawScores:
        """Score rows.

        Args:
            inputs: by name, each (rows, ...) in the manifest's dtype and shape; at least one row.

        Raises:
            BundleError: parameters were changed outside after they had been verified; nothing was computed with them.
        """
        found = self._found(self._outputs, inputs)
        there = MISINFORMATION in found or self._wrong is not None
        wrong = (lambda rows: self.misinformation(rows, found, inputs)) if there else None
        scores = found.get(self._feature_score)
        return RawScores(found[self._values], found.get(LOGITS), wrong, scores, found.get(SQUEEZED))

    def load_ahead(self) -> bool:
        """Let a thread of its own load parameters while others compute, where they come on demand and there is a second core.

        Not done by itself: an enclave confines its threads first.
        """
        return self._on_demand is not None and self._on_demand.load_ahead()

    def stop_loading(self) -> None:
        """End the thread that `load_ahead` started, if there is one."""
        if self._on_demand is not None:
            self._on_demand.stop_loading()

    def guarded(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All that the guarded graph finds, and of the scores those that keyed answers are made of, by name; each (rows, ...)."""
        return self._found(self._present().outputs, inputs)

    def _present(self) -> Guarded:
        if self._guarded is None:
            raise ManifestError("the guarded graph does not run here")
        return self._guarded

    def _found(self, outputs: list[str], inputs: dict[str, Array]) -> dict[str, Any]:
        guarded = self._guarded
        if guarded is None:
            found = self._sliced(self._victim, outputs, inputs)
        else:
            mine = {guarded.asked[name]: x for name, x in inputs.items()}
            found = self._sliced(self._victim, outputs, mine, guarded.settings)
        return dict(zip(outputs, found, strict=True))

    def misinformation(
        self, rows: slice | npt.NDArray[np.intp], found: Mapping[str, Array], inputs: dict[str, Array]
    ) -> FloatArray:
        """The logarithm of f'(x) for some rows. A second head was computed with f; a network of its own runs only for the rows where it matters.

        Args:
            found: what the model, guarded or not, gave for the inputs.

        Raises:
            ManifestError: the model has neither.
        """
        head = found.get(MISINFORMATION)
        if head is not None:
            return head[rows]
        if self._wrong is None:
            raise ManifestError("the bundle has no misinformation model")
        return self._sliced(self._wrong, [MISINFORMATION], {name: x[rows] for name, x in inputs.items()})[0]

    def _sliced(
        self,
        network: _Network,
        outputs: list[str],
        inputs: Mapping[str, Array],
        settings: Mapping[str, Array] = _NOTHING,
    ) -> Sequence[FloatArray]:
        rows = len(next(iter(inputs.values())))
        if rows <= self._slice:
            return network.run(outputs, {**inputs, **settings})
        starts = range(0, rows, self._slice)
        slices = ({n: x[i : i + self._slice] for n, x in inputs.items()} for i in starts)
        parts = [network.run(outputs, {**part, **settings}) for part in slices]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A graph that is to be run: what it answers, what it takes, and the settings that it is fed with each time."""

    entry: GraphEntry
    outputs: list[str]
    inputs: tuple[InputSpec, ...]
    settings: Mapping[str, Array] = field(default_factory=dict)


def _open(bundle: VerifiedBundle, graph: _Wanted) -> Any:
    session = open_graph(bundle, graph.entry)
    check_signature(session, graph.entry, graph.inputs, graph.settings)
    return session


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
    wanted: Sequence[_Wanted],
    whole: Sequence[_Network],
    budget: Budget,
    store: VerifiedStore,
) -> list[_Network]:
    """The graphs in segments, checked against the whole ones; one that cannot be cut stays whole beside one that can.

    Raises:
        WholeError: none can be cut, or one answers otherwise then.
    """
    parts = (PART_BYTES,) if cores() > 1 else (NOT_PARTED, PART_BYTES)
    for part_bytes in parts:
        cuts, fixed = _cuts(bundle, wanted, part_bytes)
        if budget.most is None or least_bytes(list(cuts.values()), fixed) <= budget.most:
            break  # else in smaller pieces, which are slower on one core
    memory = Memory(list(cuts.values()), budget, store, fixed)
    networks = memory.networks(list(cuts.values()), [wanted[i].outputs for i in cuts])
    found = list(whole)
    for i, network in zip(cuts, networks, strict=True):
        outputs, rows = wanted[i].outputs, {**example_inputs(wanted[i].inputs, _SELF_CHECK_ROWS), **wanted[i].settings}
        pairs = zip(network.run(outputs, rows), whole[i].run(outputs, rows), strict=True)
        if not all(np.allclose(a, b, rtol=_SELF_CHECK_TOLERANCE, atol=_SELF_CHECK_TOLERANCE) for a, b in pairs):
            raise WholeError("in segments it does not answer as it does whole")
        found[i] = network
    return found


def _cuts(bundle: VerifiedBundle, wanted: Sequence[_Wanted], part_bytes: int) -> tuple[dict[int, Pieces], int]:
    """By number, the graphs that can be cut; bytes of the parameters of all others.

    Raises:
        WholeError: none can be cut.
    """
    cuts: dict[int, Pieces] = {}
    reasons, fixed = [], 0
    for i, graph in enumerate(wanted):
        try:
            cuts[i] = pieces_of(bundle, graph.entry, graph.outputs, part_bytes)
        except WholeError as error:
            reasons.append(error)
            fixed += _parameter_bytes(graph.entry)
    if not cuts:
        raise reasons[0]
    return cuts, fixed


def pieces_of(
    bundle: VerifiedBundle, graph: GraphEntry, outputs: Sequence[str], part_bytes: int = PART_BYTES
) -> Pieces:
    """A graph of a bundle, optimised for this processor and cut; its convolutions with more than `part_bytes` parted.

    Raises:
        WholeError: it cannot be cut, or it does not pay.
    """
    if graph.whole:
        raise WholeError(graph.whole)
    files = {chunk.file: bundle.files[chunk.file] for chunk in graph.chunks}
    return cut(optimise(bundle.files[graph.file], files, part_bytes), outputs)


def example_inputs(inputs: tuple[InputSpec, ...], rows: int) -> dict[str, Array]:
    """Rows that every check of the range admits (the lower bounds), for warming up."""

    def lower(spec: InputSpec) -> Array:
        flat = np.broadcast_to(
            np.asarray(spec.minimum, dtype=NUMPY_DTYPES[spec.datatype]), (rows, math.prod(spec.shape))
        )
        return np.ascontiguousarray(flat).reshape(rows, *spec.shape)

    return {spec.name: lower(spec) for spec in inputs}
