"""Options of `garrison serve` and `garrison gateway` about who may come in, over what, and where it is counted how much they ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from garrison.config import Config
from garrison.errors import ConfigError

_file = click.Path(dir_okay=False, path_type=Path)
_PATHS = ("tls_cert", "tls_key", "tls_client_ca")
_FLAGS = ("store_may_forget", "tls_client_names", "insecure_plaintext", "allow_anonymous")
_Command = TypeVar("_Command", bound=Callable[..., Any])

_LISTENING = (
    click.option(
        "--port", type=click.IntRange(0, 65535), help="Port to listen at; 0 for any free one.  [default: 8080]"
    ),
    click.option("--host", help="Address to listen at.  [default: 127.0.0.1]"),
    click.option("--config", "config_file", type=_file, help="Settings.  [default: garrison.toml where it is]"),
    click.option("--keys", type=_file, help="API keys, from `garrison keys add`; callers must then show one."),
    click.option(
        "--secret",
        multiple=True,
        type=_file,
        envvar="GARRISON_SECRET",
        help="File with a model's misinformation key.  [default: GARRISON_SECRET, else BUNDLE.secret]",
    ),
)
_OPTIONS = (
    click.option("--allow-anonymous", is_flag=True, help="Listen beyond this machine although callers need no key."),
    click.option("--tls-cert", type=_file, help="Certificate chain (PEM): HTTPS, TLS 1.3."),
    click.option("--tls-key", type=_file, help="Its private key (PEM)."),
    click.option("--tls-client-ca", type=_file, help="Clients need a certificate of these authorities (PEM)."),
    click.option("--tls-client-names", is_flag=True, help="The client's certificate names the caller."),
    click.option("--insecure-plaintext", is_flag=True, help="Listen beyond this machine without TLS."),
    click.option(
        "--store",
        metavar="URL",
        envvar="GARRISON_STORE",
        help="Database of budgets and quotas: postgresql://, redis:// or valkey://.  [default: SQLite]",
    ),
    click.option("--store-may-forget", is_flag=True, help="Take a Redis or Valkey that may lose its last second."),
)


def listening_options(command: _Command) -> _Command:
    """Put on a command the options of where it listens, and what with."""
    return _with(command, _LISTENING)


def front_door_options(command: _Command) -> _Command:
    """Put on a command the options of who may come in."""
    return _with(command, _OPTIONS)


def _with(command: _Command, options: tuple[Callable[[_Command], _Command], ...]) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def through_the_front_door(config: Config, options: Mapping[str, Any], more: Mapping[str, Any]) -> Config:
    """The settings, with what these options, and `more` of `[server]`, say in their place.

    Raises:
        ConfigError: options that do not go together.
    """
    given = dict(more)
    given |= {name: str(options[name].absolute()) for name in _PATHS if options[name] is not None}
    given |= {name: True for name in _FLAGS if options[name]}
    if options["store"] is not None:
        given["store"] = options["store"]
    try:
        server = msgspec.structs.replace(config.server, **given)
    except ValueError as error:
        raise ConfigError(f"serve: {error}") from error
    return msgspec.structs.replace(config, server=server)
