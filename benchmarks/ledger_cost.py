"""Processor time that the ledger adds to a request: LeNet-size model, binary tensors, keep-alive connections.

    python -m benchmarks.ledger_cost                      # and --isolation none

Three servers take turns, in an order that changes with each round: `without` a ledger, `with` one (synchronised to the disk, signed every second), and `again`, a second
one without, which shows what the measurement itself is worth. Added is the difference to `without` in the same round; all processes of a server count, the
enclave too. After the load the ledger is verified, and must hold as many answers as the load got.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.serve_lenet import Load, drive, processor_seconds, seal_lenet, server

from garrison.server.ledger.reader import lines_from
from garrison.server.ledger.trust import KeyTrust
from garrison.server.ledger.verify import verify_ledger

MUST_MICROSECONDS = 4.0
ARMS = ("without", "with", "again")
_RESAMPLES = 2_000


def spent(pid: int, url: str, load: Load, seconds: float, connections: int) -> tuple[float, int]:
    """Microseconds of processor time a request, and requests."""
    before = processor_seconds(pid)
    requests, errors, _ = drive(url, load, seconds, connections)
    took = processor_seconds(pid) - before
    if errors:
        sys.exit(f"{errors} of {requests} requests failed; the figures would mean nothing")
    return took / requests * 1e6, requests


def compare(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=options.folder) as name, ExitStack() as stack:
        folder = Path(name)
        bundle, trust = seal_lenet(folder)
        load = Load.write(folder, bundle, trust)
        command = [sys.executable, "-m", "garrison", "serve", str(bundle), "--trust", str(trust), "--port", "0"]
        command += ["--isolation", options.isolation]
        running = {}
        for arm in ARMS:
            more = ["--state", str(folder / arm), *(["--ledger", str(folder / "ledger")] if arm == "with" else [])]
            running[arm] = stack.enter_context(server([*command, *more]))
        found: dict[str, Any] = {}
        asked, order = 0, random.Random(0)
        for connections in options.connections:
            rounds = []
            for number in range(options.rounds + 1):
                figures = {}
                for arm in order.sample(ARMS, len(ARMS)):
                    figures[arm], requests = spent(*running[arm], load, options.seconds, connections)
                    asked += requests if arm == "with" else 0
                if number:  # the first round warms up
                    rounds.append(figures)
            found[f"{connections} connections"] = summary(rounds)
        time.sleep(2.0)  # the last of them are signed
        (report,) = verify_ledger(folder / "ledger", KeyTrust(unsafe_any_key=True))
        size = sum(len(line) + 1 for path in (folder / "ledger").rglob("*.jsonl") for line in lines_from(path))
        found["ledger"] = {
            "holds": not report.problem,
            "answers": report.answers,
            "answers_that_the_load_got": asked,
            "bytes_an_answer": round(size / max(report.answers, 1), 1),
        }
        return found


def summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    added = [figures["with"] - figures["without"] for figures in rounds]
    noise = [figures["again"] - figures["without"] for figures in rounds]
    low, high = interval(added)
    return {
        "without_us": round(statistics.median(figures["without"] for figures in rounds), 1),
        "added_us": round(statistics.median(added), 2),
        "added_us_low": round(low, 2),
        "added_us_high": round(high, 2),
        "control_us": round(statistics.median(noise), 2),
        "must_us": MUST_MICROSECONDS,
        "rounds": len(rounds),
    }


def interval(values: list[float]) -> tuple[float, float]:
    """95 % of the medians of resampled rounds."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[32])
    parser.add_argument("--isolation", default="process", choices=["process", "none"])
    parser.add_argument("--folder", help="Where the ledger lies; a disk that counts, not memory.")
    print(json.dumps(compare(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
