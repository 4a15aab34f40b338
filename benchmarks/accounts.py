"""Sybils: a thief's rows over many accounts, amid honest callers, through the whole of `watch`: when are accounts summed and alarmed, and who else is.

    python -m benchmarks.streams && python -m benchmarks.accounts [--seeds 3] [--crowds 6] [--out out/bench/accounts.json]

Detectors as in `benchmarks.detection`; nothing is taken off the way of a row through `watch`: every caller's evidence, links, groups, alarms. Honest callers are 100 at a time,
who ask 500 rows of the test split each, in turn; their shifts are those of `benchmarks.streams`. An entry for a thief is the number of rows that all its accounts had asked when the first
alarm rang, when the first alarm of a group rang, and how many of its accounts, and of the honest callers, were alarmed when they had asked 1,500 rows together.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.streams import Stream

from benchmarks import detection, streams
from garrison.guard.defenses.watch import load_detector
from garrison.guard.detectors.base import Detector
from garrison.guard.watching.book import Armed
from garrison.guard.watching.state import Rows, Settings, WatchState
from garrison.hardening.fits import USUAL
from garrison.hardening.measures import upper_limit

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


def sybils(detectors: dict[str, Detector], thief: Stream, spread: str, ratio: float, seed: int) -> dict[str, Any]:
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
        if so_far >= IN_TIME:
            break
    names = [int(caller) for caller in alarmed(state)]
    active = len(np.unique(place[: start + BATCH][place[: start + BATCH] >= CALLERS]))
    return found | {
        "accounts so far": active,
        "accounts alarmed": sum(n >= CALLERS for n in names),
        "honest alarmed": sum(n < CALLERS for n in names),
    }


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
    for name in [n for n in given.only.split(",") if n] or ["jbda-undefended", "jbda-defended", "jbda-tr-undefended"]:
        for seed in range(given.seeds):
            for spread in SPREADS:
                for ratio in RATIOS:
                    key = f"{name}-{seed}, {spread}, {ratio:g} honest rows a row"
                    if key not in whole["sybils"] and (streams.OUT / f"{name}-{seed}.npz").exists():
                        whole["sybils"][key] = sybils(detectors, streams.load(f"{name}-{seed}"), spread, ratio, seed)
                        given.out.write_text(json.dumps(whole, indent=1))
                    if key in whole["sybils"]:
                        print(f"{key}: {whole['sybils'][key]}", flush=True)


if __name__ == "__main__":
    main()
