"""Sybils: a thief's rows over many accounts, amid honest callers, through the whole of `watch`: when are accounts summed and alarmed, and who else is.

    python -m benchmarks.streams && python -m benchmarks.accounts [--seeds 3] [--crowds 6] [--out out/bench/accounts.json]

Detectors as in `benchmarks.detection`; nothing is taken off the way of a row through `watch`: every caller's evidence, links, groups, alarms. Honest callers are 100 at a time,
who ask 500 rows of the test split each, in turn; their shifts are those of `benchmarks.streams`. An entry for a thief is the number of rows that all its accounts had asked when the first
alarm rang, when the first alarm of a group rang, and how many of its accounts, and of the honest callers, were alarmed when they had asked 1,500 rows together.

"knowing": thieves who ask honest rows from each of their accounts, too. "framing": a thief who knows what half of the honest callers ask, and asks beside each odd
row of theirs, before it, after it or both, to have them alarmed with himself; and the same against a detector for which others' rows count against everybody.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from benchmarks.streams import Stream

from benchmarks import detection, streams
from garrison.confidence import upper_limit
from garrison.guard.defenses.watch import load_detector
from garrison.guard.detectors.accounts import Accounts
from garrison.guard.detectors.base import Detector
from garrison.guard.detectors.hardness import distance
from garrison.guard.detectors.tables import bins
from garrison.guard.watching.book import Armed
from garrison.guard.watching.remembered import Settings
from garrison.guard.watching.state import Rows, WatchState
from garrison.hardening.fits import USUAL

CALLERS = 100
IN_TIME = 1_500
BATCH = 32
CLASSES = 10
SPREADS = {
    "20 accounts in turn": (20, streams.turns),
    "20 accounts, one after the other": (20, streams.blocks),
    "200 accounts in turn": (200, streams.turns),
    "accounts of 30 rows, one after the other": (80, streams.blocks),
}
RATIOS = (0.0, 2.0, 4.0)
"""Honest rows for each row of the thief."""
COVERS = (0.25, 0.5, 1.0)
"""The same, from the thief's own accounts."""
KNOWING = ("20 accounts in turn", "accounts of 30 rows, one after the other")
FRAMED = 50
FRAMED_ROWS = 150
WHEN = {"nobody": (), "after": (0.5,), "before": (-0.5,), "both": (-0.5, 0.5)}
"""When the thief asks beside a row, counted from it."""
BESIDE = (2.0, 3.0, 4.0)
"""How far beside, in the projection's unit; shorter framed fewer."""
Places = npt.NDArray[np.intp]


def calibrated() -> dict[str, Detector]:
    """The detectors that `garrison harden` puts into the chain."""
    if detection.KEPT.exists():
        kept = json.loads(detection.KEPT.read_text())["detectors"]
        if set(USUAL) <= set(kept):
            return {name: load_detector(name, kept[name]) for name in USUAL}
    return detection.calibrated(everything=False)[0]


def watch(detectors: dict[str, Detector]) -> WatchState:
    armed = tuple(Armed(name, detector, 1, shadow=False) for name, detector in detectors.items())
    facts: Any = None  # only digests of inputs need them, and none are kept here
    return WatchState(Settings(armed, 86_400.0, 4_096, 0), facts)


def observe(state: WatchState, place: Places, rows: Stream) -> None:
    values = np.zeros((len(rows), CLASSES), np.float32)
    values[np.arange(len(rows)), rows.top] = rows.probability
    state.observe(
        [f"{p:05d}" for p in place.tolist()], np.arange(len(place)), Rows({}, rows.projection, rows.confidence, values)
    )


def crowd(seed: int) -> tuple[Places, Stream]:
    """Honest callers who take turns."""
    callers = streams.honest(CALLERS, seed=seed)
    rows = len(callers[0])
    order = np.arange(CALLERS * rows).reshape(CALLERS, rows).T.ravel()
    return np.tile(np.arange(CALLERS), rows), streams.joined(callers)[order]


