"""`harden` and `seal`: of files, and of models that are in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from garrison.api.budgets import derived_draft
from garrison.bundle.key_files import read_private_key
from garrison.bundle.manifest import Manifest
from garrison.errors import CalibrationError, ConfigError
from garrison.hardening.artifact import Hardened, write_hardened
from garrison.hardening.artifact import check_target as check_folder
from garrison.hardening.data import Rows, read_npz
from garrison.hardening.harden import Options
from garrison.sealing.choices import budget_of, release_of
from garrison.sealing.formats.objects import source_of
from garrison.sealing.harden import harden_source
from garrison.sealing.inputs import rows_from_arrays
from garrison.sealing.options import SealOptions
from garrison.sealing.place import check_target
from garrison.sealing.seal import seal as seal_draft
from garrison.sealing.sources import draft_from_hardened, draft_from_source
from garrison.types import Array

Data = str | Path | Array | tuple[Array, Array] | Mapping[str, Array] | Rows
"""Rows: an .npz file, x, (x, y), or arrays by the model's input names (and `y`)."""


def harden(
    model: Any,
    data: Data,
    out: str | Path,
    *,
    calibration: Data | None = None,
    outliers: Data | None = None,
    force: bool = False,
    **options: Any,
) -> Hardened:
    """Calibrate a model's guard on your data, and train a misinformation model where it has none.

    Args:
        model: a file, or an object (see `garrison.sealing.formats.objects`).
        data: training rows, with y.
        out: the HARDENED folder, for `seal`.
        calibration: rows that the model has not seen; without them a fifth of `data` is held out.
        outliers: rows that are not the model's business, to measure on.
        force: replace an older folder.
        options: fields of `garrison.hardening.harden.Options`, such as `benign_loss`, `on_ood`, `budget={"rows": 5000}`.

    Returns:
        What was written, with the figures measured.

    Raises:
        SealingError: model or data cannot be used.
        ConfigError: an unknown option.
    """
    check_folder(Path(out), force=force)
    rows = _rows(data)
    chosen = _options(Options, options)
    held_out = None if calibration is None else _rows(calibration)
    outside = None if outliers is None else _rows(outliers)
    result = harden_source(source_of(model, rows), rows, held_out, outside, chosen)
    return write_hardened(Path(out), result.description, result.model, result.misinformation, force=force)


def seal(
    model: Any,
    out: str | Path,
    *,
    key: str | Path,
    passphrase: str | None = None,
    data: Data | None = None,
    release: str | None = None,
    k: int = 3,
    decimals: int | None = None,
    budget: str | int | None = None,
    budget_from: str | Path | None = None,
    budget_fidelity: float = 0.9,
    budget_margin: float = 0.5,
    price: float | None = None,
    double: bool = False,
    force: bool = False,
    **options: Any,
) -> Manifest:
    """Seal a model, its guard and the owner's signature into a folder.

    Args:
        model: a HARDENED folder, a model file, or an object (see `garrison.sealing.formats.objects`).
        out: the BUNDLE. A model's secret is written beside it where its guard needs one.
        key: OWNER.key.
        data: held-out rows; needed unless `model` is a HARDENED folder.
        release: "full", "rounded", "top-k" or "label".
        k, decimals: for "top-k" and "rounded".
        budget: rows a caller may ask, such as 5000 or "5000/day".
        budget_from: report.json of an audit of this model; the budget is then `budget_margin` times the answers after which a clone
            reaches `budget_fidelity`. With `budget` it bounds the different rows.
        price: US dollars for 1,000 rows.
        double: convert a scikit-learn or LightGBM model in double precision.
        force: replace an older bundle.
        options: further fields of `garrison.sealing.options.SealOptions`, such as `name`, `version`, `labels`.

    Raises:
        SealingError, GuardError: it cannot be sealed as asked.
        ConfigError: an unknown option, or no data.
        KeyFileError: the key cannot be read.
    """
    target = Path(out)
    check_target(target, force=force)
    paid = None if budget is None and budget_from is not None else price  # a derived budget brings its own
    said = _said(release, k, decimals, budget, paid)
    chosen = _options(SealOptions, {"name": target.absolute().name} | options | said)
    owner = read_private_key(Path(key), None if passphrase is None else passphrase.encode())
    rows = None if data is None else _rows(data)
    if isinstance(model, str | Path) and Path(model).is_dir():
        draft = draft_from_hardened(Path(model), chosen, rows)
    elif rows is None:
        raise ConfigError("data is needed: held-out rows, from which ranges and thresholds are learned")
    else:
        draft = draft_from_source(source_of(model, rows, double=double), rows, chosen)
    if budget_from is not None:
        draft = derived_draft(draft, Path(budget_from), budget_fidelity, budget_margin, price or 0.0)
    return seal_draft(draft, owner, target, force=force)


def _said(
    release: str | None, k: int, decimals: int | None, budget: str | int | None, price: float | None
) -> dict[str, Any]:
    """The options that come as plain words and numbers."""
    try:
        return {
            "release": release_of(release, k, decimals),
            "budget": budget_of(None if budget is None else str(budget), None, price),
        }
    except (TypeError, ValueError) as error:
        raise ConfigError(f"seal: {error}") from error


def _rows(data: Data) -> Rows:
    if isinstance(data, Rows):
        return data
    if isinstance(data, str | Path):
        return read_npz(Path(data))
    if isinstance(data, Mapping):
        inputs, y = {name: x for name, x in data.items() if name != "y"}, data.get("y")
    elif isinstance(data, tuple) and len(data) != 2:
        raise CalibrationError(f"expected (x, y), found {len(data)} parts")
    else:
        x, y = data if isinstance(data, tuple) else (data, None)
        inputs = {"x": x}
    arrays = {name: _array(name, x) for name, x in inputs.items()}
    target = None if y is None else _array("y", y)
    lengths = {len(x) for x in [*arrays.values(), *([] if target is None else [target])]}
    if len(lengths) > 1:
        raise CalibrationError(f"expected equally many rows in all arrays, found {sorted(lengths)}")
    return rows_from_arrays(arrays, target)


def _array(name: str, given: Any) -> Array:
    """Lists and tensors are taken too."""
    try:
        found = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(f"{name!r} cannot be made an array: {str(error)[:200]}") from error
    if found.ndim == 0:
        raise CalibrationError(f"{name!r}: expected an array of rows, found {type(given).__name__}")
    return found


def _options(kind: Any, given: dict[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; known are {', '.join(known)}")
    labels = given.get("labels")
    if isinstance(labels, str):
        raise ConfigError(f"labels must be several texts, one a class, found {labels!r}")
    try:
        return kind(**given | ({} if labels is None else {"labels": tuple(labels)}))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"an option cannot be used: {error}") from error
