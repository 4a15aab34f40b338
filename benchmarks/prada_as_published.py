"""PRADA as its paper has it, offline, on the streams that defeat it and on those that do not; for docs/detectors/bounded-prada.md.

    python -m benchmarks.prada_as_published [--seeds 3]

Asks the bundle of `python -m benchmarks.run` (out/bench/seed-0), without its guard. JBDA begins with 100 rows here, ten a class, as PRADA's authors do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from benchmarks.streams import Eyes, Recorder

from benchmarks import streams
from garrison import datasets
from garrison.attacks.draws import uniform_rows
from garrison.attacks.extraction.jbda import Jbda
from garrison.attacks.oracle import MeteredOracle
from garrison.audit.detection.prada import prada
from garrison.audit.targets import unguarded
from garrison.types import Array

DELTAS = (0.90, 0.92, 0.95, 0.97)
HONEST_ROWS = 2_000
ROWS = 1_000
ASKED = 600
ACCOUNTS = 20
SEEDS = 100
STEPS = (0.1, 0.2)


def cases(seed: int) -> Iterator[tuple[str, Array, Array | None]]:
    """(name, rows, which of them are the thief's own) of one caller each."""
    rng = np.random.default_rng(seed)
    target = unguarded(streams.opened())
    test = datasets.load("fashion-mnist", "test").x

    def drawn(rows: int) -> Array:
        return test[rng.permutation(len(test))[:rows]]

    yield "honest", drawn(HONEST_ROWS), None
    for how in ("flip", "move", "bright"):
        yield f"honest, {how}", streams.shifted(drawn(ROWS), how, rng), None
    yield "honest, flipped and moved", streams.shifted(drawn(ROWS)[..., ::-1], "move", rng), None
    for step in STEPS:
        recorder = Recorder(target)
        attack = Jbda(seeds=SEEDS, step=step, epochs=1, fewest_steps=1)
        attack.run(MeteredOracle(recorder, ASKED), streams.thief(), np.random.default_rng(seed))
        asked = np.concatenate(recorder.asked)
        yield f"JBDA, step {step}", asked, None
        mixed = np.concatenate([asked, drawn(2 * len(asked))])
        order = np.argsort(np.concatenate([np.arange(len(asked)), rng.random(2 * len(asked)) * len(asked)]))
        yield f"JBDA, step {step}, two thirds cover", mixed[order], order < len(asked)
        yield f"JBDA, step {step}, one of {ACCOUNTS} accounts", asked[::ACCOUNTS], None
    digits = datasets.load("mnist", "train").x
    yield "digits", digits[rng.permutation(len(digits))[:ROWS]], None
    yield "uniform noise", uniform_rows(rng, ROWS, target.facts), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    eyes = Eyes(streams.opened())
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(given.seeds):
        for name, x, own in cases(seed):
            seen = eyes.look(np.ascontiguousarray(x, dtype=np.float32))
            whole = prada(seen.x, seen.top)
            alarms = {str(d): whole.alarm(d) for d in DELTAS}
            if own is not None:
                alarms = {d: None if at is None else int(own[:at].sum()) for d, at in alarms.items()}
            found.setdefault(name, []).append(
                {
                    "alarm": alarms,
                    "kept": round(whole.kept / whole.rows, 3),
                    "least_w": float(whole.w.min()) if len(whole.w) else None,
                }
            )
    for name, made in found.items():
        print(name, json.dumps(made))


if __name__ == "__main__":
    main()
