"""`garrison serve`: a guarded prediction service."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from garrison.bundle.manifest import parse_manifest
from garrison.cli.output import json_option, notes, show_json
from garrison.cli.trust import trust_option, trusted_keys
from garrison.config import Config, load_config
from garrison.enclave.backends import BACKENDS
from garrison.enclave.host import ServiceCard
from garrison.enclave.levels import HARDWARE, LEVELS, NONE, level_reached
from garrison.server.root import assemble, run, state_folder
from garrison.server.workers import run_workers

RELEASE_MODES = ("full", "rounded", "top-k", "labels", "label")
_file = click.Path(dir_okay=False, path_type=Path)


_SIZE = re.compile(r"(\d{1,9})\s*(MIB|GIB)")
_UNITS = {"MIB": 1, "GIB": 1024}


def _mebibytes(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:  # noqa: ARG001  click's own signature
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip().upper())
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"expected a size such as 64MiB or 2GiB, found {value!r}")
    return int(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@trust_option
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen at; 0 for any free one.  [default: 8080]")
@click.option("--host", help="Address to listen at.  [default: 127.0.0.1]")
@click.option("--config", "config_file", type=_file, help="Settings.  [default: garrison.toml where it is]")
@click.option("--keys", type=_file, help="API keys, from `garrison keys add`; callers must then show one.")
@click.option(
    "--secret",
    multiple=True,
    type=_file,
    envvar="GARRISON_SECRET",
    help="File with a model's misinformation key.  [default: GARRISON_SECRET, else BUNDLE.secret]",
)
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), help="Folder where budgets are kept.")
@click.option("--release", type=click.Choice(RELEASE_MODES), help="Release no more than this of each answer.")
@click.option("--allow-anonymous", is_flag=True, help="Listen beyond this machine although callers need no key.")
@click.option(
    "--isolation",
    type=click.Choice(sorted(BACKENDS)),
    help="How models are kept apart from the server; none for not at all.  [default: process]",
)
@click.option(
    "--require-isolation",
    type=click.Choice(LEVELS),
    help="Refuse to serve at a lower level than this.  [default: none]",
)
@click.option("--secret-heap", is_flag=True, help="Keep an enclave's memory secret even from root's readers.")
@click.option(
    "--parameter-memory",
    callback=_mebibytes,
    metavar="SIZE",
    help="Most parameters that an enclave holds at once, such as 64MiB.  [default: all]",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Processes that serve HTTP before one enclave.  [default: 1]"
)
@json_option
def serve(
    bundles: tuple[Path, ...],
    trust: tuple[Path, ...],
    config_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Serve the sealed models in each BUNDLE behind their guards, until interrupted."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    config = _with_options(load_config(config_file), options)
    trusted = trusted_keys(trust, config.trust)

    def on_ready(url: str, cards: Sequence[ServiceCard]) -> None:
        cards = sorted(cards, key=_place)
        if as_json:
            show_json(_as_json(config, cards, url))
            sys.stdout.flush()
        else:
            _show(config, cards, url)

    if config.server.workers > 1:
        run_workers(config, bundles, trusted, on_ready)
        return
    assembly = assemble(config, bundles, trusted)
    run(assembly, lambda url: on_ready(url, [enclave.card for enclave in assembly.enclaves]))


def _with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """The settings, with what the command line says in their place."""
    plain = ("host", "port", "isolation", "require_isolation", "workers")
    given = {name: options[name] for name in plain if options[name] is not None}
    given |= {name: str(options[name].absolute()) for name in ("keys", "state") if options[name] is not None}
    if options["secret"]:
        given["secret"] = tuple(str(file.absolute()) for file in options["secret"])
    given |= {name: True for name in ("allow_anonymous", "secret_heap") if options[name]}
    if options["parameter_memory"] is not None:
        given["parameter_memory_mib"] = options["parameter_memory"]
    guard = dict(config.guard)
    if options["release"]:
        mode = "labels" if options["release"] == "label" else options["release"]
        guard["release"] = guard.get("release", {}) | {"mode": mode}
    return msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, **given), guard=guard)


def _place(card: ServiceCard) -> tuple[str, int]:
    manifest = parse_manifest(card.manifest_json)
    return manifest.name, manifest.version


def _state(config: Config, cards: Sequence[ServiceCard]) -> Path | None:
    """Where budgets are kept, if there are any."""
    return state_folder(config) if any(card.budget_rows for card in cards) else None


def _show(config: Config, cards: Sequence[ServiceCard], url: str) -> None:
    for card in cards:
        chain = ", ".join(f"{spec.name}{' (shadow)' if spec.shadow else ''}" for spec in card.chain)
        name, version = _place(card)
        notes.print(f"model     {name}, version {version}", markup=False)
        notes.print(f"  guard   {chain}", markup=False)
        notes.print(f"  gives   {', '.join(output.name for output in card.outputs)}", markup=False)
        notes.print(f"  budget  {_budget(card)}", markup=False)
        notes.print(f"  key     {card.public_key.hex()}", markup=False, soft_wrap=True)
        if card.parameters not in {"", "resident"}:
            notes.print(f"  parameters: {card.parameters}", markup=False, soft_wrap=True)
        _show_isolation(card)
    callers = "by API key" if config.server.keys else "by address, no key needed"
    notes.print(f"callers   {callers}", markup=False)
    if (state := _state(config, cards)) is not None:
        notes.print(f"budgets   kept in {state}", markup=False, soft_wrap=True)
    if config.server.workers > 1:
        what = "each runs the models" if config.server.isolation == NONE else "one enclave a model for all"
        notes.print(f"workers   {config.server.workers}, {what}", markup=False)
    click.echo(url)


def _show_isolation(card: ServiceCard) -> None:
    if card.isolation == NONE:
        notes.print("[bold red]  isolation: none (no enclave)[/] whoever runs this machine sees inputs and secrets")
        return
    style = "bold red" if ":" in card.isolation else ""
    notes.print(f"  isolation: {card.isolation}", style=style, markup=False, soft_wrap=True)
    if level_reached(card.isolation, card.technology) != HARDWARE:
        note = "  (a simulation of an enclave: it stops neither root who injects code nor a hypervisor)"
        notes.print(note, markup=False, soft_wrap=True)


def _budget(card: ServiceCard) -> str:
    return f"{card.budget_rows} rows a caller ({card.budget_period})" if card.budget_rows else "none"


def _as_json(config: Config, cards: Sequence[ServiceCard], url: str) -> dict[str, Any]:
    state = _state(config, cards)
    return {
        "url": url,
        "callers": "keys" if config.server.keys else "addresses",
        "state": None if state is None else str(state),
        "workers": config.server.workers,
        "models": [
            {
                "name": _place(card)[0],
                "version": _place(card)[1],
                "guard": [msgspec.to_builtins(spec) for spec in card.chain],
                "outputs": [output.name for output in card.outputs],
                "budget_rows": card.budget_rows,
                "budget_period": card.budget_period,
                "public_key": card.public_key.hex(),
                "manifest_digest": card.manifest_digest,
                "guard_digest": card.guard_digest,
                "parameters": card.parameters,
                "isolation": card.isolation,
                "capabilities": card.capabilities,
            }
            for card in cards
        ],
    }
