"""Throughput with everything on, against the same server unguarded: ResNet-18 size, binary tensors.

    python -m benchmarks.everything_resnet              # make bench ONLY=everything
    python -m benchmarks.everything_resnet --rounds 5   # shorter

Two servers share a core and take turns, in an order that changes with each round. `unguarded`: no enclave, a guard that only releases the full answer, no ledger. `everything`: model and guard
in a process of their own, bounds, a budget, detectors of thieves, misinformation, drift, API keys, and a ledger on the disk before an answer leaves. Both batch, and both sign.

Weights and inputs are random, so detectors and drift have nothing honest to be calibrated on: the detectors are those of `benchmarks.detection`, with thresholds that are never reached,
and do all their arithmetic. In each round either server gets 32 requests at once, and the time until the last is answered counts: no round ends in the middle of a request. Ratios are
taken within a round: answers a second, and beside it processor time, which is the steadier figure on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.serve_lenet import server
from benchmarks.serving.driving import Measured, measure
from benchmarks.serving.models import MODELS, NEVER_REACHED, Model, draft_of, prepare, threshold

from benchmarks import detection
from benchmarks.serving import pools
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerKey
from garrison.hardening.drift import with_drift
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.server.key_file import add_key
from garrison.types import DefenseSpec, ModelFacts

MUST = 0.96
CONNECTIONS, REFERENCE_ROWS, FAR = 32, 1_000, 1e9


@dataclass(frozen=True, slots=True)
class Arm:
    """A running server and what it is sent."""

    pid: int
    url: str
    pool: pools.Pool


def detectors() -> dict[str, dict[str, Any]]:
    """Those of the Fashion-MNIST victim, which never ring here."""
    detection.calibrated(everything=False)
    kept = json.loads(detection.KEPT.read_text())["detectors"]
    return {name: {**given, "threshold": FAR} for name, given in kept.items()}


def chain(model: Model, facts: ModelFacts, tau: float) -> tuple[DefenseSpec, ...]:
    """All that `garrison seal` puts in front of a classifier."""
    specs = (
        *(DefenseSpec(name="bounds"), DefenseSpec(name="sanctions")),
        DefenseSpec(name="budget", parameters={"rows": NEVER_REACHED}),
        *(DefenseSpec(name="projection"), DefenseSpec(name="max-probability")),
        DefenseSpec(name="watch", parameters={"detectors": detectors()}),
        *(DefenseSpec(name="adaptive-misinformation", parameters={"tau": tau}), DefenseSpec(name="release")),
    )
    rng = np.random.default_rng(0)
    rows = rng.random((REFERENCE_ROWS, *model.shape), dtype=np.float32)
    answers = rng.dirichlet(np.ones(model.classes), REFERENCE_ROWS).astype(np.float32)
    return with_drift(specs, facts, {"x": rows}, answers)[0]


def seal_everything(model: Model, draft: Draft, folder: Path) -> Path:
    """The bundle, its owner's key beside it."""
    owner, plain, bundle = OwnerKey.generate(), folder / "plain-chain", folder / "everything"
    seal(draft, owner, plain)
    facts = verify(plain, [owner.public]).manifest.facts()
    seal(replace(draft, guard=chain(model, facts, threshold(draft.model, model.rows()))), owner, bundle)
    (folder / "everything.pub").write_bytes(owner.public.pem)
    return bundle


def arms(model: Model, folder: Path, stack: ExitStack) -> dict[str, Arm]:
    """Both servers, running."""
    prepared = prepare(model, folder / "model")
    bundle = seal_everything(model, draft_of(model, model.make(), (DefenseSpec(name="release"),)), folder)
    key = add_key(folder / "keys.json", "caller")
    more = ["--isolation", "process", "--ledger", str(folder / "ledger"), "--keys", str(folder / "keys.json")]
    commands = {
        "unguarded": [str(prepared.unguarded), "--trust", str(prepared.trust), "--isolation", "none"],
        "everything": [str(bundle), "--trust", str(folder / "everything.pub"), *more],
    }
    found = {}
    for name, words in commands.items():
        state = ["--port", "0", "--state", str(folder / f"state-{name}")]
        pid, url = stack.enter_context(server([sys.executable, "-m", "garrison", "serve", *words, *state]))
        bodies = [pools.encode(x, model.name) for x in model.rows()]
        if name == "everything":
            bodies = [replace(body, headers={**body.headers, "Authorization": f"Bearer {key}"}) for body in bodies]
        found[name] = Arm(pid, url, pools.write(folder / f"pool-{name}", url, bodies))
    return found


def compare(rounds: int) -> dict[str, Any]:
    seen: list[dict[str, Measured]] = []
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        running = arms(MODELS["resnet18"], Path(name), stack)
        for number in range(rounds + 1):
            figures = {}
            for arm in order.sample(sorted(running), len(running)):
                one = running[arm]
                figures[arm] = measure(one.pid, one.url, one.pool, 0.0, CONNECTIONS)
            if number:  # the first round warms up
                seen.append(figures)
    return report(seen)


def report(seen: list[dict[str, Measured]]) -> dict[str, Any]:
    """Medians over the rounds, and of the ratios within each."""
    throughput = [figures["everything"].rate / figures["unguarded"].rate for figures in seen]
    processor = [figures["unguarded"].processor_us / figures["everything"].processor_us for figures in seen]
    found: dict[str, Any] = {
        arm: {
            "answers_a_second": round(statistics.median(figures[arm].rate for figures in seen), 2),
            "processor_ms": round(statistics.median(figures[arm].processor_us for figures in seen) / 1e3, 2),
        }
        for arm in ("unguarded", "everything")
    }
    for name, ratios in (("throughput_ratio", throughput), ("processor_ratio", processor)):
        low, middle, high = map(float, np.percentile(ratios, [25, 50, 75]))
        found[name] = {"median": round(middle, 3), "quartile_low": round(low, 3), "quartile_high": round(high, 3)}
    return {**found, "must": MUST, "met": found["throughput_ratio"]["median"] >= MUST, "rounds": len(seen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    print(json.dumps(compare(given.rounds), indent=2))


if __name__ == "__main__":
    main()
