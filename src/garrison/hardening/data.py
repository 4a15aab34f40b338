"""Reads the owner's rows from an .npz file: `x` (or one array for each input of the model), `y`, `labels`.

Invariant: nothing in the file is ever unpickled. Not checked: whether the rows are what the owner says they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from garrison.errors import CalibrationError, ModelFileError
from garrison.hardening.artifact import sha256_of_file
from garrison.npz import read_arrays
from garrison.types import NUMPY_DTYPES, Array

NOT_INPUTS = frozenset({"y", "labels"})


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What an .npz file holds.

    Attributes:
        inputs: `{"x": ...}`, or one array for each input of the model; all with equally many rows.
        y: (rows,), class numbers or real values; None where there is none.
        labels: names of the classes, in the model's order; None where there are none.
        sha256: of the file.
    """

    inputs: dict[str, Array]
    y: Array | None
    labels: tuple[str, ...] | None
    sha256: str

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


def read_npz(path: Path) -> Rows:
    """Read and check an .npz file.

    Raises:
        ModelFileError: not readable, not an .npz archive of plain arrays, or too large.
        CalibrationError: no array x, numbers of an unknown kind, or arrays of unequal length.
    """
    arrays = read_arrays(path, error=ModelFileError)
    inputs = {name: x for name, x in arrays.items() if name not in NOT_INPUTS}
    if not inputs:
        raise CalibrationError(f"{path}: expected an array x (and y, and labels), found {sorted(arrays) or 'no array'}")
    for name, x in inputs.items():
        if x.ndim < 1 or x.dtype.newbyteorder("=") not in NUMPY_DTYPES.values():
            raise CalibrationError(f"{path}: {name}: expected rows of numbers, found {x.dtype} of shape {x.shape}")
    lengths = {name: len(x) for name, x in inputs.items()}
    y = _classes(path, arrays["y"], arrays.get("labels")) if "y" in arrays else None
    if y is not None:
        lengths["y"] = len(y)
    if len(set(lengths.values())) != 1:
        raise CalibrationError(f"{path}: arrays must be of equal length, found {lengths}")
    if not len(next(iter(inputs.values()))):
        raise CalibrationError(f"{path}: there are no rows")
    labels = None if "labels" not in arrays else tuple(str(v) for v in arrays["labels"].reshape(-1).tolist())
    return Rows(inputs, y, labels, sha256_of_file(path))


def _classes(path: Path, y: Array, labels: Array | None) -> Array:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise CalibrationError(f"{path}: y: expected one entry a row, found shape {y.shape}")
    if y.dtype.kind in "iufb":
        return y.astype(np.int64) if y.dtype.kind == "b" else y
    if y.dtype.kind == "U" and labels is not None:
        names = {str(name): number for number, name in enumerate(labels.reshape(-1).tolist())}
        unknown = sorted(set(y.tolist()) - set(names))
        if unknown:
            raise CalibrationError(f"{path}: y: {unknown[0]!r} is not among the labels")
        return np.array([names[name] for name in y.tolist()], dtype=np.int64)
    raise CalibrationError(
        f"{path}: y: expected class numbers, or names together with an array labels; found {y.dtype}"
    )


def for_model(rows: Rows, wanted: Mapping[str, tuple[str, tuple[int | None, ...]]]) -> dict[str, Array]:
    """The rows as a graph takes them: by its input names, in its dtypes.

    Args:
        rows: from `read_npz`.
        wanted: by input name, datatype and shape of one row (None where any size goes), see `graphs.graph_inputs`.

    Raises:
        CalibrationError: an input that is missing, one too many, a shape that does not fit, or a dtype that would lose value.
    """
    found = rows.inputs
    if len(wanted) == 1 and list(found) == ["x"]:
        found = {next(iter(wanted)): found["x"]}
    if set(found) != set(wanted):
        raise CalibrationError(f"the model takes {sorted(wanted)}, the data hold {sorted(found)}")
    return {name: _fitted(name, found[name], datatype, shape) for name, (datatype, shape) in wanted.items()}


def _fitted(name: str, x: Array, datatype: str, shape: Sequence[int | None]) -> Array:
    if len(x.shape) != len(shape) + 1 or any(n not in (None, m) for n, m in zip(shape, x.shape[1:], strict=True)):
        raise CalibrationError(f"input {name!r}: the model takes rows of {tuple(shape)}, the data hold {x.shape[1:]}")
    dtype = NUMPY_DTYPES[datatype]
    if not np.can_cast(x.dtype, dtype, "same_kind"):
        raise CalibrationError(
            f"input {name!r}: the model takes {datatype}, the data hold {x.dtype}; convert them first"
        )
    return np.ascontiguousarray(x, dtype=dtype)


def split(inputs: Mapping[str, Array], y: Array | None, held_out: float, seed: int) -> tuple[Part, Part]:
    """(kept, held out): a random share of the rows is set aside."""
    rows = len(next(iter(inputs.values())))
    order: npt.NDArray[np.intp] = np.random.default_rng(seed).permutation(rows)
    cut = max(1, round(rows * held_out))

    def part(index: npt.NDArray[np.intp]) -> Part:
        return Part({name: x[index] for name, x in inputs.items()}, None if y is None else y[index])

    return part(np.sort(order[cut:])), part(np.sort(order[:cut]))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows in the form that a graph takes, with their answers."""

    inputs: dict[str, Array]
    y: Array | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))
