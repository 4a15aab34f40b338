"""Drift between two sets of rows, offline: a file of rows against the reference of a bundle, or against another file.

Every row counts alike here, and each column is judged once, by the chi-square test of two samples over its bins (Pearson 1911; its tail after Wilson and Hilferty, 1931): a column has shifted
where chance makes such a difference in less than one of a hundred comparisons, all columns together (Bonferroni). How far it has shifted, the PSI says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist

import msgspec
import numpy as np

from garrison.bundle.reader import VerifiedBundle
from garrison.errors import CalibrationError, GuardError
from garrison.guard.defenses.drift import Drift
from garrison.guard.defenses.projection import Projection
from garrison.guard.drifting.columns import Column, Layout, layout_of
from garrison.guard.drifting.measures import ks, psi
from garrison.guard.drifting.report import ColumnShift, Unpaired
from garrison.guard.drifting.report import Compared as Compared  # noqa: PLC0414  it is handed on
from garrison.guard.pipeline import load_defense
from garrison.hardening.data import Rows, for_model
from garrison.hardening.drift import fit_column, watched_values
from garrison.runtime.runner import Runner
from garrison.types import Array, FloatArray

FEWEST_ROWS = 100
CHANCE = 0.01
MOST_COLUMNS = 512
_SLICE = 1_024
_FEWEST_IN_A_BIN = 5


def check_rows(bundle: VerifiedBundle, rows: Rows) -> Compared:
    """Rows against the frozen reference of a bundle; its own model answers them.

    Raises:
        GuardError: the bundle was sealed without `drift`, or another server runs its model.
        CalibrationError: too few rows, or rows that do not fit the model.
    """
    manifest = bundle.manifest
    chain = [load_defense(spec) for spec in manifest.guard]
    drift = next((defense for defense in chain if isinstance(defense, Drift)), None)
    if drift is None:
        raise GuardError("this bundle holds no reference: it was sealed without drift, or from fewer than 2,500 rows")
    if manifest.upstream is not None:
        raise GuardError("another server runs this bundle's model, so its answers to these rows are not known here")
    projection = next((defense for defense in chain if isinstance(defense, Projection)), Projection())
    inputs = for_model(rows, {spec.name: (spec.datatype, spec.shape) for spec in manifest.inputs})
    facts = manifest.facts()
    values = watched_values(facts, inputs, _answers(bundle, inputs), projection)
    return compare_columns(drift.columns, values, drift.rows)


def _answers(bundle: VerifiedBundle, inputs: dict[str, Array]) -> FloatArray:
    runner = Runner(bundle)
    count = len(next(iter(inputs.values())))
    parts = (slice(start, start + _SLICE) for start in range(0, count, _SLICE))
    return np.concatenate([runner.run({name: x[part] for name, x in inputs.items()}).values for part in parts])


def compare_rows(reference: Rows, now: Rows) -> Compared:
    """Two files of rows, feature by feature; y as one more column where both have it, and left out where only one does.

    Raises:
        CalibrationError: other arrays or shapes, too many features, or too few rows.
    """
    kept, kept_now, unpaired = paired(reference, now)
    old, new = _flat(kept), _flat(kept_now)
    if old.keys() != new.keys():
        odd = sorted(old.keys() ^ new.keys())
        raise CalibrationError(f"the two files must hold the same features; only one has {', '.join(odd[:4])}")
    if not 1 <= len(old) <= MOST_COLUMNS:
        raise CalibrationError(
            f"expected 1 to {MOST_COLUMNS} features, found {len(old)}; compare larger rows with `drift check`"
        )
    _check_rows(len(reference))
    columns = [fit_column(name, x, answer=name == "y") for name, x in old.items()]
    found = compare_columns(columns, np.stack([new[name] for name in old], axis=1), len(reference))
    return msgspec.structs.replace(found, unpaired=unpaired)


def paired(reference: Rows, now: Rows) -> tuple[Rows, Rows, Unpaired]:
    """Both with y or both without, as far as they can be compared; and which of them alone had it."""
    if (reference.y is None) == (now.y is None):
        return reference, now, ""
    return replace(reference, y=None), replace(now, y=None), "now" if reference.y is None else "reference"


def _flat(rows: Rows) -> dict[str, FloatArray]:
    found: dict[str, FloatArray] = {}
    arrays: Mapping[str, Array] = rows.inputs if rows.y is None else {**rows.inputs, "y": rows.y}
    for name, x in arrays.items():
        wide = x.reshape(len(x), -1).astype(np.float32)
        for k in range(min(wide.shape[1], MOST_COLUMNS + 1)):
            found[name if wide.shape[1] == 1 else f"{name}[{k}]"] = wide[:, k]
    return found


def compare_columns(columns: Sequence[Column], values: FloatArray, reference_rows: int) -> Compared:
    """Rows against a reference.

    Args:
        values: shape (rows, columns).
        reference_rows: of which the reference was made.

    Raises:
        CalibrationError: fewer than `FEWEST_ROWS` rows.
    """
    rows = len(values)
    _check_rows(rows)
    layout = layout_of(columns)
    codes = layout.codes(values)
    now = np.bincount(codes.ravel(), minlength=len(layout.shares)) / rows
    p, d = psi(now, layout.shares, layout.start), ks(now, layout.shares, layout.start)
    error = math.sqrt(1 / rows + 1 / max(1, reference_rows))
    means = np.abs(layout.scores(values).mean(axis=0)) / error
    chance = {
        column.name: _chance(column, now[_bins(layout, k)], rows, reference_rows) for k, column in enumerate(columns)
    }
    order = np.argsort(-p, kind="stable").tolist()
    shifts = tuple(
        ColumnShift(
            name=columns[k].name,
            psi=float(p[k]),
            ks=float(d[k]),
            ewma=float(means[k]),
            answer=columns[k].answer,
            edges=columns[k].edges,
            reference=columns[k].shares,
            now=tuple(now[_bins(layout, k)].tolist()),
        )
        for k in order
    )
    shifted = tuple(s.name for s in shifts if chance[s.name] < CHANCE / len(columns))
    return Compared(rows, reference_rows, shifts, chance, shifted)


def _bins(layout: Layout, column: int) -> slice:
    start = int(layout.start[column])
    return slice(start, start + len(layout.columns[column].shares))


def _check_rows(rows: int) -> None:
    if rows < FEWEST_ROWS:
        raise CalibrationError(f"expected at least {FEWEST_ROWS} rows to compare, found {rows}")


def _chance(column: Column, now: FloatArray, rows: int, reference_rows: int) -> float:
    """How often chance alone makes two samples differ so much."""
    n, m = float(rows), float(max(1, reference_rows))
    a, b = _pooled(now * n, np.array(column.shares) * m, min(n, m) / (n + m))
    both = a + b
    terms = (math.sqrt(m / n) * a - math.sqrt(n / m) * b) ** 2 / both
    degrees = max(1, len(both) - 1)
    spread = 2 / (9 * degrees)
    z = ((float(terms.sum()) / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return NormalDist().cdf(-z)


def _pooled(a: FloatArray, b: FloatArray, part: float) -> tuple[FloatArray, FloatArray]:
    """Two samples' counts, with rare bins put together, so that no single row says much.

    Args:
        part: of both samples, the smaller one's.
    """
    order = np.argsort(a + b, kind="stable")
    a, b = a[order], b[order]
    enough = np.cumsum((a + b) * part) >= _FEWEST_IN_A_BIN
    first = int(enough.argmax()) if enough.any() else len(a) - 1
    starts = [0, *range(first + 1, len(a))]
    return np.add.reduceat(a, starts), np.add.reduceat(b, starts)
