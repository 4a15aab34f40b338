"""`garrison inspect`: what is in a bundle?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.table import Table

from garrison.bundle.manifest import GraphEntry, InputSpec, Manifest
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.unverified import UnverifiedBundle, read_unverified
from garrison.cli.output import console, json_option, notes, plain, show_json
from garrison.cli.trust import trust_option, trusted_keys_of_user
from garrison.types import DefenseSpec

MOST_CHUNKS_SHOWN = 12
GUARDED = "the graph with the guard around it, over the same parameters; this one is served"
MOST_VALUES_SHOWN = 4
MOST_NUMBERS_SHOWN = 8


@click.command()
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@trust_option
@json_option
def inspect(bundle: Path, trust: tuple[Path, ...], as_json: bool) -> None:
    """Show what BUNDLE holds. With a trusted key it is verified first; without one, it is said that it was not."""
    keys = trusted_keys_of_user(trust)
    found: VerifiedBundle | UnverifiedBundle = verify(bundle, keys) if keys else read_unverified(bundle)
    verified = isinstance(found, VerifiedBundle)
    signer = found.signer if isinstance(found, VerifiedBundle) else found.claimed_signer
    if as_json:
        show_json(_as_json(found.manifest, found.manifest_sha256, signer, verified=verified))
        return
    _show(found.manifest, signer, verified=verified)
    if not verified:
        notes.print(
            "[bold red]NOT VERIFIED[/]: no trusted key was given, so every line above may be a lie. "
            "Give --trust OWNER.pub, GARRISON_TRUST, or trust in garrison.toml.",
            soft_wrap=True,
        )


def _as_json(manifest: Manifest, digest: str, signer: str, *, verified: bool) -> dict[str, Any]:
    return {
        "verified": verified,
        "signer" if verified else "claimed_signer": signer,
        "manifest_sha256": digest,
        "guard_digest": manifest.guard_digest(),
        "guard_form": _guard_form(manifest),
        "manifest": msgspec.to_builtins(manifest),
    }


def _show(manifest: Manifest, signer: str, *, verified: bool) -> None:
    status = "[bold green]verified[/]" if verified else "[bold red]NOT VERIFIED[/]"
    console.print(status, end="  ")
    console.print(plain(f"{manifest.name}, version {manifest.version}"), style="bold")
    console.print(f"{'signed by' if verified else 'claims to be signed by'} {signer}", markup=False, soft_wrap=True)
    labels = f"; labels {_some(manifest.labels)}" if manifest.labels else ""
    answer = f"{manifest.task.value}, {manifest.outputs} x {manifest.output_datatype}{labels}"
    console.print(plain(f"answers  {answer}"), soft_wrap=True)
    if manifest.upstream is not None:
        told = f"guards   {manifest.upstream}, on another server; holds no model, and proves nothing of the parameters there"
        console.print(plain(told), soft_wrap=True)
    console.print(_inputs(manifest.inputs))
    console.print(_guard(manifest.guard))
    key = "needs the misinformation key (BUNDLE.secret)" if manifest.key_commitment else "needs no key"
    console.print(plain(f"the guard runs in the form: {_guard_form(manifest)}; {key}"), soft_wrap=True)
    console.print(_chunks(manifest))
    console.print(_provenance(manifest))


def _guard_form(manifest: Manifest) -> str:
    return "graph" if manifest.guarded is not None else f"numpy: {manifest.numpy_because}"


def _row(table: Table, *cells: str) -> None:
    table.add_row(*map(plain, cells))


def _inputs(inputs: tuple[InputSpec, ...]) -> Table:
    table = Table("input", "datatype", "shape of a row", "smallest", "largest", "may be missing", title="inputs")
    for spec in inputs:
        missing = spec.may_be_missing
        told = (
            f"{sum(missing)} of {len(missing)} features" if isinstance(missing, tuple) else "yes" if missing else "no"
        )
        _row(
            table,
            spec.name,
            spec.datatype,
            " x ".join(map(str, spec.shape)),
            _bound(spec.minimum),
            _bound(spec.maximum),
            told,
        )
    return table


def _bound(value: float | tuple[float, ...]) -> str:
    if isinstance(value, tuple):
        return f"{min(value):g} to {max(value):g}, by feature"
    return f"{value:g}"


def _guard(chain: tuple[DefenseSpec, ...]) -> Table:
    table = Table("defense", "armed", "calibrated values", title="guard")
    for spec in chain:
        values = ", ".join(f"{name} {_some(value)}" for name, value in spec.parameters.items())
        _row(table, spec.name, "shadow" if spec.shadow else "yes", values)
    return table


def _some(value: Any) -> str:
    """A calibrated value in few words; `--json` has all of it."""
    if isinstance(value, Mapping):
        if "name" in value:
            return str(value["name"])
        deep = any(isinstance(one, Mapping) for one in value.values())
        return ", ".join(f"{name} ({_some(one)})" if deep else f"{name} {_some(one)}" for name, one in value.items())
    if not isinstance(value, (list, tuple)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if value and isinstance(value[0], (list, tuple)):
        return f"({len(value)} rows)"
    if len(value) > MOST_NUMBERS_SHOWN and isinstance(value[0], (int, float)):
        return f"({len(value)} numbers)"
    shown = ", ".join(_some(v) for v in value[:MOST_VALUES_SHOWN])
    return shown if len(value) <= MOST_VALUES_SHOWN else f"{shown}, ... ({len(value)} in all)"


def _chunks(manifest: Manifest) -> Table:
    table = Table("file", "bytes", "SHA-256", "holds", title="files")
    for graph in (manifest.victim, manifest.misinformation):
        if graph is not None:
            _add_graph(table, graph)
    if manifest.guarded is not None:
        part = manifest.guarded.graph
        _row(table, part.file, f"{part.size:,}", part.sha256[:16], GUARDED)
    return table


def _add_graph(table: Table, graph: GraphEntry) -> None:
    within = "" if graph.chunks else "; its parameters lie in its nodes (a tree ensemble, say): it is its one chunk"
    how = f"run whole: {graph.whole}" if graph.whole else "can be run in segments (--parameter-memory)"
    told = f"graph, gives {', '.join(graph.outputs)}{within}; {how}"
    _row(table, graph.file, f"{graph.size:,}", graph.sha256[:16], told)
    for chunk in graph.chunks[:MOST_CHUNKS_SHOWN]:
        names = _some(tuple(tensor.name for tensor in chunk.tensors))
        _row(table, chunk.file, f"{chunk.size:,}", chunk.sha256[:16], names)
    rest = graph.chunks[MOST_CHUNKS_SHOWN:]
    if rest:
        _row(table, f"and {len(rest)} more", f"{sum(chunk.size for chunk in rest):,}", "", "")


def _provenance(manifest: Manifest) -> Table:
    p = manifest.provenance
    table = Table("provenance", "", show_header=False, title="provenance")
    _row(table, "sealed", p.created)
    _row(table, "from", f"{p.source_format}, SHA-256 {p.source_sha256[:16]}")
    _row(table, "outlier exposure", "yes" if p.outlier_exposure else "no")
    for role, digest in p.data_sha256.items():
        _row(table, f"{role} data", f"SHA-256 {digest[:16]}")
    for name, value in p.metrics.items():
        _row(table, name.replace("_", " "), f"{value:g}")
    _row(table, "versions", ", ".join(f"{name} {version}" for name, version in p.versions.items()))
    return table
