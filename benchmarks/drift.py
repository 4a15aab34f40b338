"""Drift: honest streams that must not ring, real drift, a key that skews slowly, what a patient one can still do, and the cost.

    python -m benchmarks.drift [--seeds 5] [--only benign,real,skew,patient,cost] [--out out/bench/drift.json]
    make bench ONLY=drift                 # what must hold, of three seeds, into docs/benchmarks.md

KDD census: people of 1994 and 1995. A logistic regression is trained on 20,000 people of 1994; the reference is of 5,000 others of 1994, and everything is asked of further ones. Rows come from
callers in turn, in batches of one row a caller.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks import pages
from garrison import datasets
from garrison.guard.defenses.drift import Drift
from garrison.guard.defenses.projection import Projection
from garrison.guard.drifting.state import DriftState
from garrison.hardening.data import Rows
from garrison.hardening.drift import fit_drift, watched_values
from garrison.hardening.drift_offline import compare_columns, compare_rows
from garrison.types import Array, FloatArray, InputFacts, ModelFacts, Task

BATCH = 32
KEPT = Path("out/bench/drift-census.npz")
LEFT_OUT = {"year", "instance_weight"}
MUST_US = 15.0
MUST_NAME_WITHIN = 2_000
SKEWING = ["key 1"]
Change = Callable[[FloatArray, int], None]


@dataclass(frozen=True)
class Census:
    """People of two years, and a model of the first."""

    facts: ModelFacts
    names: list[str]
    years: dict[int, FloatArray]
    answer: Callable[[FloatArray], FloatArray]


def table() -> tuple[FloatArray, Array, list[str]]:
    """Features, classes and names; kept, because reading the source takes a minute."""
    if KEPT.exists():
        kept = np.load(KEPT)
        return kept["x"], kept["y"], kept["features"].tolist()
    parts = [datasets.load("kdd-census", split) for split in ("train", "test")]
    x = np.concatenate([part.x for part in parts]).astype(np.float32)
    y = np.concatenate([part.y for part in parts if part.y is not None])
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    np.savez(KEPT, x=x, y=y, features=np.array(parts[0].features))
    return x, y, list(parts[0].features)


def census() -> Census:
    x, y, features = table()
    year = x[:, features.index("year")]
    kept = [k for k, name in enumerate(features) if name not in LEFT_OUT]
    rng = np.random.default_rng(0)
    by_year = {}
    for number in (94, 95):
        rows = rng.permutation(np.flatnonzero(year == number))
        by_year[number] = x[rows][:, kept].astype(np.float32)
        if number == 94:
            old = y[rows]
    trained = np.nan_to_num(by_year[94][:20_000])
    mean, scale = trained.mean(axis=0), trained.std(axis=0) + 1e-6
    model = LogisticRegression(max_iter=200).fit((trained - mean) / scale, old[:20_000])
    by_year[94] = by_year[94][20_000:]

    def answer(rows: FloatArray) -> FloatArray:
        found: FloatArray = model.predict_proba((np.nan_to_num(rows) - mean) / scale).astype(np.float32)
        return found

    low, high = np.nanmin(x[:, kept], axis=0), np.nanmax(x[:, kept], axis=0)
    return Census(facts_of(len(kept), low, high, 2), [features[k] for k in kept], by_year, answer)


def facts_of(features: int, low: Array, high: Array, classes: int, *, missing: bool = True) -> ModelFacts:
    spec = InputFacts(
        name="x",
        dtype=np.dtype(np.float32),
        shape=(features,),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        may_be_missing=np.full(features, missing),
    )
    labels = tuple(map(str, range(classes)))
    return ModelFacts(
        Task.CLASSIFICATION, (spec,), labels, classes, np.dtype(np.float32), has_logits=False, has_misinformation=False
    )


def fresh(drift: Drift, facts: ModelFacts) -> DriftState:
    state = drift.fresh_state(facts)
    assert isinstance(state, DriftState)
    return state


def stream(
    found: Census,
    drift: Drift,
    x: FloatArray,
    callers: int = BATCH,
    change: Change | None = None,
    *,
    stop: bool = False,
) -> DriftState:
    """All rows, one a caller in turn; with `stop`, until the first alarm that names somebody."""
    state = fresh(drift, found.facts)
    names, request = [f"key {k}" for k in range(callers)], np.arange(callers)
    x = x[: len(x) // callers * callers].copy()
    if change is not None:
        for k in range(len(x) // callers):
            change(x[k * callers : (k + 1) * callers], k)
    y = found.answer(x)
    for start in range(0, len(x), callers):
        part = slice(start, start + callers)
        state.observe(names, request, {"x": x[part]}, None, y[part])
        if stop and any(alarm.named for alarm in state.alarms):
            break
    return state


def reference(found: Census, rows: int, seed: int) -> tuple[Drift, FloatArray]:
    """A reference of some people of 1994, and the others."""
    order = np.random.default_rng([seed, 11]).permutation(len(found.years[94]))
    x = found.years[94][order]
    return fit_drift(found.facts, {"x": x[:rows]}, found.answer(x[:rows]), seed=seed).drift, x[rows:]


def worst(state: DriftState, drift: Drift) -> float:
    return max(peak / drift.thresholds[kind] for kind, peak in state.report().peaks.items())


def benign(found: Census, seeds: int) -> list[dict[str, Any]]:
    """100,000 people of 1994, whom the reference has not seen; and the same, three years older."""
    lines = []
    for rows in (2_500, 5_000, 20_000):
        for seed in range(seeds):
            drift, others = reference(found, rows, seed)
            honest = stream(found, drift, others[:100_000])

            def older(part: FloatArray, _: int) -> None:
                part[:, 0] += 3

            shifted = stream(found, drift, others[:20_000], change=older)
            lines.append(
                {
                    "reference": rows,
                    "seed": seed,
                    "rows": honest.sketch.rows,
                    "alarms": len(honest.alarms),
                    "highest_of_threshold": round(worst(honest, drift), 3),
                    "control_first_alarm": shifted.alarms[0].row if shifted.alarms else None,
                }
            )
    return lines


def real(found: Census, seeds: int) -> dict[str, Any]:
    """1994 to 1995, and the General Social Survey by year."""
    online = []
    for seed in range(seeds):
        drift, others = reference(found, 20_000, seed)
        later = found.years[95][np.random.default_rng([seed, 12]).permutation(len(found.years[95]))]
        state = stream(found, drift, later[:100_000])
        named = sorted({name for alarm in state.alarms for name in alarm.named})
        first = state.alarms[0] if state.alarms else None
        online.append(
            {
                "seed": seed,
                "first_alarm": None if first is None else first.row,
                "kind": None if first is None else first.kind,
                "column": None if first is None else column(found, first.column),
                "named": named,
                "highest_of_threshold": round(worst(state, drift), 3),
            }
        )
    drift, others = reference(found, 20_000, 0)
    offline = {}
    for name, x in (("1994, unseen", others[:40_000]), ("1995", found.years[95][:40_000])):
        seen = watched_values(found.facts, {"x": x}, found.answer(x), Projection())
        done = compare_columns(drift.columns, seen, drift.rows)
        offline[name] = {
            "shifted": [column(found, c) for c in done.shifted],
            "highest": [(column(found, c.name), round(c.psi, 4)) for c in done.columns[:3]],
        }
    return {"kdd_online": online, "kdd_offline": offline, "gss": gss()}


def column(found: Census, name: str) -> str:
    return found.names[int(name[2:-1])] if name.startswith("x[") else name


def gss() -> list[dict[str, Any]]:
    """People of 1994 (half of them), against the other half and against later years."""
    parts = [datasets.load("gss-happiness", split) for split in ("train", "test")]
    x = np.concatenate([part.x for part in parts])
    features = list(parts[0].features)
    year = x[:, features.index("year")]
    kept = [
        k
        for k, name in enumerate(features)
        if name not in {"year", "unem10"} and not name.startswith("y9") and not name.startswith("y0")
    ]
    first = np.random.default_rng(0).permutation(np.flatnonzero(year == 1994))
    half = len(first) // 2
    old = Rows({features[k]: x[first[:half], k] for k in kept}, None, None, "")
    lines = []
    for name, rows in [("1994, other half", first[half:])] + [
        (str(int(y)), np.flatnonzero(year == y)) for y in np.unique(year) if y > 1994
    ]:
        done = compare_rows(old, Rows({features[k]: x[rows, k] for k in kept}, None, None, ""))
        lines.append(
            {"year": name, "rows": len(rows), "shifted": list(done.shifted), "highest": round(done.columns[0].psi, 3)}
        )
    return lines


def skew(found: Census, seeds: int, keys: Sequence[int] = (2, 5, 10, 20)) -> list[dict[str, Any]]:
    """One of N keys slowly turns to people of 90: of its rows, a share that grows from none to all within 2,000 of them. When is it named, and who else?"""
    lines = []
    for callers in keys:
        for seed in range(seeds):
            drift, others = reference(found, 5_000, seed)
            rng = np.random.default_rng([seed, 13])

            def older(part: FloatArray, k: int, rng: np.random.Generator = rng) -> None:
                if rng.random() < k / 2_000:
                    part[1, 0] = 90

            rows = others[: callers * 3_000]
            state = stream(found, drift, rows, callers, older, stop=True)
            named = [alarm.named for alarm in state.alarms if alarm.named]
            control = stream(found, drift, rows, callers)
            lines.append(
                {
                    "keys": callers,
                    "seed": seed,
                    "named": list(named[0]) if named else None,
                    "own_rows": state.sketch.rows // callers if named else None,
                    "all_rows": state.sketch.rows if named else None,
                    "control_alarms": len(control.alarms),
                }
            )
    return lines


def patient(found: Census) -> list[dict[str, Any]]:
    """The largest constant shift of one feature that one of N keys can hold for 60,000 rows unseen, in standard deviations; and what it does to the mean of all."""
    drift, others = reference(found, 5_000, 0)
    scale = float(found.years[94][:, 0].std())
    lines = []
    for callers in (2, 5, 10, 20):
        low, high = 0.0, 4.0
        for _ in range(6):
            middle = (low + high) / 2

            def older(part: FloatArray, _: int, by: float = middle) -> None:
                part[1, 0] += by * scale

            rings = bool(stream(found, drift, others[:60_000], callers, older).alarms)
            low, high = (low, middle) if rings else (middle, high)
        lines.append({"keys": callers, "unseen_deviations": round(low, 2), "mean_of_all": round(low / callers, 3)})
    return lines


def cost() -> list[dict[str, Any]]:
    """Processor time a row, in batches of so many requests of one row."""
    rng, lines = np.random.default_rng(0), []
    for features, classes in ((32, 10), (784, 10)):
        facts = facts_of(features, np.full(features, -9), np.full(features, 9), classes, missing=False)
        x = rng.normal(size=(6_400, features)).astype(np.float32)
        z = rng.normal(size=(6_400, classes)).astype(np.float32)
        y = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        drift = fit_drift(facts, {"x": x[:4_000]}, y[:4_000]).drift
        seen = watched_values(facts, {"x": x}, y, Projection())[:, :32]
        for batch in (1, 8, 32):
            state, best = fresh(drift, facts), []
            names, request = [f"key {k}" for k in range(batch)], np.arange(batch)
            for _ in range(7):
                start = time.process_time()
                for at in range(0, 6_400, batch):
                    part = slice(at, at + batch)
                    projected = seen[part] if features > 64 else None
                    state.observe(names, request, {"x": x[part]}, projected, y[part])
                best.append((time.process_time() - start) / 6_400 * 1e6)
            lines.append(
                {
                    "features": features,
                    "batch": batch,
                    "us_a_row": round(float(np.median(best)), 2),
                    "least": round(min(best), 2),
                }
            )
        start = time.process_time()
        for _ in range(20):
            state.report()
        lines.append(
            {
                "features": features,
                "report_ms": round((time.process_time() - start) / 20 * 1e3, 2),
                "bytes": len(state.dump()),
            }
        )
    return lines


def judge(results: dict[str, Any]) -> dict[str, tuple[str, str, bool]]:
    """By figure: what must be, what was measured, whether it is so."""
    honest, keys = results["benign"], results["skew"]
    costs = {
        line["batch"]: line["us_a_row"] for line in results["cost"] if line.get("batch") and line["features"] == 32
    }
    alarms, control = sum(line["alarms"] for line in honest), [line["control_first_alarm"] for line in honest]
    named = [line["own_rows"] for line in keys if line["named"] == SKEWING]
    calm = sum(line["control_alarms"] for line in keys)
    return {
        "processor time a row of 32 features": (
            f"at most {MUST_US:g} us",
            ", ".join(f"{us} us in batches of {batch}" for batch, us in costs.items()),
            max(costs.values()) <= MUST_US,
        ),
        f"alarms in {len(honest)} honest streams of {min(line['rows'] for line in honest):,} rows and more": (
            "none",
            str(alarms),
            not alarms,
        ),
        "control: the same people three years older ring": (
            f"in all {len(control)}",
            f"in {sum(row is not None for row in control)}, after {min(filter(None, control), default=0):,} rows and more",
            None not in control,
        ),
        "the key that skews, and no other, is named": (
            f"within {MUST_NAME_WITHIN:,} of its rows, in all {len(keys)}",
            f"in {len(named)}, within {max(named, default=0):,}",
            len(named) == len(keys) and max(named) <= MUST_NAME_WITHIN,
        ),
        "control: alarms in the same streams without the skew": ("none", str(calm), not calm),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="benign,real,skew,patient,cost")
    parser.add_argument("--out", type=Path, default=Path("out/bench/drift.json"))
    parser.add_argument("--table", action="store_true", help="put what must hold into docs/benchmarks.md")
    given = parser.parse_args()
    wanted = given.only.split(",")
    found = None if wanted == ["cost"] else census()
    results: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in wanted:
        if name == "cost":
            results[name] = cost()
        elif found is not None:
            results[name] = (
                {"benign": benign, "real": real, "skew": skew}[name](found, given.seeds)
                if name != "patient"
                else patient(found)
            )
        print(json.dumps({name: results[name]}, indent=1))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(results, indent=1) + "\n")
    if given.table:
        verdicts = judge(results)
        pages.write("drift", f"{pages.made('make bench ONLY=drift')}\n\n{pages.verdicts(verdicts)}")
        if not all(met for _, _, met in verdicts.values()):
            sys.exit("not all that must hold held")


if __name__ == "__main__":
    main()
