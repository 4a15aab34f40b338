"""`garrison secret-heap`: the library for `--secret-heap`."""

from __future__ import annotations

import click

from garrison.cli.output import json_option, notes, show_json
from garrison.enclave.secret_heap import build as build_library
from garrison.enclave.secret_heap import secret_memory_offered


@click.group("secret-heap")
def secret_heap() -> None:
    """The heap of an enclave in memory that no other process can read."""


@secret_heap.command()
@json_option
def build(as_json: bool) -> None:
    """Compile the library into the user's cache. Takes a C compiler."""
    path = build_library()
    offered = secret_memory_offered()
    if as_json:
        show_json({"library": str(path), "secret_memory": offered})
        return
    click.echo(path)
    if not offered:
        notes.print("[yellow]this kernel gives no secret memory (memfd_secret), so it cannot be used here yet[/]")
