"""The budget of a guarded request, row by row: processor time that each part adds, in the batches that 32 connections bring.

    python -m benchmarks.request_budget --json

The parts are switched on one after the other: nothing but the model and its release, the signature, the guard in the graph (bounds, budget, score,
misinformation), detectors, drift, ledger. All arms are in one process, on the server's event loop, and take turns in short blocks, in an order that is drawn anew each round; a request goes through the
queue, the service and the writing of its answer, as in the server, but over no network. The process keeps to one core, as the server does in the other benches: else each wait for the disk may end on
another, whose caches hold nothing of it. Each batch holds one row of each of 32 callers, honest ones that none of them asked before.
The model is the hardened one of `python -m benchmarks.run`, its detectors those of `benchmarks.detection`.

Each batch waits here until its own entries are on the disk, and nothing else is computed meanwhile. `disk` says what part of the ledger's time that is: the same ledger on a disk that says at once
that it has written is the arm beside it. It holds the kernel's work, and what the processor's caches have forgotten by the time that the disk answers.

A bound in microseconds is set for a machine on which the bare runtime takes 11.5 us an image at batch 32: `scaled_us` is what was measured, times that by what it takes here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import uvloop
from benchmarks.bare_runtime import REFERENCE_US, runtime_us
from benchmarks.streams import SEED

from benchmarks import detection
from garrison import datasets
from garrison.bundle.manifest import InputSpec, Provenance
from garrison.bundle.reader import verify
from garrison.bundle.secret import read_secret
from garrison.config import Config, LedgerConfig
from garrison.crypto.owner import OwnerKey
from garrison.enclave.backends.none import NoIsolation
from garrison.enclave.host import Launch
from garrison.enclave.memory import settle
from garrison.hardening.artifact import MODEL_FILE, read_hardened
from garrison.hardening.drift import with_drift
from garrison.hardening.scoring import open_session, score
from garrison.limits import DEFAULT_LIMITS
from garrison.protocol.messages import Reply
from garrison.protocol.oip_client import encode_request
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.server.budgets import BudgetBook
from garrison.server.hosting import Model, make_model
from garrison.server.ledger.ledger import Ledger
from garrison.server.questions import rate_limits, read_message, write_answer
from garrison.types import Array, DefenseSpec, Task

CALLERS, BLOCK = 32, 6
MUST = {"signature": 4.0, "guard": 8.0, "detectors": 6.0, "drift": 3.0, "ledger": 4.0}
ARMS = ("nothing", *MUST)
NO_DISK = "ledger-without-disk"
PLENTY = 10**12
NONCE = "n" * 43
CALIBRATION_ROWS = 5_000


@dataclass(frozen=True, slots=True)
class Chains:
    """What is sealed: the model, and the chain of each arm that has one of its own."""

    draft: Draft
    chains: dict[str, tuple[DefenseSpec, ...]]


def chains() -> Chains:
    hardened = read_hardened(SEED / "hardened")
    raw = (SEED / "hardened" / MODEL_FILE).read_bytes()
    tau = next(spec for spec in hardened.guard if spec.name == "adaptive-misinformation")
    detection.calibrated(everything=False)
    detectors = json.loads(detection.KEPT.read_text())["detectors"]
    budget, release = DefenseSpec(name="budget", parameters={"rows": PLENTY}), DefenseSpec(name="release")
    bounds, confidence = DefenseSpec(name="bounds"), DefenseSpec(name="max-probability")
    watch = DefenseSpec(name="watch", parameters={"detectors": detectors})
    looks = (DefenseSpec(name="sanctions"), budget, DefenseSpec(name="projection"), confidence, watch)
    with np.load(SEED / "training" / "calibration.npz") as held:
        x: Array = held["x"][:CALIBRATION_ROWS]
    draft = Draft(
        name="lenet",
        version=1,
        model=onnx.load_model_from_string(raw),
        task=Task.CLASSIFICATION,
        labels=tuple(hardened.labels),
        inputs=(InputSpec(name="image", datatype="FP32", shape=(1, 28, 28), minimum=0.0, maximum=1.0),),
        guard=(release,),
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64),
        rows={"image": x[:4]},
    )
    found = {
        "nothing": (release,),
        "guard": (bounds, budget, confidence, tau, release),
        "detectors": (bounds, *looks, tau, release),
    }
    with tempfile.TemporaryDirectory() as folder:
        facts = _facts(draft, Path(folder) / "bundle")
    answers = score(open_session(raw), {"image": x}, ["probabilities"])["probabilities"]
    found["drift"], _ = with_drift(found["detectors"], facts, {"image": x}, answers)
    return Chains(draft, found)


def _facts(draft: Draft, path: Path) -> Any:
    owner = OwnerKey.generate()
    seal(draft, owner, path)
    return verify(path, [owner.public]).manifest.facts()


class Arm:
    """One server without its network: queue, service, and, where it has one, the ledger."""

    def __init__(self, name: str, bundle: Path, owner: OwnerKey, folder: Path, stack: ExitStack) -> None:
        secret = bundle.with_name(f"{bundle.name}.secret")
        enclave = NoIsolation(Launch(bundle, [owner.public], key=read_secret(secret) if secret.exists() else None))
        stack.callback(enclave.stop)
        if name == "nothing":
            enclave._service._reply_maker._sign = _unsigned  # type: ignore[method-assign]  # noqa: SLF001  no server leaves it out
        ledger = None
        if name in {"ledger", NO_DISK}:
            config = Config(ledger=LedgerConfig(folder=str(folder / name)))
            ledger = Ledger(config, [enclave], sync=os.fdatasync if name == "ledger" else _at_once)
            stack.callback(ledger.close)
        book = BudgetBook(folder / f"state-{name}")
        stack.callback(book.close)
        worker = stack.enter_context(ThreadPoolExecutor(1))
        self.model: Model = make_model(enclave, book, worker, DEFAULT_LIMITS, ledger=ledger)

    async def ask(self, batch: Sequence[tuple[str, bytes, int]]) -> None:
        model = self.model
        waiting = [read_message(model, who, body, length, NONCE, DEFAULT_LIMITS) for who, body, length in batch]
        for future, request in [(model.batcher.submit(request), request) for request in waiting]:
            reply = await future
            write_answer(reply, rate_limits(model, request, reply))
            if reply.code:
                raise SystemExit(f"a request was refused: {reply.code}")


def _at_once(descriptor: int) -> None:
    """A disk that takes no time."""


def _unsigned(answers: Any, replies: dict[int, Reply]) -> None:
    for item, body, json_bytes, outcome in answers:
        replies[item.number] = Reply("", "", body, json_bytes, b"", outcome)


def batches(seed: int, count: int) -> Iterator[list[tuple[str, bytes, int]]]:
    """Each caller goes through pictures in an order of its own, and asks none twice."""
    x = datasets.load("fashion-mnist", "test").x
    orders = [np.random.default_rng(caller).permutation(len(x)) for caller in range(CALLERS)]
    for number in range(seed * count, (seed + 1) * count):
        rows = [np.ascontiguousarray(x[order[number % len(x)]]).reshape(1, 1, 28, 28) for order in orders]
        yield [(f"key {k}", *encode_request({"image": row})) for k, row in enumerate(rows)]


async def measure(arms: dict[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Microseconds a request of each arm, one entry a round; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in arms}
    order = random.Random(0)
    for number in range(rounds + 2):
        block = list(batches(number, BLOCK))
        for name in order.sample(list(arms), len(arms)):
            begun = time.process_time()
            for batch in block:
                await arms[name].ask(batch)
            found[name].append((time.process_time() - begun) / (BLOCK * CALLERS) * 1e6)
    return {name: values[2:] for name, values in found.items()}


def report(found: dict[str, list[float]], runtime: float) -> dict[str, Any]:
    scale = REFERENCE_US / runtime
    rows: dict[str, Any] = {
        name: _row(found[name], found[before], scale, MUST[name]) for before, name in pairwise(ARMS)
    }
    return {
        "nothing_us": round(statistics.median(found["nothing"]), 1),
        **rows,
        "disk": _spread(found["ledger"], found[NO_DISK], scale),
        "together": _row(found[ARMS[-1]], found[ARMS[0]], scale, sum(MUST.values())),
        "runtime_us": round(runtime, 1),
        "runtime_us_where_the_bounds_were_set": REFERENCE_US,
        "rounds": len(found["nothing"]),
    }


def _row(mine: Sequence[float], before: Sequence[float], scale: float, must: float) -> dict[str, float]:
    return {**_spread(mine, before, scale), "must_us": must}


def _spread(mine: Sequence[float], before: Sequence[float], scale: float) -> dict[str, float]:
    added = [a - b for a, b in zip(mine, before, strict=True)]
    low, middle, high = statistics.quantiles(added, n=4)
    return {
        "added_us": round(middle, 1),
        "quartile_low": round(low, 1),
        "quartile_high": round(high, 1),
        "scaled_us": round(middle * scale, 1),
    }


def run(rounds: int) -> dict[str, Any]:
    found = chains()
    owner = OwnerKey.generate()
    with tempfile.TemporaryDirectory(dir=detection.ROOT / "out") as name, ExitStack() as stack:
        folder = Path(name)
        for arm, chain in found.chains.items():
            seal(replace(found.draft, guard=chain), owner, folder / arm)
        bundle = {"signature": "nothing", "ledger": "drift", NO_DISK: "drift"}
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        arms = {arm: Arm(arm, folder / bundle.get(arm, arm), owner, folder, stack) for arm in (*ARMS, NO_DISK)}
        settle()
        times = uvloop.run(measure(arms, rounds))
    return report(times, runtime_us(found.draft.model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=90)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = run(options.rounds)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, row in found.items():
        print(f"{name:40s}", *(row.items() if isinstance(row, dict) else [row]))


if __name__ == "__main__":
    main()
