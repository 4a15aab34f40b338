"""The command line. One file per noun; the only code that prints. A new command is one file and one line below."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from garrison import __version__
from garrison.cli.output import quiet_pipe, show_error, show_unexpected
from garrison.errors import GarrisonError, MissingExtraError

_MOST_SUMMARY = 120
COMMANDS: dict[str, str] = {
    "alarms": "garrison.cli.alarms:alarms",
    "attest": "garrison.cli.attest:attest",
    "audit": "garrison.cli.audit:audit",
    "connect": "garrison.cli.connect:connect",
    "datasets": "garrison.cli.datasets:datasets",
    "doctor": "garrison.cli.doctor:doctor",
    "drift": "garrison.cli.drift:drift",
    "gateway": "garrison.cli.gateway:gateway",
    "harden": "garrison.cli.harden:harden",
    "inspect": "garrison.cli.inspect:inspect",
    "keygen": "garrison.cli.keygen:keygen",
    "keys": "garrison.cli.keys:keys",
    "ledger": "garrison.cli.ledger:ledger",
    "predict": "garrison.cli.predict:predict",
    "seal": "garrison.cli.seal:seal",
    "secret-heap": "garrison.cli.secret_heap:secret_heap",
    "serve": "garrison.cli.serve:serve",
    "verify": "garrison.cli.verify:verify",
    "watermark": "garrison.cli.watermark:watermark",
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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What each is for; one whose packages are not installed is listed all the same."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summary(ctx, name)) for name in self.list_commands(ctx)])

    def _summary(self, ctx: click.Context, name: str) -> str:
        try:
            command = self.get_command(ctx, name)
        except MissingExtraError as error:
            return f"(not installed: it needs the extra {error.extra!r})"
        return "" if command is None else command.get_short_help_str(_MOST_SUMMARY)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)  # prints, for --help
        except BrokenPipeError:
            quiet_pipe()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            found = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            quiet_pipe()
        return found


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="garrison")
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error; also GARRISON_DEBUG=1.")
def cli(*, debug: bool) -> None:
    """Guard a machine-learning prediction service, and measure what an attacker still gets."""


def main() -> None:
    """Entry point.

    Exit codes: 1 a GarrisonError or a failure of the system (one clear message), 2 wrong usage, 70 a defect of Garrison, 130 an
    interruption, 141 where the reader of the output has gone.
    """
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # the products here are small: threads would only wait for each other
    words, debug = _without_debug(sys.argv[1:])
    try:
        cli.main(words, standalone_mode=False)
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
    except Exception as error:
        if debug:
            raise
        sys.exit(show_unexpected(error))


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    """The words of the command line without --debug, which may stand anywhere before "--"; whether it was asked for."""
    end = words.index("--") if "--" in words else len(words)
    rest = [word for word in words[:end] if word != "--debug"]
    return rest + words[end:], len(rest) < end or os.environ.get("GARRISON_DEBUG", "") not in {"", "0"}
