"""Seals a draft: graph and parameters apart, a manifest over both, the owner's signature over all.

    manifest = seal(draft, owner, Path("BUNDLE"), force=False)

Invariants: what is put in place was verified and run like a server would, and answered like the original; equal drafts give
equal files, except for the signature, which is randomised. The owner's key never leaves this process; a model's misinformation key is
written beside the bundle, never into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from garrison.bundle.manifest import (
    FORMAT,
    MANIFEST_FILE,
    SIGNATURE_FILE,
    Datatype,
    GraphEntry,
    Manifest,
    parse_manifest,
)
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.secret import read_secret, secret_path, staged_secret
from garrison.crypto.canonical import sha256_hex
from garrison.crypto.owner import OwnerKey, key_commitment
from garrison.errors import (
    KeyFileError,
    ManifestError,
    MissingExtraError,
    SealingError,
    TargetExistsError,
    UnsupportedModelError,
)
from garrison.guard.pipeline import Pipeline, load_defense
from garrison.hardening.scoring import open_session, score
from garrison.runtime.misinformation import Misinformation
from garrison.runtime.runner import VALUES_OUTPUT, Runner
from garrison.sealing.draft import Draft
from garrison.sealing.guarded import trace_guard, why_different
from garrison.sealing.parameters import Chunk, split
from garrison.sealing.place import (
    GRAPH_FILE,
    GUARDED_FILE,
    MISINFORMATION_FILE,
    beside,
    check_target,
    put_in_place,
    write_files,
)
from garrison.sealing.segments import why_whole
from garrison.sealing.sign import sign_digests
from garrison.sealing.tracing import UntracedError
from garrison.types import DATATYPES, SQUEEZED, Array, FloatArray

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error

WRONG_OUTPUT = "misinformation"
TOLERANCE = {np.dtype(np.float16): 1e-2, np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-8}
"""Largest difference between a sealed and an original answer that is put down to rounding, relative to the answer's scale."""


@dataclass(frozen=True, slots=True)
class _Graph:
    entry: GraphEntry
    data: bytes
    chunks: tuple[Chunk, ...]

    def files(self) -> dict[str, bytes]:
        return {self.entry.file: self.data} | {chunk.file: chunk.data for chunk in self.chunks}


def seal(draft: Draft, owner: OwnerKey, out: Path, *, force: bool = False) -> Manifest:
    """Seal a draft into a new folder, and write the model's secret beside it where its guard needs one.

    Args:
        draft: what is to be sealed.
        owner: the key that signs.
        out: the bundle's folder; appears whole or not at all.
        force: replace an older bundle; nothing else is ever replaced.

    Raises:
        TargetExistsError: `out`, or the secret file beside it, exists and may not be replaced.
        GuardError: the chain cannot work for this model.
        UnsupportedModelError: the sealed model does not answer like the original.
        SealingError: the folder cannot be written.
    """
    check_target(out, force=force)
    key = owner.misinformation_key(draft.name) if _needs_key(draft) else None
    if key is not None:
        _check_secret_target(secret_path(out), key, force=force)
    expected = _original_answers(draft)
    manifest, files = _assemble(draft, expected, key)
    Pipeline(manifest.guard, manifest.facts(), key)
    with beside(out) as folder:
        _write(folder, files, owner, draft.name)
        bundle = _prove(folder, owner, draft.rows, expected)
        different = why_different(bundle, key, draft.rows) if manifest.guarded is not None else ""
        if different:
            manifest, files = _in_numpy(manifest, files, different)
            _write(folder, files, owner, draft.name)
            _prove(folder, owner, draft.rows, expected)
        if key is None:
            put_in_place(folder, out, force=force)
        else:
            with staged_secret(secret_path(out), key, draft.name) as put_secret_in_place:
                put_in_place(folder, out, force=force)
                put_secret_in_place()
    return manifest


def _write(folder: Path, files: dict[str, bytes], owner: OwnerKey, name: str) -> None:
    (folder / GUARDED_FILE).unlink(missing_ok=True)
    write_files(folder, files | {SIGNATURE_FILE: _signature(files, owner, name)})


def _in_numpy(manifest: Manifest, files: dict[str, bytes], why: str) -> tuple[Manifest, dict[str, bytes]]:
    """The same bundle without a traced guard."""
    plain = msgspec.structs.replace(manifest, guarded=None, numpy_because=why)
    kept = {name: data for name, data in files.items() if name != GUARDED_FILE}
    return plain, kept | {MANIFEST_FILE: plain.encode()}


def _needs_key(draft: Draft) -> bool:
    return any(load_defense(spec).needs_key for spec in draft.guard)


def _check_secret_target(path: Path, key: bytes, *, force: bool) -> None:
    """A file that happens to have the secret's name is not lost."""
    if not path.exists():
        return
    try:
        found = read_secret(path)
    except KeyFileError as error:
        raise TargetExistsError(f"{path} exists and is no secret file of a bundle; move it away") from error
    if found != key and not force:
        raise TargetExistsError(
            f"{path} holds the secret of another bundle; give another name, or --force to replace it"
        )


def _original_answers(draft: Draft) -> dict[str, Array]:
    """What the draft's graphs answer before they are taken apart, by output."""
    found = {} if draft.model is None else _model_answers(draft.model, draft)
    if draft.misinformation is not None:
        wrong = score(open_session(draft.misinformation.SerializeToString()), draft.rows)
        found[WRONG_OUTPUT] = wrong[WRONG_OUTPUT]
    return found


