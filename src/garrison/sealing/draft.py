"""What is to be sealed, complete and in memory. Made by `garrison.sealing.sources`, taken by `garrison.sealing.seal`."""

from __future__ import annotations

from dataclasses import dataclass, field

from garrison.bundle.manifest import InputSpec, Provenance, UpstreamEntry
from garrison.errors import MissingExtraError
from garrison.types import Array, DefenseSpec, Task

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A model and everything that its manifest will say.

    Attributes:
        name, version: how clients ask for it; the version is at least 1.
        model: the victim's graph, outputs with their canonical names; None where another server runs the model.
        upstream: which model there, then.
        misinformation: the graph of f', where it is a network of its own.
        task: what the answer means.
        labels: class labels; empty for regression.
        inputs: with their value ranges.
        guard: the chain of defenses, calibrated, in order of phase.
        provenance: where the model comes from.
        rows: a few real input rows by name, on which the sealed bundle is compared with `model` before it is put in place.
        require_sealed: plain requests are refused; only an enclave can serve the model then.
        notes: what the owner should know, in plain English; printed by the command line, not sealed.
    """

    name: str
    version: int
    model: onnx.ModelProto | None
    upstream: UpstreamEntry | None = None
    misinformation: onnx.ModelProto | None = None
    task: Task
    labels: tuple[str, ...]
    inputs: tuple[InputSpec, ...]
    guard: tuple[DefenseSpec, ...]
    provenance: Provenance
    rows: dict[str, Array]
    require_sealed: bool = False
    notes: tuple[str, ...] = field(default=())
