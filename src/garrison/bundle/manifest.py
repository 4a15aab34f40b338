"""The manifest: everything about a sealed model but its bytes. Strict: an unknown field is an error.

A bundle is a folder:

    manifest.json            this file
    graph.onnx               the victim's graph; its parameters are references into parameters/
    misinformation.onnx      the graph of f', where f' is a network of its own
    guarded.onnx             the victim's graph with the guard's arithmetic before and after it, and the same parameters
    parameters/0000.bin ...  the parameters, in chunks
    model.sig                OpenSSF model-signing signature over all of the above

A guard-only bundle, for a model that another server runs, has no victim's graph: its manifest says which model there it is for.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import numpy as np

from garrison.crypto.canonical import canonical_json, sha256_hex
from garrison.errors import FormatVersionError, ManifestError
from garrison.types import FEATURE_SCORES, NUMPY_DTYPES, SQUEEZED, DefenseSpec, InputFacts, ModelFacts, Task

FORMAT = "garrison-bundle/1"
MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "model.sig"
PARAMETER_FOLDER = "parameters"
ONLY_COUNTING = frozenset({"budget", "proof-of-work", "repeat-watch", "sanctions"})
"""Defenses that decide whether a question is answered, by who asks and how often, and never what the answer is."""

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
]
"""Datatypes of the Open Inference Protocol that a sealed model may use."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class InputSpec(_Strict, frozen=True):
    """One input tensor.

    Attributes:
        name: as in the graph.
        datatype: Open Inference Protocol datatype.
        shape: shape of one row, without the batch dimension.
        minimum, maximum: allowed range, one number for all features or one a feature (C order).
        may_be_missing: whether NaN stands for a missing value, for all features or one by one.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    minimum: float | tuple[float, ...]
    maximum: float | tuple[float, ...]
    may_be_missing: bool | tuple[bool, ...] = False


class TensorEntry(_Strict, frozen=True):
    """Where a parameter tensor lies within its chunk, in bytes."""

    name: str
    offset: int
    length: int


class ChunkEntry(_Strict, frozen=True):
    """A file of parameters; verified as a whole when it is loaded."""

    file: str
    size: int
    sha256: str
    tensors: tuple[TensorEntry, ...]


class GraphEntry(_Strict, frozen=True):
    """A graph and its parameters. A tree ensemble's parameters lie in its node, so its graph is its one chunk.

    The outputs are named `probabilities` (or `scores`, `values`, by the task), `logits` and `misinformation` (log f').
    `whole` says why the graph cannot be run in segments, with parameters on demand; empty where it can.
    """

    file: str
    size: int
    sha256: str
    outputs: tuple[str, ...]
    chunks: tuple[ChunkEntry, ...] = ()
    whole: str = ""


def asked(name: str) -> str:
    """The guarded graph's input, for the model's."""
    return f"asked.{name}"


class GuardedGraph(_Strict, frozen=True):
    """The guard, traced into a graph (see `garrison.guard.graph_form`).

    Attributes:
        graph: the model's graph between the guard's; its parameters are those of the model's own entry.
        settings: its inputs for what a host may tighten.
        drawn_from: its outputs that answers with keyed noise are made of; none where no answer needs any.
    """

    graph: GraphEntry
    settings: tuple[str, ...]
    drawn_from: tuple[str, ...]


class UpstreamEntry(_Strict, frozen=True, kw_only=True):
    """The model on another Open Inference Protocol server that a guard-only bundle is for.

    It names the model; it proves nothing of that server's parameters.

    Attributes:
        model, version: as that server names them; no version means the one it gives by default.
        platform: what it says it runs the model with; told, not compared.
        metadata_sha256: digest of the model's inputs and outputs as that server describes them.
        digest: digest of the model where that server tells one (another Garrison does), else empty.
        output: the tensor that holds the answer.
        gives, datatype: what that tensor is.
        most_rows: rows that one request may carry.
        batched: whether tensors have a first dimension for rows.
    """

    model: str
    version: str = ""
    platform: str = ""
    metadata_sha256: str
    digest: str = ""
    output: str
    gives: Literal["probabilities", "logits"] = "probabilities"
    datatype: Datatype = "FP32"
    most_rows: int = 1
    batched: bool = True

    def __str__(self) -> str:
        return f"{self.model}, version {self.version}" if self.version else self.model


class Provenance(_Strict, frozen=True):
    """Where the model comes from.

    Attributes:
        created: UTC, RFC 3339.
        source_format: "onnx", "scikit-learn", "torch".
        source_sha256: digest of the model file as given.
        data_sha256: digest of the training or calibration data as given, by role.
        metrics: figures measured at hardening and sealing, as fractions unless the name says otherwise.
        versions: of the software that sealed.
        outlier_exposure: whether the victim was trained with outlier exposure.
    """

    created: str
    source_format: str
    source_sha256: str
    data_sha256: dict[str, str] = msgspec.field(default_factory=dict)
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    outlier_exposure: bool = False


class Manifest(_Strict, frozen=True, kw_only=True):
    """See the module's docstring.

    Attributes:
        name: the model's name, as clients ask for it.
        version: a whole number, at least 1; a client's policy may refuse older ones.
        labels: class labels, empty for regression.
        victim: the model's graph, "graph" in JSON; None in a guard-only bundle.
        upstream: in a guard-only bundle, the model that the guard is for.
        guard: the chain of defenses, with its calibrated values.
        guarded: the same chain traced into the model's graph; None where it runs in numpy, and `numpy_because` says why.
        key_commitment: tells the right misinformation key from a wrong one; empty where the guard needs none.
        require_sealed: the owner demands sealed requests; the enclave refuses plain ones.
    """

    format: str
    name: str
    version: int
    task: Task
    inputs: tuple[InputSpec, ...]
    outputs: int
    output_datatype: Datatype
    labels: tuple[str, ...]
    victim: GraphEntry | None = msgspec.field(default=None, name="graph")
    misinformation: GraphEntry | None
    guard: tuple[DefenseSpec, ...]
    key_commitment: str
    provenance: Provenance
    require_sealed: bool = False
    guarded: GuardedGraph | None = None
    numpy_because: str = ""
    upstream: UpstreamEntry | None = None

    @property
    def graph(self) -> GraphEntry:
        """The model's own graph.

        Raises:
            ManifestError: a guard-only bundle has none.
        """
        if self.victim is None:
            raise ManifestError(
                f"this bundle guards a model that another server runs ({self.upstream}) and holds no model: "
                "`garrison gateway BUNDLE --upstream URL` serves it"
            )
        return self.victim

    @property
    def graphs(self) -> tuple[GraphEntry, ...]:
        """Every graph of the bundle."""
        guarded = None if self.guarded is None else self.guarded.graph
        return tuple(graph for graph in (self.victim, self.misinformation, guarded) if graph is not None)

    def facts(self) -> ModelFacts:
        """What the guard may know of the model."""
        return ModelFacts(
            task=self.task,
            inputs=tuple(input_facts(spec) for spec in self.inputs),
            labels=self.labels,
            outputs=self.outputs,
            value_dtype=NUMPY_DTYPES[self.output_datatype],
            has_logits="logits" in self._outputs,
            has_misinformation=self.misinformation is not None or "misinformation" in self._outputs,
            feature_score=next((name for name in FEATURE_SCORES if name in self._outputs), ""),
            has_squeezed=SQUEEZED in self._outputs,
        )

    @property
    def _outputs(self) -> tuple[str, ...]:
        if self.victim is not None:
            return self.victim.outputs
        return ("logits",) if self.upstream is not None and self.upstream.gives == "logits" else ()

    def guard_digest(self) -> str:
        """SHA-256 of the signed chain, in hex."""
        return guard_digest(self.guard)

    def model_digest(self) -> str:
        """SHA-256 of the model itself, in hex: its graph and parameters, without guard, name and version. Equal for every seal of it.

        In a guard-only bundle that of what the other server says of its model, which proves nothing.
        """
        if self.victim is not None:
            return parts_digest([self.victim.sha256, *(chunk.sha256 for chunk in self.victim.chunks)])
        return parts_digest(["upstream", "" if self.upstream is None else self.upstream.metadata_sha256])

    def answers_digest(self, chain: tuple[DefenseSpec, ...] | None = None) -> str:
        """SHA-256 of what decides the answers, in hex: the model, and the chain without what only counts or prices questions.

        Args:
            chain: the one that runs; None for the signed one.
        """
        return answers_digest(self.model_digest(), self.guard if chain is None else chain)

    def encode(self) -> bytes:
        return msgspec.json.format(canonical_json(self), indent=1)


def guard_digest(chain: tuple[DefenseSpec, ...]) -> str:
    """SHA-256 of a chain of defenses in canonical JSON, in hex."""
    return sha256_hex(canonical_json(chain))


def parts_digest(parts: list[str]) -> str:
    """SHA-256 of a list of digests, in hex; see `Manifest.model_digest`."""
    return sha256_hex(canonical_json(parts))


def answers_digest(model: str, chain: tuple[DefenseSpec, ...]) -> str:
    """See `Manifest.answers_digest`."""
    return sha256_hex(canonical_json([model, [spec for spec in chain if spec.name not in ONLY_COUNTING]]))


def input_facts(spec: InputSpec) -> InputFacts:
    """The arrays that checks need, made once. Bounds are in the tensor's own dtype and flattened to (features,)."""
    dtype, features = NUMPY_DTYPES[spec.datatype], math.prod(spec.shape)

    def spread(value: object, kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(value).astype(kind), (features,)))

    return InputFacts(
        name=spec.name,
        dtype=dtype,
        shape=spec.shape,
        low=spread(spec.minimum, dtype),
        high=spread(spec.maximum, dtype),
        may_be_missing=spread(spec.may_be_missing, np.dtype(np.bool_)),
    )


