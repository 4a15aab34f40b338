"""The API key that a command shows to a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def key_options(command: _Command) -> _Command:
    """Put on a command the API key (`api_key`), and whether it may be shown over plain HTTP (`insecure_plaintext`)."""
    plaintext = click.option(
        "--insecure-plaintext", is_flag=True, help="Show the API key over plain HTTP beyond this machine too."
    )
    shown = click.option(
        "--api-key", envvar="GARRISON_API_KEY", help="A key from `garrison keys add`; also GARRISON_API_KEY."
    )
    return shown(plaintext(command))
