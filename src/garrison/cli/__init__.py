"""The command line. One file per noun; the only code that prints. A new command is one file and one line below."""

from __future__ import annotations

import importlib
import sys

import click

from garrison import __version__
from garrison.cli.output import show_error
from garrison.errors import GarrisonError

COMMANDS: dict[str, str] = {
    "attest": "garrison.cli.attest:attest",
    "audit": "garrison.cli.audit:audit",
    "connect": "garrison.cli.connect:connect",
    "datasets": "garrison.cli.datasets:datasets",
    "doctor": "garrison.cli.doctor:doctor",
    "harden": "garrison.cli.harden:harden",
    "inspect": "garrison.cli.inspect:inspect",
    "keygen": "garrison.cli.keygen:keygen",
    "keys": "garrison.cli.keys:keys",
    "predict": "garrison.cli.predict:predict",
    "seal": "garrison.cli.seal:seal",
    "secret-heap": "garrison.cli.secret_heap:secret_heap",
    "serve": "garrison.cli.serve:serve",
    "verify": "garrison.cli.verify:verify",
}


class LazyGroup(click.Group):
    """Loads a command's module when it is used, so that `garrison verify` does not import torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's own signature
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  the same
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="garrison")
def cli() -> None:
    """Guard a machine-learning prediction service, and measure what an attacker still gets."""


def main() -> None:
    """Entry point. A GarrisonError becomes one clear message and exit code 1; wrong usage is 2, an interruption 130."""
    try:
        cli.main(standalone_mode=False)
    except GarrisonError as error:
        show_error(error)
        sys.exit(1)
    except click.exceptions.Exit as request:
        sys.exit(request.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
