"""The rows that an audit works on: test rows, surrogate rows, rows from outside.

Invariant: the rows that an attack asks and the rows that its clone is measured on come from different sets or files; the plan
says which, and the report carries the digest of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from garrison import datasets
from garrison.audit.plan import Plan
from garrison.errors import PlanError
from garrison.npz import read_arrays
from garrison.types import Array

Progress = Callable[[str, float], None]
"""(message, fraction done in [0, 1]) -> None."""


def silent(message: str, share: float) -> None:
    """The progress callback of a caller who wants none."""
    del message, share


_NO_CLASSES = "{}: the test rows need class numbers (an array y), or nothing can be graded"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows from one source.

    Attributes:
        x: (rows, *shape).
        y: (rows,), class numbers, or None.
        labels: names of the classes, empty where the source has none.
        source: the data set and split, or the file's name.
        sha256: digest of dtype, shape and values of x and y.
    """

    x: Array
    y: npt.NDArray[np.int64] | None
    labels: tuple[str, ...]
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class AuditData:
    """All rows of an audit.

    Attributes:
        test: labelled rows of the model's own kind.
        surrogate: what the thief asks.
        outside: rows that are not the model's business.
    """

    test: Rows
    surrogate: Rows
    outside: Rows

    @property
    def y(self) -> npt.NDArray[np.int64]:
        """True classes of the test rows.

        Raises:
            PlanError: there are none.
        """
        if self.test.y is None:
            raise PlanError(_NO_CLASSES.format(self.test.source))
        return self.test.y


def load_data(
    plan: Plan, *, test: Path | None = None, surrogate: Path | None = None, report: Progress = silent
) -> AuditData:
    """The plan's rows; files given here take the place of the plan's.

    Raises:
        PlanError: the plan names no rows and none are given, a file that cannot be read, too few rows, no labels.
        DatasetError: a data set cannot be had.
    """
    own = load_rows(str(test) if test else plan.test, "test", report)
    thief = load_rows(str(surrogate) if surrogate else plan.surrogate, "surrogate", report)
    most = max([b for a in plan.attacks for b in a.budgets] + list(plan.control.budgets))
    if most > len(thief.x):
        raise PlanError(
            f"{thief.source}: the plan asks up to {most} surrogate rows and there are {len(thief.x)}; give more rows, or a "
            "plan with smaller budgets"
        )
    named = plan.outside if not surrogate else ""
    outside = load_rows(named, "outside", report) if named else thief
    if own.y is None:
        raise PlanError(_NO_CLASSES.format(own.source))
    return AuditData(_first(own, plan.test_rows), thief, _last(outside, plan.outside_rows))


def load_rows(name: str, role: str, report: Progress = silent) -> Rows:
    """Rows by the name of a data set's split, such as `mnist:train`, or by the path of an .npz file with x (and y, labels).

    Raises:
        PlanError: see `load_data`.
        DatasetError: the data set cannot be had.
    """
    if not name:
        raise PlanError(f"this plan names no {role} rows: give them with --{role} FILE.npz")
    if name.endswith(".npz"):
        return _from_file(Path(name))
    found, _, split = name.partition(":")
    data = datasets.load(found, split or "train", progress=report)
    y = None if data.y is None or data.y.dtype.kind not in "iu" else data.y.astype(np.int64)
    return _rows(data.x, y, data.labels, name)


def _from_file(path: Path) -> Rows:
    found = read_arrays(path, names={"x", "y", "labels"}, error=PlanError)
    if "x" not in found or found["x"].ndim < 2 or not len(found["x"]):
        raise PlanError(f"{path}: expected an array x of shape (rows, ...) with at least one row")
    y = found.get("y")
    if y is not None and (y.shape != (len(found["x"]),) or y.dtype.kind not in "iu"):
        raise PlanError(
            f"{path}: expected whole class numbers y of shape ({len(found['x'])},), found {y.dtype} {y.shape}"
        )
    labels = tuple(str(label) for label in found.get("labels", np.zeros(0)).ravel().tolist())
    return _rows(found["x"], None if y is None else y.astype(np.int64), labels, path.name)


def _rows(x: Array, y: npt.NDArray[np.int64] | None, labels: tuple[str, ...], source: str) -> Rows:
    digest = hashlib.sha256()
    for values in (x,) if y is None else (x, y):
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return Rows(x, y, labels, source, digest.hexdigest())


def _first(rows: Rows, most: int) -> Rows:
    y = None if rows.y is None else rows.y[:most]
    return Rows(rows.x[:most], y, rows.labels, rows.source, rows.sha256)


def _last(rows: Rows, most: int) -> Rows:
    y = None if rows.y is None else rows.y[-most:]
    return Rows(rows.x[-most:], y, rows.labels, rows.source, rows.sha256)
