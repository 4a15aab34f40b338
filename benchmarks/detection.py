"""Which detector names which thief, after how many of its rows, and how many honest callers are alarmed; for docs/detectors and docs/benchmarks.md.

    python -m benchmarks.streams && python -m benchmarks.detection [--callers 600] [--all] [--out out/bench/detection.json]
    python -m benchmarks.detection --cost

`--cost` says instead what they cost, and needs no streams: processor time a row of `watch` with all of them, digests and secret projection included (lower quartile, median and upper quartile of 20 blocks of 50 batches, other
memory gone through between two batches as a model does it), and of each alone, where nothing waits and nothing is shared.

Detectors are calibrated as `garrison harden` does it, on the calibration rows of out/bench/seed-0, and kept in out/bench/detectors.json. Thieves' rows and honest callers are those
of `benchmarks.streams`; the callers' rows are of the test split, which neither training nor calibration saw. An entry is how many rows the thief had asked of its own
when the sum of one caller's evidence first reached the threshold; cover is not counted, and "-" is never. Accounts are looked at one by one here, without what links them.
What is in the file already, by detectors of the same thresholds, is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from benchmarks.bare_runtime import REFERENCE_US, runtime_us
from benchmarks.streams import SEED, SHIFTS, Stream

from benchmarks import streams
from garrison import datasets
from garrison.audit.detection.prada import prada
from garrison.confidence import upper_limit
from garrison.guard.defenses.watch import load_detector
from garrison.guard.detectors.base import Detector, Seen
from garrison.guard.watching.book import Alarm, Armed
from garrison.guard.watching.remembered import Settings
from garrison.guard.watching.state import Rows, WatchState
from garrison.hardening.fits import FITTERS, USUAL
from garrison.hardening.scoring import open_session, score
from garrison.hardening.watching import calibrate_watch, joined, sums, take_rows
from garrison.types import Array, BoolArray, DefenseSpec

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "out" / "bench" / "detectors.json"
COVER = 2.0
DELTAS = (0.90, 0.95)
PRADA_ROWS = 1_000
BATCH = 32
ROUNDS = 400
LATE = 1_000_000
DAY = 86_400.0
ROWS_A_REQUEST = 5
SHAPES = ((32, 1), (1, 1), (4, 32))
"""Callers of a batch, and rows of each."""
REMEMBERED, REMEMBERED_CALLERS = 2048, 4096
FILLED, BLOCK, BLOCKS = 256, 50, 20
OTHER_MEMORY = 8 * 2**20


def seen_of(stream: Stream) -> Seen:
    """The rows of one caller."""
    rows = len(stream)
    return Seen(
        place=np.zeros(rows, dtype=np.intp),
        asked=np.arange(rows),
        projection=stream.projection,
        confidence=stream.confidence,
        probability=stream.probability,
        top=stream.top,
    )


def calibrated(*, everything: bool) -> tuple[dict[str, Detector], dict[str, float]]:
    """The detectors that `garrison harden` would put into the chain, or all that it knows, and its figures."""
    names = tuple(FITTERS) if everything else USUAL
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if set(kept.get("detectors", {})) != set(names):
        bundle = streams.opened()
        session = open_session((SEED / "hardened" / "model.onnx").read_bytes())
        with np.load(SEED / "training" / "calibration.npz") as held:
            inputs: dict[str, Array] = {bundle.manifest.inputs[0].name: held["x"]}
        looks = (DefenseSpec(name="projection"), DefenseSpec(name="max-probability"))
        begun = time.process_time()
        found = calibrate_watch(
            lambda x: score(session, x, ["probabilities"]), bundle.manifest.facts(), looks, inputs, names=names
        )
        seconds = {"processor_seconds": time.process_time() - begun}
        kept = {"detectors": found.detectors, "metrics": found.metrics | seconds}
        KEPT.write_text(json.dumps(kept))
    return {name: load_detector(name, given) for name, given in kept["detectors"].items()}, kept["metrics"]


def first(detector: Detector, seen: Seen, own: BoolArray | None = None) -> int | None:
    """The thief's own rows at the first alarm."""
    over = np.flatnonzero(sums(detector, [seen])[0] >= detector.threshold)
    if not len(over):
        return None
    return int(over[0] + 1 if own is None else own[: over[0] + 1].sum())