def parse_manifest(data: bytes) -> Manifest:
    """Read and check a manifest's bytes. The bytes must already be known to be signed.

    Raises:
        FormatVersionError: a bundle of another format version.
        ManifestError: not JSON, an unknown or ill-typed field, a path that leaves the bundle, values that contradict.
    """
    try:
        found = msgspec.json.decode(data, type=dict[str, Any]).get("format")
        if found != FORMAT:
            raise FormatVersionError(f"expected format {FORMAT!r}, found {found!r}", file=MANIFEST_FILE)
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"not a valid manifest: {error}", file=MANIFEST_FILE) from error
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    _expect(
        manifest.name != "" and "/" not in manifest.name and manifest.name.isprintable(),
        "name must be printable and hold no '/'",
    )
    _expect(manifest.version >= 1, "version must be at least 1")
    _expect(bool(manifest.inputs), "there must be at least one input")
    _expect(manifest.outputs >= 1, "outputs must be at least 1")
    _expect(not manifest.labels or len(manifest.labels) == manifest.outputs, "labels must be as many as outputs")
    for spec in manifest.inputs:
        _check_input(spec)
    for graph in manifest.graphs:
        _check_graph(graph)
    _expect((manifest.victim is None) != (manifest.upstream is None), "there must be either a graph or an upstream")
    if manifest.upstream is not None:
        _check_upstream(manifest, manifest.upstream)


