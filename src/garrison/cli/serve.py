"""`garrison serve`: a guarded prediction service. Loads little before the enclaves' programs are started (see `garrison.cli.serving`)."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from garrison.cli.front_door import front_door_options, listening_options, through_the_front_door
from garrison.cli.output import json_option
from garrison.cli.trust import trust_option
from garrison.config import DEFAULT_FILE, SETTINGS_VARIABLE, Config, load_config
from garrison.enclave.backends import BACKENDS, OF_A_PROGRAM
from garrison.enclave.levels import LEVELS
from garrison.enclave.log import write_server_log
from garrison.enclave.memory import share_pools
from garrison.enclave.program import Program, spawn
from garrison.limits import MIB

_SERVING = "garrison.cli.serving"
RELEASE_MODES = ("full", "rounded", "top-k", "label")
_PATHS = ("keys", "state", "collateral", "signature_secret")
_FLAGS = ("allow_anonymous", "secret_heap", "store_may_forget", "tls_client_names", "insecure_plaintext")
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
@listening_options
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Listen for gRPC too; 0 for any free port.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), help="Folder for budgets and caller state.")
@click.option(
    "--ledger",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the ledger of what was asked and answered; none is kept without it.",
)
@click.option(
    "--collateral",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of what the hardware's vendor says of this machine; handed on with quotes (snp, tdx, sgx).",
)
@click.option("--release", type=click.Choice(RELEASE_MODES), help="Release no more than this of each answer.")
@front_door_options
@click.option("--signatures", type=click.Choice(["rfc9421"]), help="Sign every plain answer in the form of HTTP too.")
@click.option("--signature-secret", type=_file, help="Secret (base64) that clients share, for signatures by HMAC.")
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
@click.option("--enclave", metavar="CID:PORT", help="Where the Nitro enclave listens (--isolation nitro).")
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
    share_pools()
    config = _with_options(load_config(config_file), options)
    write_server_log(config.operations.log)
    settings = Path(DEFAULT_FILE) if config_file is None else config_file
    os.environ[SETTINGS_VARIABLE] = str(settings.absolute()) if settings.exists() else ""
    programs = _begin(config, len(bundles))
    try:
        # Loaded now, while the programs load what they need.
        importlib.import_module(_SERVING).serve_bundles(config, bundles, trust, programs, as_json=as_json)
    finally:
        for program in programs:
            program.end()


def _begin(config: Config, count: int) -> list[Program]:
    """Start the enclaves' programs: they take as long to load as we do."""
    server = config.server
    if server.isolation not in OF_A_PROGRAM:
        return []
    lines = server.workers if server.workers > 1 else 0
    heap = server.secret_heap_mib * MIB if server.secret_heap else 0
    return [spawn(heap, lines) for _ in range(count)]


def _with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """The settings, with what the command line says in their place."""
    plain = ("host", "port", "grpc_port", "isolation", "require_isolation", "workers", "enclave", "signatures")
    given = {name: options[name] for name in plain if options[name] is not None}
    given |= {name: str(options[name].absolute()) for name in _PATHS if options[name] is not None}
    if options["secret"]:
        given["secret"] = tuple(str(file.absolute()) for file in options["secret"])
    if options["secret_heap"]:
        given["secret_heap"] = True
    if options["parameter_memory"] is not None:
        given["parameter_memory_mib"] = options["parameter_memory"]
    guard = dict(config.guard)
    if options["release"]:
        mode = "labels" if options["release"] == "label" else options["release"]
        guard["release"] = guard.get("release", {}) | {"mode": mode}
    ledger = config.ledger
    if options["ledger"] is not None:
        ledger = msgspec.structs.replace(ledger, folder=str(options["ledger"].absolute()))
    return msgspec.structs.replace(through_the_front_door(config, options, given), guard=guard, ledger=ledger)