def thieves(detectors: Mapping[str, Detector], found: dict[str, dict[str, int | None]]) -> Iterator[str]:
    """By stream, plain and under cover, by detector: the first alarm. Added to what was found; gives the name of each stream that is done."""
    cover = streams.load("test-plain")
    for path in sorted(streams.OUT.glob("*-*defended-*.npz")):
        name = path.name.removesuffix(".npz")
        if name.endswith(".part") or name in found:
            continue
        stream = streams.load(name)
        mixed, own = streams.covered(stream, cover, COVER, np.random.default_rng(3))
        arms: tuple[tuple[str, Stream, BoolArray | None], ...] = ((name, stream, None), (f"{name} +cover", mixed, own))
        made = {arm: {n: first(d, seen_of(rows), mine) for n, d in detectors.items()} for arm, rows, mine in arms}
        whole = prada(stream.x[:PRADA_ROWS], stream.top[:PRADA_ROWS])
        made[name] |= {f"prada {delta}": whole.alarm(delta) for delta in DELTAS}
        found |= made
        yield name


def crowd(detectors: Mapping[str, Detector], callers: Mapping[str, Seen]) -> dict[str, Alarm]:
    """All callers in one service, by the code that serves: in turns of a few rows, 32 callers a batch, linked accounts summed. The first alarm of each."""
    facts = streams.opened().manifest.facts()
    armed = tuple(Armed(name, detector, 0, shadow=False) for name, detector in detectors.items())
    state = WatchState(Settings(armed, DAY, max(64, 4 * len(callers)), 0), facts)
    names = list(callers)
    longest = max(len(seen.top) for seen in callers.values())
    for start in range(0, longest, ROWS_A_REQUEST):
        for group in range(0, len(names), BATCH):
            these = [n for n in names[group : group + BATCH] if start < len(callers[n].top)]
            if not these:
                continue
            parts = [take_rows(callers[n], slice(start, start + ROWS_A_REQUEST), i) for i, n in enumerate(these)]
            whole = joined(parts)
            values = np.repeat((1 - whole.probability[:, None]) / (len(facts.labels) - 1), len(facts.labels), axis=1)
            values[np.arange(len(values)), whole.top] = whole.probability
            state.observe(these, whole.place, Rows({}, whole.projection, whole.confidence, values))
    rung: dict[str, Alarm] = {}
    for alarm in state.alarms():
        if alarm.caller not in rung or alarm.row < rung[alarm.caller].row:
            rung[alarm.caller] = alarm
    return rung


def honest(detectors: Mapping[str, Detector], count: int) -> dict[str, Any]:
    """Callers alarmed, all of them in one service, and the upper 95 % limit of the share (Clopper and Pearson)."""
    callers = {f"{i:04} {SHIFTS[i % len(SHIFTS)]}": seen_of(s) for i, s in enumerate(streams.honest(count, seed=1))}
    rung = crowd(detectors, callers)
    return {
        "callers": count,
        "rows_a_caller": streams.ROWS_A_CALLER,
        "alarmed": len(rung),
        "upper_95": upper_limit(len(rung), count),
        "who": {name: [alarm.detector, alarm.row, alarm.group] for name, alarm in rung.items()},
    }


