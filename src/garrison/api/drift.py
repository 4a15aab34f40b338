"""Drift offline: rows against a bundle's reference, or against other rows; and pages that show it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerPublicKey
from garrison.errors import ConfigError, GarrisonError, MissingExtraError
from garrison.hardening.data import Rows, read_npz
from garrison.hardening.drift_offline import Compared, check_rows, compare_rows, paired
from garrison.types import Array

__all__ = ["check", "compare", "evidently_page"]


def check(bundle: str | Path, data: str | Path | Rows, trusted: Sequence[OwnerPublicKey]) -> Compared:
    """Rows against the frozen reference of a bundle.

    Args:
        data: an .npz file, or rows.
        trusted: keys that may have signed.

    Raises:
        BundleError: the bundle must not be used.
        GuardError: it holds no reference.
        CalibrationError: rows that do not fit the model, or too few.
    """
    found = verify(Path(bundle), trusted)
    return check_rows(found, data if isinstance(data, Rows) else read_npz(Path(data)))


def compare(reference: str | Path, now: str | Path) -> Compared:
    """Two .npz files of rows, feature by feature; y where both have it.

    Raises:
        CalibrationError: they do not hold the same features, or too few rows.
    """
    return compare_rows(read_npz(Path(reference)), read_npz(Path(now)))


def evidently_page(reference: str | Path, now: str | Path, page: Path) -> None:
    """Evidently's own report on two .npz files, as one HTML page. Its usage statistics are not sent.

    Raises:
        MissingExtraError: it is not installed.
        ConfigError: it fails on these files.
    """
    old, new, _ = paired(read_npz(Path(reference)), read_npz(Path(now)))
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        import pandas as pd
        from evidently import Report
        from evidently.presets import DataDriftPreset
    except ImportError as error:
        raise MissingExtraError("evidently", "evidently") from error
    try:
        report = Report([DataDriftPreset()], include_tests=False)
        done = report.run(pd.DataFrame(_columns(new)), pd.DataFrame(_columns(old)))
        done.save_html(str(page))
    except GarrisonError:
        raise
    except Exception as error:
        raise ConfigError(f"evidently fails on these files: {type(error).__name__}: {error}") from error


def _columns(rows: Rows) -> Mapping[str, Array]:
    found: dict[str, Array] = {}
    for name, x in rows.inputs.items():
        wide = x.reshape(len(x), -1)
        for k in range(wide.shape[1]):
            found[name if wide.shape[1] == 1 else f"{name}[{k}]"] = wide[:, k]
    if rows.y is not None:
        found["y"] = rows.y
    return found
