"""The rows that an audit works on: test rows, surrogate rows, rows from outside.

Invariant: the rows that an attack asks and the rows that its clone is measured on come from different sets or files; the plan
says which, and the report carries the digest of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from garrison import datasets
from garrison.attacks.draws import has_range, uniform_rows
from garrison.attacks.oracle import OracleFacts
from garrison.audit.plan import Plan
from garrison.errors import PlanError
from garrison.npz import read_arrays
from garrison.types import Array

Progress = Callable[[str, float], None]
"""(message, fraction done in [0, 1]) -> None."""


def silent(message: str, share: float) -> None:
    """The progress callback of a caller who wants none."""
    del message, share


_AXES_OF_A_PICTURE = 3
_DRAWN_ROWS = 20_000
_DRAW_SEED = 20_160_810


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows from one source.

    Attributes:
        x: (rows, *shape).
        y: (rows,), class numbers, of training rows also real values; or None.
        labels: names of the classes, empty where the source has none.
        source: the data set and split, or the file's name.
        sha256: digest of dtype, shape and values of x and y.
    """

    x: Array
    y: Array | None
    labels: tuple[str, ...]
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class AuditData:
    """All rows of an audit.

    Attributes:
        test: rows of the model's own kind, labelled where they can be.
        surrogate: what the thief asks.
        outside: rows that are not the model's business.
        own: rows of the model's own kind that the thief has; None for none.
        others: by name in the plan, surrogate rows of single attacks.
        training: the rows that the model was trained on, for a thief of hyperparameters; None where it knows none.
        replaced: roles whose rows were drawn evenly from the stated range, because the plan's did not fit the target.
    """

    test: Rows
    surrogate: Rows
    outside: Rows
    own: Rows | None = None
    others: Mapping[str, Rows] = field(default_factory=dict)
    training: Rows | None = None
    replaced: tuple[str, ...] = ()

    def asked_by(self, surrogate: str) -> Rows:
        """The surrogate rows of that name; those of the plan for "" and where an attack's own were replaced."""
        return self.others.get(surrogate, self.surrogate)


def load_data(
    plan: Plan,
    facts: OracleFacts,
    *,
    test: Path | None = None,
    surrogate: Path | None = None,
    in_distribution: Path | None = None,
    report: Progress = silent,
) -> AuditData:
    """The plan's rows; files given here take the place of the plan's.

    Args:
        plan: names the rows.
        facts: of the target: what rows it takes.
        test, surrogate, in_distribution: .npz files.
        report: told what is being fetched.

    Raises:
        PlanError: the plan names no rows and none are given, a file that cannot be read, too few rows.
        DatasetError: a data set cannot be had.
    """
    pantry = _Pantry(plan, facts, report)
    own = pantry.rows(str(test) if test else plan.test, "test", given=test is not None)
    if own.y is None and not facts.regression and "test" not in pantry.replaced:
        raise PlanError(f"{own.source}: the test rows need whole class numbers (an array y), or nothing can be graded")
    thief = pantry.rows(str(surrogate) if surrogate else plan.surrogate, "surrogate", given=surrogate is not None)
    most = max([b for a in plan.attacks if not a.surrogate for b in a.budgets] + list(plan.control.budgets), default=1)
    if most > len(thief.x) and not plan.else_uniform:
        raise PlanError(
            f"{thief.source}: the plan asks up to {most} surrogate rows and there are {len(thief.x)}; give more rows, or a "
            "plan with smaller budgets"
        )
    outside = pantry.rows(plan.outside, "outside") if plan.outside and not surrogate else thief
    kind = str(in_distribution) if in_distribution else plan.in_distribution
    others = {a.surrogate: pantry.optional(a.surrogate, "surrogate") for a in plan.attacks if a.surrogate}
    training = None if plan.training is None else load_rows(plan.training.rows, "training", report, values=True)
    return AuditData(
        test=first_rows(own, plan.test_rows),
        surrogate=thief,
        outside=last_rows(outside, plan.outside_rows),
        own=_limited(pantry.optional(kind, "in-distribution"), plan.in_distribution_rows) if kind else None,
        others={name: rows for name, rows in others.items() if rows is not None},
        training=training,
        replaced=tuple(dict.fromkeys(pantry.replaced)),
    )