def alarmed(state: WatchState) -> dict[str, dict[str, int]]:
    """By caller and detector, how many callers were summed."""
    found: dict[str, dict[str, int]] = {}
    for alarm in state.alarms():
        found.setdefault(alarm.caller, {})[alarm.detector] = alarm.group
    return found


def honest(detectors: dict[str, Detector], crowds: int) -> dict[str, Any]:
    """Honest callers alone: alarmed by themselves, and by what links accounts."""
    alone = together = largest = 0
    for seed in range(crowds):
        state, (place, rows) = watch(detectors), crowd(100 + seed)
        for start in range(0, len(place), BATCH):
            part = slice(start, start + BATCH)
            observe(state, place[part], rows[part])
        found = alarmed(state)
        own = sum(min(groups.values()) == 1 for groups in found.values())
        alone, together = alone + own, together + len(found) - own
        largest = max([largest, *(max(groups.values()) for groups in found.values())])
    callers = crowds * CALLERS
    return {
        "callers": callers,
        "alarmed alone": alone,
        "alarmed in a group only": together,
        "largest group alarmed": largest,
        "upper_95": upper_limit(alone + together, callers),
    }


def sybils(
    detectors: dict[str, Detector], thief: Stream, spread: str, ratio: float, seed: int, in_time: int = IN_TIME
) -> dict[str, Any]:
    """See the module's docstring."""
    accounts, how = SPREADS[spread]
    rows = len(thief)
    more = round(ratio * rows)
    crowd_place, cover = crowd(200 + seed)
    when = np.concatenate([np.arange(rows), np.arange(more) / max(ratio, 1e-9)])
    order = np.argsort(when, kind="stable")
    place = np.concatenate([CALLERS + how(rows, accounts), crowd_place[:more]])[order]
    whole = streams.joined([thief, cover[:more]])[order]
    asked = np.cumsum(order < rows)
    state = watch(detectors)
    found: dict[str, Any] = {"first": None, "first group": None}
    for start in range(0, len(place), BATCH):
        part = slice(start, start + BATCH)
        observe(state, place[part], whole[part])
        so_far = int(asked[min(start + BATCH, len(asked)) - 1])
        if found["first"] is None or found["first group"] is None:
            groups = [max(g.values()) for caller, g in alarmed(state).items() if int(caller) >= CALLERS]
            found["first"] = found["first"] or (so_far if groups else None)
            found["first group"] = found["first group"] or (so_far if max(groups, default=1) > 1 else None)
        if so_far >= in_time:
            break
    names = [int(caller) for caller in alarmed(state)]
    active = len(np.unique(place[: start + BATCH][place[: start + BATCH] >= CALLERS]))
    return found | {
        "accounts so far": active,
        "accounts alarmed": sum(n >= CALLERS for n in names),
        "honest alarmed": sum(n < CALLERS for n in names),
    }


def knowing(detectors: dict[str, Detector], thief: Stream, spread: str, cover: float, seed: int) -> dict[str, Any]:
    """The same by a thief who asks honest rows from each account; rows of both are counted."""
    mixed, _ = streams.covered(thief, streams.load("test-plain"), cover, np.random.default_rng(3))
    return sybils(detectors, mixed, spread, 0.0, seed, math.ceil(IN_TIME * (1 + cover)))


