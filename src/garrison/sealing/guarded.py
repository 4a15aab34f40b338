"""The traced guard as a file of a bundle, and the proof that it answers like the numpy form.

A chain or a model that cannot be traced runs in numpy; the manifest says why. So does one whose graph answers otherwise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from garrison.bundle.manifest import GraphEntry, GuardedGraph
from garrison.bundle.reader import VerifiedBundle
from garrison.crypto.canonical import sha256_hex
from garrison.errors import MissingExtraError
from garrison.guard.graph_form import GraphForm, settings_of
from garrison.guard.numpy_form import NumpyForm
from garrison.guard.pipeline import Pipeline, Progress
from garrison.runtime.runner import Runner
from garrison.sealing.fuse import fuse
from garrison.sealing.place import GUARDED_FILE
from garrison.sealing.tracing import trace
from garrison.types import Array, Batch, Caller, DefenseSpec, ModelFacts, Released

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

TOLERANCE = 1e-5
"""Largest difference between the forms that is put down to rounding: absolute, and relative to the value. The model's graph may be
optimised otherwise with the guard around it."""
_MOST_ROWS = 64


@dataclass(frozen=True, slots=True)
class GuardFile:
    """Manifest entry of a traced guard, and its graph."""

    entry: GuardedGraph
    data: bytes


def trace_guard(chain: tuple[DefenseSpec, ...], facts: ModelFacts, model: GraphEntry, graph: bytes) -> GuardFile:
    """Trace a chain around a model.

    Args:
        model, graph: the model's entry in the manifest and its graph, whose parameters lie in chunks.

    Raises:
        UntracedError: it cannot be done; says why.
    """
    traced = trace(chain, facts)
    fused = fuse(onnx.load_model_from_string(graph), traced)
    data = fused.SerializeToString(deterministic=True)
    outputs = tuple(output.name for output in fused.graph.output)
    entry = GraphEntry(file=GUARDED_FILE, size=len(data), sha256=sha256_hex(data), outputs=outputs, whole=model.whole)
    drawn_from = tuple(name for name in traced.drawn_from if name in outputs)
    return GuardFile(GuardedGraph(graph=entry, settings=_settings(fused, chain), drawn_from=drawn_from), data)


def _settings(model: onnx.ModelProto, chain: tuple[DefenseSpec, ...]) -> tuple[str, ...]:
    """Inputs without dimensions, named after a defense."""
    names = {spec.name for spec in chain}
    found = (value for value in model.graph.input if not value.type.tensor_type.shape.dim)
    return tuple(value.name for value in found if value.name.split(".")[0] in names)


def why_different(bundle: VerifiedBundle, key: bytes | None, rows: dict[str, Array]) -> str:
    """How the traced guard answers otherwise than the numpy form; "" where it does not.

    Args:
        rows: inputs as they come; some of them are also tried with values that must be refused.
    """
    pipeline = Pipeline(bundle.manifest.guard, bundle.manifest.facts(), key)
    batch = _trial(rows, bundle.manifest.facts())
    with _unheard():
        try:
            graph = GraphForm(pipeline, Runner(bundle, settings=settings_of(pipeline)))(batch)
        except Exception as error:  # noqa: BLE001  whatever it is, this bundle runs in numpy
            return f"the runtime does not run the traced guard ({type(error).__name__}: {error})"
        fresh = Pipeline(bundle.manifest.guard, bundle.manifest.facts(), key)  # which remembers nobody yet
        return _difference(graph, NumpyForm(fresh, Runner(bundle).run)(batch))


@contextmanager
def _unheard() -> Iterator[None]:
    """What the made-up caller of a trial sets off is no news to whoever seals."""
    guard = logging.getLogger("garrison.guard")
    level = guard.level
    guard.setLevel(logging.ERROR)
    try:
        yield
    finally:
        guard.setLevel(level)


def _trial(rows: dict[str, Array], facts: ModelFacts) -> Batch:
    """One request a row: rows as they are, then rows with one value that is out of range, infinite or unknown."""
    inputs = {name: x[:_MOST_ROWS] for name, x in rows.items()}
    bad = []
    for spec in facts.inputs:
        for value in (math.nan, math.inf, -math.inf, float(np.max(spec.high)) * 2 + 1):
            if spec.dtype.kind == "f":
                odd = {name: x[:1].copy() for name, x in inputs.items()}
                odd[spec.name].reshape(1, -1)[0, -1] = value
                bad.append(odd)
    inputs = {name: np.concatenate([x, *(odd[name] for odd in bad)]) for name, x in inputs.items()}
    count = len(next(iter(inputs.values())))
    return Batch(inputs, np.arange(count, dtype=np.intp), (Caller("trial"),) * count, (-1,) * count)


def _difference(graph: tuple[Progress, Released], numpy: tuple[Progress, Released]) -> str:
    (found, said), (wanted, expected) = graph, numpy
    if found.refused != wanted.refused:
        return "the traced guard refuses other requests than numpy does"
    kept = np.array([code is None for code in wanted.refused])
    if not np.array_equal(found.replaced[kept], wanted.replaced[kept]):
        return "the traced guard replaces other answers than numpy does"
    for name, value in expected.outputs.items():
        mine, theirs = said.outputs[name][kept], value[kept]
        if mine.dtype != theirs.dtype or not np.allclose(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            return f"the traced guard releases other values of {name!r} than numpy does"
    return ""