class _Pantry:
    """Fetches rows, and draws them where the plan allows it and they do not fit the target."""

    def __init__(self, plan: Plan, facts: OracleFacts, report: Progress) -> None:
        self.replaced: list[str] = []
        self._plan, self._facts, self._report = plan, facts, report

    def rows(self, name: str, role: str, *, given: bool = False) -> Rows:
        """The rows of that name; drawn ones in their place where they do not fit and the plan says so."""
        if given or not self._plan.else_uniform:
            return load_rows(name, role, self._report)
        found = self.optional(name, role) if name else None
        return found or self._drawn(role)

    def optional(self, name: str, role: str) -> Rows | None:
        """The rows of that name; None where they do not fit and the plan lets them be replaced."""
        if not self._plan.else_uniform:
            return load_rows(name, role, self._report)
        if _is_pictures(name) and len(self._facts.shape) != _AXES_OF_A_PICTURE:
            return None
        found = load_rows(name, role, self._report)
        return found if found.x.shape[1:] == self._facts.shape else None

    def _drawn(self, role: str) -> Rows:
        if not has_range(self._facts):
            raise PlanError(
                f"the plan's {role} rows do not fit the target, and none can be drawn because it does not state the range of its "
                f"inputs: give them with --{role} FILE.npz"
            )
        self.replaced.append(role)
        rng = np.random.default_rng([_DRAW_SEED, *role.encode()])
        count = self._plan.test_rows if role == "test" else _DRAWN_ROWS
        return _rows(
            uniform_rows(rng, min(count, _DRAWN_ROWS), self._facts), None, (), "the stated range, drawn evenly"
        )


def _is_pictures(name: str) -> bool:
    """Whether this is a data set of pictures; what is no data set's name may be anything."""
    found = name.partition(":")[0]
    return found in datasets.names() and datasets.describe(found).kind == "images"


def _limited(rows: Rows | None, most: int) -> Rows | None:
    return None if rows is None else first_rows(rows, most)


def load_rows(name: str, role: str, report: Progress = silent, *, values: bool = False) -> Rows:
    """Rows by the name of a data set's split, such as `mnist:train`, or by the path of an .npz file with x (and y, labels).

    Args:
        name: see above.
        role: what they are for, for messages.
        report: told what is being fetched.
        values: keep a y of real values; classes are kept in any case.

    Raises:
        PlanError: see `load_data`.
        DatasetError: the data set cannot be had.
    """
    if not name:
        raise PlanError(f"this plan names no {role} rows: give them with --{role} FILE.npz")
    if name.endswith(".npz"):
        return _from_file(Path(name), values=values)
    found, _, split = name.partition(":")
    data = datasets.load(found, split or "train", progress=report)
    return _rows(data.x, _truth(data.y, values=values), data.labels, name)


def _truth(y: Array | None, *, values: bool) -> Array | None:
    """Class numbers as int64; real values as they are, where they are wanted."""
    if y is None or (y.dtype.kind not in "iu" and not values):
        return None
    return y.astype(np.int64 if y.dtype.kind in "iu" else np.float64)


def _from_file(path: Path, *, values: bool) -> Rows:
    found = read_arrays(path, names={"x", "y", "labels"}, error=PlanError)
    if "x" not in found or found["x"].ndim < 2 or not len(found["x"]):
        raise PlanError(f"{path}: expected an array x of shape (rows, ...) with at least one row")
    y = found.get("y")
    if y is not None and (y.shape != (len(found["x"]),) or y.dtype.kind not in "iuf"):
        raise PlanError(
            f"{path}: expected class numbers, or a regressor's values, y of shape ({len(found['x'])},), found {y.dtype} {y.shape}"
        )
    labels = tuple(str(label) for label in found.get("labels", np.zeros(0)).ravel().tolist())
    return _rows(found["x"], _truth(y, values=values), labels, path.name)


def _rows(x: Array, y: Array | None, labels: tuple[str, ...], source: str) -> Rows:
    digest = hashlib.sha256()
    for values in (x,) if y is None else (x, y):
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return Rows(x, y, labels, source, digest.hexdigest())


def first_rows(rows: Rows, most: int) -> Rows:
    """At most so many of the rows; the digest stays that of all."""
    y = None if rows.y is None else rows.y[:most]
    return Rows(rows.x[:most], y, rows.labels, rows.source, rows.sha256)


def last_rows(rows: Rows, most: int) -> Rows:
    """As `first_rows`, from the end."""
    y = None if rows.y is None else rows.y[-most:]
    return Rows(rows.x[-most:], y, rows.labels, rows.source, rows.sha256)