def framing(detectors: dict[str, Detector], thief: Stream, when: str, step: float, seed: int) -> dict[str, Any]:
    """Honest callers alarmed: those beside whose rows the thief asks, how many of them by themselves, and the others."""
    place, rows = crowd(300 + seed)
    many = FRAMED_ROWS * CALLERS
    place, rows = place[:many], rows[:many]
    hit = np.flatnonzero((place < FRAMED) & _odd(detectors["accounts"], rows))
    rng = np.random.default_rng(seed)
    own = np.linspace(0, many, len(thief)) + 0.25
    beside = [_beside(rows[hit], step, rng) for _ in WHEN[when]]
    time = np.concatenate([np.arange(many), own, *(hit + later for later in WHEN[when])])
    order = np.argsort(time, kind="stable")
    place = np.concatenate([place, np.full(len(time) - many, CALLERS)])[order]
    whole = streams.joined([rows, thief, *beside])[order]
    state = watch(detectors)
    for start in range(0, len(place), BATCH):
        part = slice(start, start + BATCH)
        observe(state, place[part], whole[part])
    found = {int(caller): groups for caller, groups in alarmed(state).items()}
    framed = [groups for caller, groups in found.items() if caller < FRAMED]
    return {
        "framed": len(framed),
        "framed alone": sum(min(groups.values()) == 1 for groups in framed),
        "bystanders": sum(FRAMED <= caller < CALLERS for caller in found),
        "thief": CALLERS in found,
    }


def _odd(detector: Detector, rows: Stream) -> npt.NDArray[np.bool_]:
    """Which rows `accounts` looks at."""
    assert isinstance(detector, Accounts)
    low = np.array(detector.nats)[bins(rows.confidence, np.array(detector.edges))] > 0
    far: npt.NDArray[np.bool_] = (
        distance(rows.projection, np.array(detector.mean), np.array(detector.whiten)) >= detector.out
    )
    return low & far


def _beside(rows: Stream, step: float, rng: np.random.Generator) -> Stream:
    """Rows as far from these, as strange as they are."""
    way = rng.normal(size=rows.projection.shape)
    moved = rows.projection + step * way / np.linalg.norm(way, axis=1, keepdims=True)
    return Stream(rows.x, moved.astype(np.float32), rows.confidence, rows.probability, rows.top)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--crowds", type=int, default=6)
    parser.add_argument("--only", default="", help="names of thieves, e.g. jbda-undefended")
    parser.add_argument("--out", type=Path, default=detection.ROOT / "out" / "bench" / "accounts.json")
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # every alarm is told
    detectors = calibrated()
    thresholds = {name: d.threshold for name, d in detectors.items()}
    whole: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    if whole.get("thresholds") != thresholds:
        whole = {"thresholds": thresholds, "sybils": {}}
    if given.crowds and whole.get("honest", {}).get("callers") != given.crowds * CALLERS:
        whole["honest"] = honest(detectors, given.crowds)
        given.out.write_text(json.dumps(whole, indent=1))
    print(json.dumps(whole.get("honest")), flush=True)
    names = [n for n in given.only.split(",") if n] or ["jbda-undefended", "jbda-defended", "jbda-tr-undefended"]
    for name in names:
        for seed in range(given.seeds):
            if (streams.OUT / f"{name}-{seed}.npz").exists():
                for key, arm in arms(detectors, streams.load(f"{name}-{seed}"), seed):
                    key = f"{name}-{seed}, {key}"
                    if key not in whole["sybils"]:
                        whole["sybils"][key] = arm()
                        given.out.write_text(json.dumps(whole, indent=1))
                    print(f"{key}: {whole['sybils'][key]}", flush=True)


def arms(
    detectors: dict[str, Detector], thief: Stream, seed: int
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """All that is tried with one thief."""
    for spread in SPREADS:
        for ratio in RATIOS:
            yield f"{spread}, {ratio:g} honest rows a row", partial(sybils, detectors, thief, spread, ratio, seed)
    for spread in KNOWING:
        for cover in COVERS:
            yield (
                f"knowing, {spread}, {cover:g} own honest rows a row",
                partial(knowing, detectors, thief, spread, cover, seed),
            )
    trusting = detectors | {"accounts": msgspec.structs.replace(detectors["accounts"], own=0.0)}
    for rule, judges in (("", detectors), (", everybody liable", trusting)):
        for when, times in WHEN.items():
            for step in BESIDE if times else (0.0,):
                yield f"framing, {when}, {step:g} beside{rule}", partial(framing, judges, thief, when, step, seed)


if __name__ == "__main__":
    main()
