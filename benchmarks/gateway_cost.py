"""Processor time that `garrison gateway` adds to a request: LeNet-size model on another server, binary tensors, keep-alive connections.

    python -m benchmarks.gateway_cost

Two arms take turns: `direct`, the load asks the model's server (`garrison serve`, no guard but the release policy); `gateway`, the load asks the
gateway, which asks that same server. Guard: bounds, budget, out-of-distribution score, misinformation, release, signature. Added is what
both servers spend on a request through the gateway, less what the model's server spends on a direct one. The ratio is to the direct arm of
the same round. "Scaled" is what was added, by what the bare runtime takes for the model at batch 1 in the same rounds, as on the machine that the bound was set for. No row is
misinformed (tau 0), as nearly none of honest callers is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.middleware_cost import bare_runtime
from benchmarks.serve_lenet import CLASSES, Load, drive, lenet, processor_seconds, server
from benchmarks.serving.figures import REFERENCE_US

from garrison.bundle.manifest import InputSpec, Provenance, UpstreamEntry
from garrison.crypto.owner import OwnerKey
from garrison.limits import DEFAULT_LIMITS
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.types import DefenseSpec, Task
from garrison.upstream.http import connect
from garrison.upstream.model import describe
from garrison.upstream.target import Target

MODEL, MUST_MICROSECONDS, RUNS = "lenet", 200.0, 500
GUARD: dict[str, dict[str, Any]] = {
    "bounds": {},
    "budget": {"rows": 10**12},
    "max-probability": {},
    "adaptive-misinformation": {"tau": 0.0},
    "release": {},
}


def draft() -> Draft:
    """The model as its own server has it."""
    model = lenet()
    kept = [output for output in model.graph.output if output.name == "probabilities"]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    return Draft(
        name=MODEL,
        version=1,
        model=model,
        task=Task.CLASSIFICATION,
        labels=tuple(map(str, range(CLASSES))),
        inputs=(InputSpec(name="x", datatype="FP32", shape=(1, 28, 28), minimum=0.0, maximum=1.0),),
        guard=(DefenseSpec(name="release"),),
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64),
        rows={"x": np.random.default_rng(1).random((4, 1, 28, 28), dtype=np.float32)},
    )


def guard_of(url: str) -> Draft:
    """The guard alone, for the model of a running server."""
    wrong = lenet()
    kept = [output for output in wrong.graph.output if output.name == "misinformation"]
    del wrong.graph.output[:]
    wrong.graph.output.extend(kept)
    connections = connect(Target(url), DEFAULT_LIMITS)
    described = describe(connections, MODEL, "1", DEFAULT_LIMITS.upstream_seconds)
    connections.close()
    entry = UpstreamEntry(
        model=MODEL,
        version="1",
        metadata_sha256=described.sha256,
        digest=described.digest,
        output="probabilities",
        most_rows=64,
    )
    chain = tuple(DefenseSpec(name=name, parameters=parameters) for name, parameters in GUARD.items())
    return replace(draft(), model=None, misinformation=wrong, upstream=entry, guard=chain)


def spent(pids: list[int], url: str, load: Load, seconds: float, connections: int) -> list[float]:
    """Microseconds of processor time a request, by process."""
    drive(url, load, 1.0, connections)  # warm up
    before = [processor_seconds(pid) for pid in pids]
    requests, errors, _ = drive(url, load, seconds, connections)
    after = [processor_seconds(pid) for pid in pids]
    if errors:
        sys.exit(f"{errors} of {requests} requests failed; the figures would mean nothing")
    return [(b - a) / requests * 1e6 for a, b in zip(before, after, strict=True)]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, owner = Path(name), OwnerKey.generate()
        trust = folder / "owner.pub"
        trust.write_bytes(owner.public.pem)
        command = [sys.executable, "-m", "garrison"]
        more = ["--trust", str(trust), "--port", "0", "--state", str(folder / "state")]
        seal(draft(), owner, folder / "model")
        runtime = bare_runtime(folder / "model", trust)
        serve = [*command, "serve", str(folder / "model"), *more, "--isolation", "none"]
        upstream, url = stack.enter_context(server(serve))
        seal(guard_of(url), owner, folder / "guard")
        gateway, guarded = stack.enter_context(
            server([*command, "gateway", str(folder / "guard"), *more, "--upstream", url])
        )
        load = Load.write(folder, folder / "guard", trust)
        found: dict[str, Any] = {}
        for connections in options.connections:
            rounds, bare = [], []
            for _ in range(options.rounds):
                bare.append(runtime_us(runtime))
                (direct,) = spent([upstream], url, load, options.seconds, connections)
                own, behind = spent([gateway, upstream], guarded, load, options.seconds, connections)
                rounds.append((direct, own, behind))
            found[f"{connections} connections"] = summary(rounds, statistics.median(bare))
    return found


def runtime_us(run: Callable[[], object]) -> float:
    """Microseconds of processor time of one run."""
    started = time.process_time_ns()
    for _ in range(RUNS):
        run()
    return (time.process_time_ns() - started) / RUNS / 1e3


def summary(rounds: list[tuple[float, float, float]], runtime: float) -> dict[str, Any]:
    added = [own + behind - direct for direct, own, behind in rounds]
    scaled = statistics.median(added) * REFERENCE_US[1] / runtime
    return {
        "direct_us": round(statistics.median(r[0] for r in rounds), 1),
        "gateway_process_us": round(statistics.median(r[1] for r in rounds), 1),
        "model_server_behind_us": round(statistics.median(r[2] for r in rounds), 1),
        "added_us": round(statistics.median(added), 1),
        "added_us_low": round(min(added), 1),
        "added_us_high": round(max(added), 1),
        "added_to_direct": round(statistics.median(a / r[0] for a, r in zip(added, rounds, strict=True)), 2),
        "bare_runtime_us": round(runtime, 1),
        "added_scaled_us": round(scaled, 1),
        "must_us": MUST_MICROSECONDS,
        "met": scaled <= MUST_MICROSECONDS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    print(json.dumps(compare(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
