"""`garrison predict`: ask a running service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.markup import escape
from rich.table import Table

from garrison.cli.access import Access, access_options, caller_option
from garrison.cli.npz_out import check_writable, write_npz
from garrison.cli.output import console, json_option, notes, plain, printable, show_json
from garrison.client import Client, Prediction, load_policy
from garrison.errors import InputError
from garrison.npz import read_arrays
from garrison.protocol.oip_metadata import ModelMetadata
from garrison.types import Array

DEFAULT_ROWS = 20


@click.command()
@click.argument("url")
@click.argument("file", metavar="INPUT.npz", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="The model's name; may be left out where the server has one.")
@click.option("--version", "version", help="The model's version; the newest where it is left out.")
@access_options
@caller_option
@click.option("--limit", type=click.IntRange(min=1), help="Ask only about the first so many rows.")
@click.option(
    "-o", "--output", "out", type=click.Path(dir_okay=False, path_type=Path), help="Keep all answers in this .npz file."
)
@click.option("--sealed", is_flag=True, help="Ask an enclave, attested by --policy, in requests that only it can open.")
@click.option(
    "--policy", type=click.Path(dir_okay=False, path_type=Path), help="With --sealed: what is demanded (TOML)."
)
@click.option("--allow-simulated", is_flag=True, help="With --sealed: take evidence that proves nothing; for trials.")
@click.option("--no-verify", is_flag=True, help="Do not check the signatures of the answers.")
@json_option
def predict(
    url: str,
    file: Path,
    model: str | None,
    version: str | None,
    access: Access,
    caller: str,
    limit: int | None,
    out: Path | None,
    no_verify: bool,
    as_json: bool,
    sealed: bool,
    policy: Path | None,
    allow_simulated: bool,
) -> None:
    """Ask the service at URL about the rows of INPUT.npz.

    The file holds an array `x`, or one array for each of the model's inputs under its name; with an array `y` of class
    numbers the share of right answers is printed too.
    """
    if out is not None:
        check_writable(out)  # before rows are charged
    with Client(
        url,
        **access.options(),
        caller=caller,
        model=model,
        version=version,
        verify=not no_verify,
        sealed=sealed,
        policy=None if policy is None else load_policy(policy),
        allow_simulated=allow_simulated,
        on_work=_tell_work,
    ) as client:
        inputs, y = _read(file, client.metadata(), limit)
        answer = client.predict(inputs)
        left = client.left
    if out is not None:
        write_npz(out, {"uncertain": answer.uncertain, **answer.outputs})
    accuracy = None if y is None or not _has_classes(answer) else float(np.mean(answer.classes == y))
    if as_json:
        show_json(_as_json(answer, accuracy, left))
    else:
        _show(answer, accuracy, left, None if out is None else str(out))


def _read(file: Path, metadata: ModelMetadata, limit: int | None) -> tuple[dict[str, Array], Array | None]:
    found = {name: values[:limit] for name, values in read_arrays(file).items() if values.ndim}
    names = [spec.name for spec in metadata.inputs]
    y = found.get("y")
    if set(names) <= found.keys():
        inputs = {name: found[name] for name in names}
    elif len(names) == 1 and "x" in found:
        inputs = {names[0]: found["x"]}
    else:
        raise InputError(f"{file}: expected the arrays {', '.join(names)}; found {', '.join(found) or 'none'}")
    rows = len(next(iter(inputs.values())))
    if y is not None and y.shape != (rows,):
        raise InputError(f"{file}: expected y of shape ({rows},), found {y.shape}")
    return inputs, y


def _has_classes(answer: Prediction) -> bool:
    return any(name in answer.outputs for name in ("classes", "probabilities", "scores"))


def _tell_work(made: int, expected: float) -> None:
    notes.print(f"working for this request: {made:,} hashes, it takes {expected:,.0f} on average", markup=False)


def _as_json(answer: Prediction, accuracy: float | None, left: Mapping[str, int]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": answer.model,
        "version": answer.model_version,
        "rows": answer.rows,
        "proved": answer.proved,
        "attested": answer.attested,
        "outputs": {name: values.tolist() for name, values in answer.outputs.items()},
        "uncertain": np.flatnonzero(answer.uncertain).tolist(),
    }
    if _has_classes(answer):
        found |= {"classes": answer.classes.tolist(), "labels": list(answer.class_labels)}
    if accuracy is not None:
        found["accuracy"] = accuracy
    if left:
        found["left"] = dict(left)
    return found


def _show(answer: Prediction, accuracy: float | None, left: Mapping[str, int], out: str | None) -> None:
    table = Table("row", *(escape(printable(head)) for head in _heads(answer)))
    for row in range(min(answer.rows, DEFAULT_ROWS)):
        table.add_row(str(row), *map(plain, _cells(answer, row)))
    console.print(table)
    if answer.rows > DEFAULT_ROWS:
        console.print(f"and {answer.rows - DEFAULT_ROWS} more rows")
    if accuracy is not None:
        console.print(f"accuracy: {accuracy:.2%} of {answer.rows} rows")
    checked = (
        "sealed, signatures checked (key attested)" if answer.attested else "signatures checked (key not attested)"
    )
    proof = checked if answer.proved else "signatures not checked"
    notes.print(printable(f"model {answer.model}, version {answer.model_version}; {proof}"), markup=False)
    if left:
        notes.print(f"left: {', '.join(f'{n:,} {what}' for what, n in left.items())}", markup=False)
    if out is not None:
        notes.print(f"written: {out}", markup=False)


def _heads(answer: Prediction) -> tuple[str, ...]:
    if not _has_classes(answer):
        return tuple(answer.outputs)
    return ("label",) if answer.first_values is None else ("label", "probability")


def _cells(answer: Prediction, row: int) -> tuple[str, ...]:
    if not _has_classes(answer):
        return tuple(np.array2string(values[row], precision=4) for values in answer.outputs.values())
    label = "uncertain" if answer.uncertain[row] else answer.class_labels[row]
    return (label,) if answer.first_values is None else (label, f"{answer.first_values[row]:.4f}")
