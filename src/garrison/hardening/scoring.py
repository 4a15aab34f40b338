"""Runs an ONNX graph at build time, in slices that bound memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from garrison.errors import UnsupportedModelError
from garrison.types import Array

SLICE_ROWS = 512
Report = Callable[[str, float], None]
"""(message, fraction done in [0, 1]) -> None."""


def silent(message: str, fraction: float) -> None:
    """The `Report` that says nothing."""


def open_session(model: bytes, threads: int = 1) -> Any:
    """An ONNX Runtime session on the processor.

    Raises:
        UnsupportedModelError: the runtime cannot load the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UnsupportedModelError(f"ONNX Runtime cannot load this graph: {_first_line(error)}") from error


def score(
    session: Any,
    inputs: Mapping[str, Array],
    outputs: Sequence[str] | None = None,
    report: Report = silent,
    slice_rows: int = SLICE_ROWS,
) -> dict[str, Array]:
    """Run all rows.

    Args:
        session: see `open_session`.
        inputs: by name, each (rows, ...), at least one row.
        outputs: names to compute; all of them where None.
        slice_rows: most rows in one run.

    Returns:
        The outputs by name, each (rows, ...).

    Raises:
        UnsupportedModelError: the runtime fails on these inputs, or an output is no tensor with one entry a row.
    """
    names = [o.name for o in session.get_outputs()] if outputs is None else list(outputs)
    rows = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, rows, slice_rows):
        parts.append(_run(session, names, {k: x[start : start + slice_rows] for k, x in inputs.items()}))
        report("", min(1.0, (start + slice_rows) / rows))
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def _run(session: Any, names: list[str], inputs: dict[str, Array]) -> list[Array]:
    rows = len(next(iter(inputs.values())))
    try:
        found = session.run(names, inputs)
    except Exception as error:
        raise UnsupportedModelError(
            f"ONNX Runtime cannot run this graph on {rows} rows: {_first_line(error)}"
        ) from error
    for name, value in zip(names, found, strict=True):
        if not isinstance(value, np.ndarray) or value.ndim < 1 or value.shape[0] != rows:
            kind = f"shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
            raise UnsupportedModelError(f"output {name!r}: expected one entry for each of {rows} rows, found {kind}")
    return list(found)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
