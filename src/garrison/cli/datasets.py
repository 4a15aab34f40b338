"""`garrison datasets`: what real data can be had, and an .npz of it for the other commands."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from rich.table import Table

from garrison import datasets as sets
from garrison.cli.npz_out import check_writable, write_npz
from garrison.cli.output import console, json_option, plain, printable, progress, show_json
from garrison.errors import TargetExistsError, UnknownDatasetError


@click.group()
def datasets() -> None:
    """Real data sets and models: list them, or save one for the other commands."""


@datasets.command("list")
@json_option
def list_sets(*, as_json: bool) -> None:
    """Name, kind, size and licence of each set."""
    found = [sets.describe(name) for name in sets.names()]
    if as_json:
        show_json(found)
        return
    table = Table("set", "kind", "rows", "what", "licence")
    for entry in found:
        rows = ", ".join(f"{split} {count:,}" for split, count in entry.splits.items())
        table.add_row(*map(plain, (entry.name, entry.kind, rows, entry.summary, entry.licence)))
    console.print(table)


@datasets.command()
@click.argument("name")
@click.option("--split", default="train", show_default=True, help="Which split.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Where to save; default NAME-SPLIT.npz.")
@click.option("--force", is_flag=True, help="Replace the file.")
@json_option
def save(*, name: str, split: str, out: Path | None, force: bool, as_json: bool) -> None:
    """Fetch a set, check it, and save it as .npz with the arrays x, y and labels."""
    target = out or Path(f"{name}-{split}.npz")
    if target.exists() and not force:
        raise TargetExistsError(f"{target} exists; give another name, or --force to replace it")
    if name in sets.names() and sets.describe(name).kind == "model":
        raise UnknownDatasetError(
            f"{name!r} is a model file, which holds no rows; in Python: garrison.datasets.fetch({name!r})"
        )
    check_writable(target)  # before anything is fetched
    with progress(name) as report:
        found = sets.load(name, split, progress=report)
    arrays = {"x": found.x, "labels": np.array(found.labels)} | ({} if found.y is None else {"y": found.y})
    write_npz(target, arrays)
    summary = {
        "file": str(target),
        "rows": len(found.x),
        "sha256": found.sha256,
        "licence": found.licence,
        "source": found.source,
    }
    if as_json:
        show_json(summary)
    else:
        told = f"{target}: {len(found.x):,} rows, {found.licence}; {found.source}"
        console.print(printable(told), markup=False, soft_wrap=True)
