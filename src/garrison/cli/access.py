"""How a command comes in at a service: by an API key, and over TLS with certificates of one's own."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from garrison.protocol.tls import client_tls

_Command = TypeVar("_Command", bound=Callable[..., Any])
_file = click.Path(dir_okay=False, path_type=Path)
_OPTIONS = (
    click.option("--api-key", envvar="GARRISON_API_KEY", help="A key from `garrison keys add`; also GARRISON_API_KEY."),
    click.option(
        "--insecure-plaintext", is_flag=True, help="Show the API key over plain HTTP beyond this machine too."
    ),
    click.option("--tls-ca", type=_file, help="Authorities (PEM) of the server.  [default: the system's]"),
    click.option("--tls-cert", type=_file, help="Certificate (PEM) for a server that wants to see one."),
    click.option("--tls-key", type=_file, help="Its private key (PEM).  [default: in the same file]"),
)

caller_option = click.option(
    "--caller",
    default="",
    metavar="NAME",
    help="What the service calls you, where the API key does not say it, such as cert:NAME; stands in sealed requests and proofs of work.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a service is shown, and how it is known; see `garrison.client.Client`."""

    api_key: str | None = None
    insecure_plaintext: bool = False
    tls: ssl.SSLContext | None = None

    def options(self) -> dict[str, Any]:
        """For a `Client`, or what opens one."""
        return {"api_key": self.api_key, "insecure_plaintext": self.insecure_plaintext, "tls": self.tls}


def access_options(command: _Command) -> _Command:
    """Put these options on a command, which gets them together, as `access`."""

    @functools.wraps(command)
    def opened(
        *args: Any,
        api_key: str | None,
        insecure_plaintext: bool,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        **others: Any,
    ) -> Any:
        access = Access(api_key=api_key, insecure_plaintext=insecure_plaintext, tls=_tls(tls_ca, tls_cert, tls_key))
        return command(*args, access=access, **others)

    for option in reversed(_OPTIONS):
        opened = option(opened)
    return opened  # type: ignore[return-value]  # it takes what click gives, and is only called by it


def _tls(authorities: Path | None, chain: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if key is not None and chain is None:
        raise click.UsageError("--tls-key goes with --tls-cert")
    return None if authorities is None and chain is None else client_tls(authorities, chain, key)
