"""Whether the time of an answer tells that it is misinformation: inputs of 600 KB, alone in a request, asked in this process.

    python -m benchmarks.misinformation_time                   # a minute and a half
    python -m benchmarks.misinformation_time --models small    # half of one

Two models with random weights: ResNet-18's shape, where the model takes most of the time, and a `small` one, where it takes little: the bad case. Of each there are two bundles that differ in
nothing but the threshold, which puts every row above it (`honest`) or below (`misinformed`), and the same two with `constant_time`. A second `honest` service shows what the measurement itself is worth.
All get the same rows, one after the other, in an order that changes with each row.

`more_us`: by how much an answer takes longer than the honest one to the same row: the median, and what it is with 95 % confidence (bootstrap). `told`: how often the median time of n misinformed
answers to one row is above that of n honest ones; 0.5 is chance. No network lies between, so that it is the most that a client can see.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from benchmarks.ledger_cost import interval
from benchmarks.serving.models import MODELS, Graph, Model, draft_of

from garrison.bundle.reader import verify
from garrison.bundle.secret import read_secret, secret_path
from garrison.crypto.owner import OwnerKey
from garrison.enclave.service import Service
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.sealing.seal import seal
from garrison.types import DefenseSpec, FloatArray

SHAPE = (3, 224, 224)
ABOVE_ALL, BELOW_ALL = 0.0, 0.999999
"""Thresholds of confidence."""
ANSWERS = (1, 5, 25)
DRAWS = 4_000


def small() -> onnx.ModelProto:
    """One convolution, averaged."""
    graph = Graph()
    x = graph.node("Relu", graph.convolution("x", SHAPE[0], 16, 7, 8))
    return graph.finish(graph.node("Flatten", graph.node("GlobalAveragePool", x)), 16, SHAPE, 10)


ASKED = {
    "small": (Model("small", "one convolution", small, SHAPE, 10, pool=8), 3_000),
    "resnet18": (MODELS["resnet18"], 120),
}
"""Model and rounds."""
ARMS = {
    "honest": (ABOVE_ALL, False),
    "again": (ABOVE_ALL, False),
    "misinformed": (BELOW_ALL, False),
    "honest, constant_time": (ABOVE_ALL, True),
    "misinformed, constant_time": (BELOW_ALL, True),
}
PAIRS = (
    ("again", "honest"),
    ("misinformed", "honest"),
    ("misinformed, constant_time", "honest, constant_time"),
    ("honest, constant_time", "honest"),
)


def service(model: Model, graph: onnx.ModelProto, arm: str, folder: Path) -> Service:
    """One arm, sealed."""
    tau, constant = ARMS[arm]
    guard = (
        DefenseSpec(name="bounds"),
        DefenseSpec(name="max-probability"),
        DefenseSpec(name="adaptive-misinformation", parameters={"tau": tau, "constant_time": constant}),
        DefenseSpec(name="release"),
    )
    owner, path = OwnerKey.generate(), folder / arm
    seal(draft_of(model, graph, guard), owner, path)
    return Service(verify(path, [owner.public]), key=read_secret(secret_path(path)))


def times(services: dict[str, Service], model: Model, rounds: int) -> dict[str, FloatArray]:
    """Microseconds of each answer, by arm, shape (rounds,)."""
    bodies = [encode_request({"x": x}) for x in model.rows()]
    took: dict[str, FloatArray] = {arm: np.zeros(rounds) for arm in services}
    order = random.Random(0)
    gc.disable()
    for turn in range(-len(bodies), rounds):  # the first ones warm up
        body, json_bytes = bodies[turn % len(bodies)]
        for arm in order.sample(list(services), len(services)):
            ask = Ask("caller", -1, bytes(bytearray(body)), json_bytes, "n")
            started = time.perf_counter_ns()
            (reply,) = services[arm].answer([ask])
            spent = time.perf_counter_ns() - started
            if reply.code or reply.outcome.replaced != arm.startswith("misinformed"):
                raise SystemExit(f"{arm}: {reply.code or 'another row than was meant is misinformed'}")
            if turn >= 0:
                took[arm][turn] = spent / 1e3
    gc.enable()
    return took


def told(longer: FloatArray, shorter: FloatArray, n: int) -> float:
    """How often the median of n draws of the one is above that of the other."""
    rng = np.random.default_rng(0)
    a, b = (np.median(rng.choice(one, (DRAWS, n)), axis=1) for one in (longer, shorter))
    return float((np.searchsorted(np.sort(b), a) / DRAWS).mean())


def compare(name: str, share: float) -> dict[str, Any]:
    model, rounds = ASKED[name]
    graph = model.make()
    with tempfile.TemporaryDirectory() as folder:
        services = {arm: service(model, graph, arm, Path(folder)) for arm in ARMS}
        took = times(services, model, max(1, round(rounds * share)))
    found: dict[str, Any] = {"honest_us": round(float(np.median(took["honest"]))), "rounds": len(took["honest"])}
    for one, other in PAIRS:
        more = took[one] - took[other]
        low, high = interval(more.tolist())
        found[f"{one} against {other}"] = {
            "more_us": round(float(np.median(more))),
            "low": round(low),
            "high": round(high),
            "told": {n: round(told(took[one], took[other], n), 2) for n in ANSWERS},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(ASKED), choices=list(ASKED))
    parser.add_argument("--share", type=float, default=1.0, help="of the rounds")
    given = parser.parse_args()
    print(json.dumps({name: compare(name, given.share) for name in given.models}, indent=2))


if __name__ == "__main__":
    main()