def _check_upstream(manifest: Manifest, upstream: UpstreamEntry) -> None:
    for name in (upstream.model, upstream.output):
        _expect(name != "" and name.isprintable(), "upstream: model and output must be printable names")
    _expect(upstream.version.isprintable(), "upstream: the version must be printable")
    _expect(upstream.datatype == manifest.output_datatype, "upstream: datatype must be output_datatype")
    _expect(upstream.most_rows >= 1, "upstream: most_rows must be at least 1")
    _expect(manifest.task is Task.CLASSIFICATION, "upstream: only classifiers are guarded on another server")
    _expect(manifest.guarded is None, "upstream: without a graph there is none to guard")
    _expect(not manifest.require_sealed, "upstream: no enclave can open sealed requests for another server")


def _check_input(spec: InputSpec) -> None:
    features = math.prod(spec.shape)
    _expect(all(n >= 1 for n in spec.shape), f"input {spec.name!r}: every dimension must be at least 1")
    for name in ("minimum", "maximum", "may_be_missing"):
        value = getattr(spec, name)
        _expect(
            not isinstance(value, tuple) or len(value) == features,
            f"input {spec.name!r}: {name} must have {features} entries",
        )


def _check_graph(graph: GraphEntry) -> None:
    entries: list[GraphEntry | ChunkEntry] = [graph, *graph.chunks]
    for entry in entries:
        parts = entry.file.split("/")
        plain = all(part and part not in {".", ".."} and "\\" not in part and "\0" not in part for part in parts)
        _expect(plain, f"{entry.file!r} is not a plain path within the bundle")
        _expect(entry.size >= 0, f"{entry.file!r}: size must not be negative")
    for chunk in graph.chunks:
        for tensor in chunk.tensors:
            inside = tensor.offset >= 0 and tensor.length >= 0 and tensor.offset + tensor.length <= chunk.size
            _expect(inside, f"{chunk.file!r}: tensor {tensor.name!r} lies outside the chunk")


def _expect(condition: bool, message: str) -> None:  # noqa: FBT001  reads as a sentence at every call
    if not condition:
        raise ManifestError(message, file=MANIFEST_FILE)
