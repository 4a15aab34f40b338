"""Processor time that `garrison.asgi.Guarded` adds to a request of a FastAPI app, LeNet size, 784 numbers of JSON.

    python -m benchmarks.middleware_cost

Two arms of one app, with and without the middleware, in short blocks that take turns in one process, called as a server calls them, without
the server: what a server costs is the same in both. Guard: bounds, budget, out-of-distribution score, misinformation, release. Both as
a difference and as a ratio. No row is misinformed (tau 0), as nearly none of honest callers is. "quiet" is the 5th percentile of the blocks: what
other programs on the machine do to the caches is mostly left out of it. "scaled" is what was added, by what the bare runtime takes for the model in the same
rounds, as on the machine that the bound was set for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.serve_lenet import seal_lenet
from benchmarks.serving.figures import REFERENCE_US
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse

from garrison import datasets
from garrison.asgi import Guarded
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerPublicKey
from garrison.runtime.runner import Runner
from garrison.runtime.session import open_graph

ROUNDS, REPEATS, MUST_US = 400, 6, 60


def app(bundle: Path, trust: Path, *, ready_made: bool) -> FastAPI:
    """The user's app; `ready_made` takes the arrays that the guard has made already."""
    found = FastAPI()
    runner = Runner(verify(bundle, [OwnerPublicKey.from_pem(trust.read_bytes())]))

    @found.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        if ready_made:
            x = request.scope["garrison"].inputs["x"]
        else:
            x = np.array((await request.json())["x"], dtype=np.float32).reshape(-1, 1, 28, 28)
        return JSONResponse({"probabilities": runner.run({"x": x}).values.tolist()})

    return found


def call(application: Any, body: bytes) -> Any:
    """One request, as a server gives it to an app."""
    headers = [(b"host", b"app"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict"}
    scope |= {"query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1", "asgi": {"version": "3.0"}}
    scope |= {"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise RuntimeError(f"status {message['status']}")

    return application(dict(scope), receive, send)


async def measure(
    arms: dict[str, Any], bodies: list[bytes], runtime: Callable[[], object]
) -> tuple[dict[str, list[float]], list[float]]:
    """Microseconds of processor time a request, by arm and round, and a run of the bare runtime; all take turns within a round."""
    for application in arms.values():
        for body in bodies:
            await call(application, body)
    found: dict[str, list[float]] = {name: [] for name in arms}
    bare: list[float] = []
    for number in range(ROUNDS):
        mine = [bodies[(number * REPEATS + repeat) % len(bodies)] for repeat in range(REPEATS)]
        for name, application in arms.items():
            started = time.process_time_ns()
            for body in mine:
                await call(application, body)
            found[name].append((time.process_time_ns() - started) / REPEATS / 1e3)
        started = time.process_time_ns()
        for _ in range(REPEATS):
            runtime()
        bare.append((time.process_time_ns() - started) / REPEATS / 1e3)
    return found, bare


def bare_runtime(bundle: Path, trust: Path) -> Callable[[], object]:
    """One run of the model at batch 1 by the runtime alone: what the machine is worth."""
    verified = verify(bundle, [OwnerPublicKey.from_pem(trust.read_bytes())])
    session = open_graph(verified, verified.manifest.graph)
    x = {"x": np.zeros((1, 1, 28, 28), np.float32)}
    return lambda: session.run(["probabilities"], x)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        bundle, trust = seal_lenet(Path(name), tau=0.0)
        arms: dict[str, Any] = {"bare": app(bundle, trust, ready_made=False)}
        for arm, ready_made in (("guarded", False), ("guarded, arrays from the scope", True)):
            arms[arm] = app(bundle, trust, ready_made=ready_made)
            arms[arm].add_middleware(
                Guarded, bundle=bundle, trust=trust, path="/predict", inputs="x", state=Path(name) / arm
            )
        x = datasets.load("fashion-mnist", "test").x[:256]
        bodies = [json.dumps({"x": [np.round(row.ravel(), 4).tolist()]}).encode() for row in x.astype(np.float64)]
        found, runtime = asyncio.run(measure(arms, bodies, bare_runtime(bundle, trust)))
    print(f"must be at most {MUST_US} us where the bare runtime takes {REFERENCE_US[1]} us at batch 1")
    for share, name in ((50, "median"), (5, "quiet")):
        levels = {arm: float(np.percentile(values, share)) for arm, values in found.items()}
        unit = float(np.percentile(runtime, share))
        print(f"{name:8s}bare runtime, batch 1           {unit:8.1f} us")
        for arm, level in levels.items():
            added = level - levels["bare"]
            scaled = added * REFERENCE_US[1] / unit
            told = f"added {added:7.1f}, scaled {scaled:6.1f}, ratio {level / levels['bare']:.3f}"
            print(f"{name:8s}{arm:32s}{level:8.1f} us a request, {told}")


if __name__ == "__main__":
    main()
