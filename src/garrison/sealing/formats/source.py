"""What every reader of a model format gives: an ONNX graph, and what else the format knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from garrison.errors import MissingExtraError, ModelFileError, UnsupportedModelError
from garrison.hardening.graphs import Declared
from garrison.types import Array

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "seal") from error


TOLERANCE = {np.dtype(np.float16): 1e-2, np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-7}
"""Largest difference between converted and original model that is put down to rounding, relative to the answers' scale."""
MOST_FILE_BYTES = 1024**3
MOST_ROWS_OFF = 0.01
MOST_ROWS_COMPARED = 1024
"""The original answers them in one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model as it was given, made into an ONNX graph.

    Attributes:
        model: the graph, checked by `garrison.hardening.graphs.check_model`.
        format: "onnx", "scikit-learn", "torch", "xgboost" or "lightgbm".
        sha256: digest of the file as given; of the graph's bytes where the model came as an object.
        declared: what the answer means, where the format knows; "auto" where it does not.
        labels: class labels, where the format knows them.
        reference: the original's answers on rows by input name, shape (rows, k), for `check_against_reference`.
        packages: whose versions belong in the provenance.
        rows_off: share of rows on which the graph may differ from the original by more than rounding.
    """

    model: onnx.ModelProto
    format: str
    sha256: str
    declared: Declared = "auto"
    labels: tuple[str, ...] = ()
    reference: Callable[[dict[str, Array]], Array] | None = None
    packages: tuple[str, ...] = ()
    rows_off: float = MOST_ROWS_OFF


def bounded_bytes(path: Path) -> bytes:
    """A model file, whole.

    Raises:
        ModelFileError: it cannot be read, or is larger than `MOST_FILE_BYTES`.
    """
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise ModelFileError(f"{path}: larger than {MOST_FILE_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror}") from error


def check_against_reference(source: Source, rows: dict[str, Array], answers: Array) -> None:
    """Check that the converted graph answers like the original, on real rows.

    A tree of scikit-learn may put a row on the other side of a threshold when its features are rounded to single precision; up to
    `rows_off` of the rows may differ for that reason.

    Raises:
        UnsupportedModelError: they disagree.
    """
    if source.reference is None:
        return
    some = np.unique(np.linspace(0, len(answers) - 1, min(len(answers), MOST_ROWS_COMPARED)).astype(np.intp))
    rows, answers = {name: x[some] for name, x in rows.items()}, answers[some]
    expected = source.reference(rows)
    if expected.shape != answers.shape:
        raise UnsupportedModelError(f"the converted graph answers {answers.shape}, the original {expected.shape}")
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    off = np.abs(answers.astype(np.float64) - expected).max(axis=1, initial=0.0) > TOLERANCE[answers.dtype] * scale
    if off.mean() > source.rows_off:
        single = source.format == "scikit-learn" and answers.dtype == np.float32
        hint = ". Double precision may help (--double)" if single else ""
        raise UnsupportedModelError(
            f"the graph converted to ONNX answers {int(off.sum())} of {len(off)} rows differently from the original "
            f"{source.format} model; nothing was sealed{hint}"
        )