def _model_answers(model: onnx.ModelProto, draft: Draft) -> dict[str, Array]:
    found = score(open_session(model.SerializeToString()), draft.rows)
    values = found.get(VALUES_OUTPUT[draft.task])
    if values is None:
        raise UnsupportedModelError(f"expected an output {VALUES_OUTPUT[draft.task]!r}, found {sorted(found)}")
    for name, value in found.items():
        if value.ndim != 2 or value.dtype not in TOLERANCE:
            raise UnsupportedModelError(
                f"output {name!r}: expected real values of shape (rows, k), found {value.shape}"
            )
    return found


def _assemble(draft: Draft, expected: dict[str, Array], key: bytes | None) -> tuple[Manifest, dict[str, bytes]]:
    answers = {name: value for name, value in expected.items() if draft.misinformation is None or name != WRONG_OUTPUT}
    graph = None if draft.model is None else _graph(draft.model, GRAPH_FILE, draft.rows, answers)
    wrong = None
    if draft.misinformation is not None:
        answers = {WRONG_OUTPUT: expected[WRONG_OUTPUT]}
        first = 0 if graph is None else len(graph.chunks)
        wrong = _graph(draft.misinformation, MISINFORMATION_FILE, draft.rows, answers, first=first)
    outputs, datatype = _answer_form(draft, expected)
    manifest = Manifest(
        format=FORMAT,
        name=draft.name,
        version=draft.version,
        task=draft.task,
        inputs=draft.inputs,
        outputs=outputs,
        output_datatype=datatype,
        labels=draft.labels,
        victim=None if graph is None else graph.entry,
        upstream=draft.upstream,
        misinformation=None if wrong is None else wrong.entry,
        guard=draft.guard,
        key_commitment="" if key is None else key_commitment(key),
        provenance=draft.provenance,
        require_sealed=draft.require_sealed,
    )
    files = {name: data for part in (graph, wrong) if part is not None for name, data in part.files().items()}
    try:
        parse_manifest(manifest.encode())
        if graph is None:
            raise UntracedError("another server runs the model, so there is no graph to trace the guard into")
        guard = trace_guard(manifest.guard, manifest.facts(), graph.entry, graph.data)
        manifest = msgspec.structs.replace(manifest, guarded=guard.entry)
        files |= {GUARDED_FILE: guard.data}
    except ManifestError as error:
        raise SealingError(f"the model cannot be described: {error}") from error
    except UntracedError as error:
        manifest = msgspec.structs.replace(manifest, numpy_because=str(error))
    return manifest, {MANIFEST_FILE: manifest.encode()} | files


def _answer_form(draft: Draft, expected: dict[str, Array]) -> tuple[int, Datatype]:
    """Length and datatype of one row of the answer."""
    if draft.upstream is not None:
        return len(draft.labels), draft.upstream.datatype
    values = expected[VALUES_OUTPUT[draft.task]]
    return values.shape[1], DATATYPES[values.dtype]  # type: ignore[return-value]  # the literals are this table's values


def _graph(
    model: onnx.ModelProto, file: str, rows: dict[str, Array], expected: dict[str, Array], first: int = 0
) -> _Graph:
    data, chunks = split(model, first)
    entry = GraphEntry(
        file=file,
        size=len(data),
        sha256=sha256_hex(data),
        outputs=tuple(output.name for output in model.graph.output),
        chunks=tuple(chunk.entry() for chunk in chunks),
        whole=why_whole(data, chunks, rows, expected),
    )
    return _Graph(entry, data, chunks)


def _signature(files: dict[str, bytes], owner: OwnerKey, name: str) -> bytes:
    return sign_digests({file: sha256_hex(data) for file, data in files.items()}, owner, name)


def _prove(folder: Path, owner: OwnerKey, rows: dict[str, Array], expected: dict[str, Array]) -> VerifiedBundle:
    """Verify and run the sealed bundle as a server does, and compare its answers with the original's."""
    bundle = verify(folder, [owner.public])
    found = _own_answers(bundle, rows)
    for name, value in expected.items():
        _compare(name, value, found.get(name))
    return bundle


def _own_answers(bundle: VerifiedBundle, rows: dict[str, Array]) -> dict[str, FloatArray | None]:
    """What the bundle's graphs answer, by output."""
    manifest = bundle.manifest
    if manifest.upstream is not None:
        wrong = manifest.misinformation
        return {} if wrong is None else {WRONG_OUTPUT: Misinformation(bundle, wrong).run(rows)}
    raw = Runner(bundle).run(rows)
    found: dict[str, FloatArray | None] = {VALUES_OUTPUT[manifest.task]: raw.values, "logits": raw.logits}
    found |= {manifest.facts().feature_score: raw.feature_score, SQUEEZED: raw.squeezed}
    if raw.misinformation is not None:
        found[WRONG_OUTPUT] = raw.misinformation(np.arange(len(raw.values)))
    return found


def _compare(name: str, expected: Array, found: FloatArray | None) -> None:
    if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
        raise UnsupportedModelError(f"the sealed model lost its output {name!r}")
    tolerance = TOLERANCE[expected.dtype]
    scale = max(1.0, float(np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0)))
    if not np.allclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
        worst = float(np.nanmax(np.abs(found.astype(np.float64) - expected)))
        raise UnsupportedModelError(
            f"the sealed model does not answer like the original: {name!r} differs by up to {worst:.3g}; nothing was sealed"
        )
