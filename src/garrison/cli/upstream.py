"""How commands name a model that another server runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from garrison.bundle.private import why_not_private
from garrison.errors import ConfigError
from garrison.hardening.upstream import ROWS_A_REQUEST, Wish
from garrison.upstream.target import Target

_file = click.Path(dir_okay=False, path_type=Path)
Command = TypeVar("Command", bound=Callable[..., Any])

_MODEL_OPTIONS = (
    click.option("--upstream", metavar="URL", help="Open Inference Protocol server that runs the model."),
    click.option("--model", "upstream_model", metavar="NAME", help="With --upstream: the model's name there."),
    click.option(
        "--model-version",
        "upstream_version",
        default="",
        help="With --upstream: its version there.  [default: its own]",
    ),
    click.option(
        "--upstream-output", default="", help="With --upstream: the tensor with the answer, where there are several."
    ),
    click.option(
        "--upstream-input", multiple=True, help="With --upstream: an input's name, where the server does not tell it."
    ),
    click.option(
        "--upstream-rows",
        type=click.IntRange(1, 4096),
        default=ROWS_A_REQUEST,
        show_default=True,
        help="With --upstream: most rows in one request.",
    ),
    click.option(
        "--most-rows",
        type=click.IntRange(1),
        default=20_000,
        show_default=True,
        help="With --upstream: most rows that are asked in one step.",
    ),
    click.option("--upstream-key", type=_file, help="With --upstream: file with an API key for that server."),
    click.option("--upstream-ca", type=_file, help="With --upstream: certificates (PEM) that vouch for that server."),
    click.option(
        "--upstream-insecure-plaintext",
        is_flag=True,
        help="With --upstream: show that key over plain HTTP beyond this machine too.",
    ),
)


def upstream_model_options(command: Command) -> Command:
    """The options of a command that asks another server's model."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


def upstream_wish(given: dict[str, Any]) -> tuple[Target, Wish] | None:
    """What these options say; None where there is no --upstream.

    Raises:
        ConfigError: the key cannot be read.
    """
    if given["upstream"] is None:
        return None
    if not given["upstream_model"]:
        raise click.UsageError("--upstream needs --model NAME")
    wish = Wish(
        model=given["upstream_model"],
        version=given["upstream_version"],
        output=given["upstream_output"],
        inputs=given["upstream_input"],
        most_rows=given["most_rows"],
        rows_a_request=given["upstream_rows"],
    )
    plaintext = given["upstream_insecure_plaintext"]
    return Target(given["upstream"], _key(given["upstream_key"]), given["upstream_ca"], plaintext), wish


def _key(file: Path | None) -> str:
    if file is None:
        return ""
    if why := why_not_private(file):
        raise ConfigError(f"--upstream-key: {why}")
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--upstream-key: {file} cannot be read") from error
