"""`garrison predict`: ask a running service."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from garrison.cli.output import console, json_option, notes, show_json
from garrison.client import Client, Prediction, load_policy
from garrison.errors import InputError
from garrison.protocol.oip_metadata import ModelMetadata
from garrison.types import Array

DEFAULT_ROWS = 20


@click.command()
@click.argument("url")
@click.argument("file", metavar="INPUT.npz", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--model", help="The model's name; may be left out where the server has one.")
@click.option("--version", "version", help="The model's version; the newest where it is left out.")
@click.option("--api-key", envvar="GARRISON_API_KEY", help="A key from `garrison keys add`; also GARRISON_API_KEY.")
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
    api_key: str | None,
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
    with Client(
        url,
        api_key=api_key,
        model=model,
        version=version,
        verify=not no_verify,
        sealed=sealed,
        policy=None if policy is None else load_policy(policy),
        allow_simulated=allow_simulated,
    ) as client:
        inputs, y = _read(file, client.metadata(), limit)
        answer = client.predict(inputs)
    if out is not None:
        _write(out, answer)
    accuracy = None if y is None or not _has_classes(answer) else float(np.mean(answer.classes == y))
    if as_json:
        show_json(_as_json(answer, accuracy))
    else:
        _show(answer, accuracy, None if out is None else str(out))


def _read(file: Path, metadata: ModelMetadata, limit: int | None) -> tuple[dict[str, Array], Array | None]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name][:limit] for name in arrays.files if arrays[name].ndim}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{file} is not an .npz file of plain arrays: {error}") from error
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


def _write(out: Path, answer: Prediction) -> None:
    with out.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, uncertain=answer.uncertain, **answer.outputs)


def _has_classes(answer: Prediction) -> bool:
    return any(name in answer.outputs for name in ("classes", "probabilities", "scores"))


def _as_json(answer: Prediction, accuracy: float | None) -> dict[str, Any]:
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
    return found


def _show(answer: Prediction, accuracy: float | None, out: str | None) -> None:
    table = Table("row", *_heads(answer))
    for row in range(min(answer.rows, DEFAULT_ROWS)):
        table.add_row(str(row), *_cells(answer, row))
    console.print(table)
    if answer.rows > DEFAULT_ROWS:
        console.print(f"and {answer.rows - DEFAULT_ROWS} more rows")
    if accuracy is not None:
        console.print(f"accuracy: {accuracy:.2%} of {answer.rows} rows")
    checked = (
        "sealed, signatures checked (key attested)" if answer.attested else "signatures checked (key not attested)"
    )
    proof = checked if answer.proved else "signatures not checked"
    notes.print(f"model {answer.model}, version {answer.model_version}; {proof}", markup=False)
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