def cost(detectors: Mapping[str, Detector], pool: Seen, asked: int) -> dict[str, float]:
    """Microseconds of processor time a row, in batches of 32 rows of 32 callers who have asked so many rows before; the median of many batches."""
    width = pool.projection.shape[1]
    found = {}
    for name, detector in detectors.items():
        columns = {n: np.full((BATCH, *c.shape), c.fill, c.dtype) for n, c in detector.columns(width).items()}
        shared = {n: np.full(c.shape, c.fill, c.dtype) for n, c in detector.shares(width).items()}
        times = []
        for turn in range(ROUNDS):
            start = turn * BATCH % (len(pool.top) - BATCH)
            rows = joined([take_rows(pool, slice(start + i, start + i + 1), i) for i in range(BATCH)])
            rows = Seen(
                **{f: getattr(rows, f) for f in Seen.__struct_fields__} | {"asked": rows.asked * 0 + asked + turn}
            )
            begun = time.process_time()
            detector.weigh(rows, columns, shared)
            detector.links(rows, columns, shared)
            times.append(time.process_time() - begun)
        found[name] = statistics.median(times[ROUNDS // 2 :]) / BATCH * 1e6
    return found


def together(detectors: Mapping[str, Detector], pool: Seen, asked: int) -> dict[str, list[float]]:
    """Microseconds of processor time a row that `watch` takes with all of them, of callers who have asked so many rows before: quartiles over many blocks.

    The caches are as a model leaves them: before each batch, other memory is gone through.
    """
    facts = streams.opened().manifest.facts()
    x = datasets.load("fashion-mnist", "test").x.reshape(-1, *facts.inputs[0].shape)
    armed = tuple(Armed(name, detector, 1, shadow=False) for name, detector in detectors.items())
    values = np.repeat((1 - pool.probability[:, None]) / (len(facts.labels) - 1), len(facts.labels), axis=1)
    values[np.arange(len(values)), pool.top] = pool.probability
    every = Rows({facts.inputs[0].name: x}, pool.projection, pool.confidence, values.astype(np.float32))
    found = {}
    for callers, rows in SHAPES:
        state = WatchState(Settings(armed, DAY, REMEMBERED_CALLERS, REMEMBERED), facts)
        rng = np.random.default_rng(0)
        orders = np.stack([rng.permutation(len(x)) for _ in range(callers)])
        arm = Asking(state, every, orders, rows)
        for _ in range(-(-min(asked, FILLED) // rows)):
            arm.ask()
        _as_if_asked(state, asked)
        blocks = [statistics.fmean(arm.ask() for _ in range(BLOCK)) for _ in range(BLOCKS)]
        found[f"{callers} callers of {rows} rows"] = [round(us, 1) for us in statistics.quantiles(blocks, n=4)]
    return found


class Asking:
    """Callers who ask pictures, each in an order of its own, all in one batch.

    Args:
        orders: numbers of pictures, shape (callers, pictures).
        rows: of each in a batch.
    """

    def __init__(self, state: WatchState, every: Rows, orders: Array, rows: int) -> None:
        self._state, self._every, self._orders, self._rows = state, every, orders, rows
        self._names = [f"key {caller}" for caller in range(len(orders))]
        self._owner = np.repeat(np.arange(len(orders)), rows)
        self._other = np.zeros(OTHER_MEMORY // 8)
        self._turn = 0

    def ask(self) -> float:
        """Microseconds a row."""
        turns = np.arange(self._turn, self._turn + self._rows) % self._orders.shape[1]
        self._turn += self._rows
        batch = self._every.some(self._orders[:, turns].ravel())
        self._other += 1
        begun = time.process_time()
        self._state.observe(self._names, self._owner, batch)
        return (time.process_time() - begun) / len(self._owner) * 1e6


def _as_if_asked(state: WatchState, asked: int) -> None:
    """Counters of all callers as if they had asked so many rows, and what they were answered as full."""
    places = np.array([place for _, place in state.places])
    state.settle()
    rng = np.random.default_rng(1)
    state.rings.table["next"][places] = asked
    if asked >= REMEMBERED:
        state.rings.table["ring"][places] = rng.integers(1, 2**32, (len(places), REMEMBERED), dtype=np.uint32)
        state.rings.look()
    for counter in ("asked", "shown"):
        state.book.table[counter][places] = asked


def table(found: Mapping[str, Mapping[str, int | None]]) -> str:
    """In Markdown."""
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    lines = ["| thief | " + " | ".join(names) + " | first |", "|---" * (len(names) + 2) + "|"]
    for arm, row in found.items():
        rung = [row[n] for n in row if row[n] is not None and not n.startswith("prada")]
        cells = ["-" if row.get(n) is None else str(row[n]) for n in names]
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {min(rung, default='-')} |")  # type: ignore[type-var]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=600)
    parser.add_argument("--all", action="store_true", help="also detectors that harden leaves out")
    parser.add_argument("--cost", action="store_true", help="only processor time")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench" / "detection.json")
    given = parser.parse_args()
    detectors, metrics = calibrated(everything=given.all)
    width = 32
    sizes = {n: sum(c.size for c in d.columns(width).values()) for n, d in detectors.items()}
    if given.cost:
        pool = seen_of(streams.make_honest("test", "plain"))
        each = {str(asked): cost(detectors, pool, asked) for asked in (100, LATE)}
        watch = {str(asked): together(detectors, pool, asked) for asked in (100, LATE)}
        found = {
            "each": each,
            "together": watch,
            "bytes": sizes,
            "runtime_us": runtime_us(onnx.load(SEED / "hardened" / "model.onnx")),
        }
        print(json.dumps(found | {"runtime_us_where_the_bound_was_set": REFERENCE_US}, indent=1))
        return
    thresholds = {name: d.threshold for name, d in detectors.items()}
    whole: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    if whole.get("thresholds") != thresholds:
        whole = {"thresholds": thresholds, "calibration": metrics, "bytes_a_caller": sizes, "thieves": {}}
    if whole.get("honest", {}).get("callers") != given.callers:
        whole["honest"] = honest(detectors, given.callers)
        given.out.write_text(json.dumps(whole, indent=1))
    named: dict[str, dict[str, int | None]] = whole["thieves"]
    for name in thieves(detectors, named):
        print(f"{name}: {named[name]}", flush=True)
        given.out.write_text(json.dumps(whole, indent=1))
    print(table(named))
    print(json.dumps({name: part for name, part in whole.items() if name != "thieves"}, indent=1))


if __name__ == "__main__":
    main()
