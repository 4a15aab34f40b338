"""`garrison gateway`: the guard in front of a model that another server runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from garrison.cli.front_door import front_door_options, listening_options, through_the_front_door
from garrison.cli.output import json_option
from garrison.cli.serving import serve_bundles
from garrison.cli.trust import trust_option
from garrison.config import Config, ServerConfig, load_config
from garrison.enclave.log import write_server_log
from garrison.enclave.memory import share_pools

_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--upstream", metavar="URL", help="Server that runs the model.  [default: server.upstream in the settings]"
)
@trust_option
@listening_options
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), help="Folder where budgets are kept.")
@front_door_options
@click.option("--upstream-key", type=_file, help="File with an API key for the server that runs the model.")
@click.option(
    "--upstream-ca", type=_file, help="Certificates (PEM) that vouch for that server.  [default: the system's]"
)
@click.option(
    "--upstream-insecure-plaintext", is_flag=True, help="Show that key over plain HTTP beyond this machine too."
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes that serve HTTP.  [default: 1]")
@json_option
def gateway(bundle: Path, trust: tuple[Path, ...], config_file: Path | None, as_json: bool, **options: Any) -> None:
    """Guard the model of another server with BUNDLE, until interrupted.

    BUNDLE is what `garrison seal` makes after `garrison harden --upstream`. The model stays where it is; let clients reach the gateway alone.
    """
    share_pools()
    config = _with_options(load_config(config_file), options)
    write_server_log(config.operations.log)
    if not config.server.upstream:
        raise click.UsageError("name the server that runs the model: --upstream URL")
    serve_bundles(config, [bundle], trust, [], as_json=as_json)


def _with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """The settings, with what the command line says in their place. A gateway knows no isolation but none."""
    given = {name: options[name] for name in ("host", "port", "workers", "upstream") if options[name] is not None}
    files = ("keys", "state", "upstream_key", "upstream_ca")
    given |= {name: str(options[name].absolute()) for name in files if options[name] is not None}
    if options["upstream_insecure_plaintext"]:
        given["upstream_insecure_plaintext"] = True
    if options["secret"]:
        given["secret"] = tuple(str(file.absolute()) for file in options["secret"])
    if config.server.isolation == ServerConfig().isolation:
        given["isolation"] = "none"
    return through_the_front_door(config, options, given)
