"""What parameters on demand cost: paired ratios to one whole ONNX Runtime session, batch 1, one thread.

    OMP_NUM_THREADS=1 python benchmarks/parameters_on_demand.py [--rounds 40] [--json]

Two models with random weights: the shape of ResNet-18 (47 MB, bound by arithmetic), and an MLP of 46 MB (bound by loading: the bad case).
All arms take turns within each round, in an order that changes; a ratio is taken within its round and the median over rounds is given, with
an interval of 95 % by bootstrap. "Reloaded" arms have a buffer as large as the largest layer and keep nothing; parameters come in on a second
thread, which the arms "on one core" do without. Processor time is that of both threads. The floor is the plain session and after it nothing but the
bare copy and the bare GMAC of as many bytes. The speed of GMAC, SHA-256 and a copy says what machine this was, `others` how much of its
two cores other programs took meanwhile: with a busy second core the figures are those of one core.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from garrison.bundle.manifest import InputSpec, Provenance
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.crypto.gmac import Gmac
from garrison.crypto.owner import OwnerKey
from garrison.runtime.loading import cores
from garrison.runtime.on_demand import Memory
from garrison.runtime.parting import NOT_PARTED, PART_BYTES
from garrison.runtime.runner import Runner, pieces_of
from garrison.runtime.store import CHUNK_BYTES, Budget, OutsideMemory, Tagger, VerifiedStore
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.types import Array, DefenseSpec, Task

EXPECTED_GB_S = {"GMAC": 20.0, "SHA-256": 1.74, "copy of 47 MB": 12.4}
"""Of the machine that the goals were set on."""
MUST = {"resident": 1.08, "all reloaded, GMAC": 1.30, "a quarter resident, GMAC": 1.25}
CLASSES = 1000


class Sha256:
    """The baseline: the hash at every request."""

    def tag(self, number: int, data: memoryview) -> bytes:  # noqa: ARG002  the same form as GMAC
        return hashlib.sha256(data).digest()

    def holds(self, number: int, data: memoryview, tag: bytes) -> bool:
        return self.tag(number, data) == tag


class Unchecked:
    """Loading alone."""

    def tag(self, number: int, data: memoryview) -> bytes:  # noqa: ARG002
        return b""

    def holds(self, number: int, data: memoryview, tag: bytes) -> bool:  # noqa: ARG002
        return True


class Block(nn.Module):
    def __init__(self, m: int, n: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(m, n, 3, stride, 1, bias=False), nn.BatchNorm2d(n), nn.ReLU(),
            nn.Conv2d(n, n, 3, 1, 1, bias=False), nn.BatchNorm2d(n),
        )  # fmt: skip
        same = m == n and stride == 1
        self.skip = nn.Identity() if same else nn.Sequential(nn.Conv2d(m, n, 1, stride, bias=False), nn.BatchNorm2d(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet18() -> nn.Module:
    shapes = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES), nn.Softmax(1)]
    return nn.Sequential(*stem, *(Block(*shape) for shape in shapes), *head)


def mlp() -> nn.Module:
    sizes = (1024, 2048, 2048, 2048, CLASSES)
    layers: list[nn.Module] = []
    for m, n in itertools.pairwise(sizes):
        layers += [nn.Linear(m, n), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Softmax(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18 shape": (resnet18, (3, 224, 224)),
    "MLP": (mlp, (1024,)),
}


def sealed(make: Callable[[], nn.Module], shape: tuple[int, ...], folder: Path) -> tuple[VerifiedBundle, bytes]:
    torch.manual_seed(0)
    file = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            make().eval(), (torch.zeros(2, *shape),), file, dynamo=False, input_names=["x"], output_names=["probabilities"],
            dynamic_axes={"x": {0: "rows"}, "probabilities": {0: "rows"}}, opset_version=17,
        )  # fmt: skip
    draft = Draft(
        name="bench",
        version=1,
        model=onnx.load(file),
        task=Task.CLASSIFICATION,
        labels=(),
        inputs=(InputSpec(name="x", datatype="FP32", shape=shape, minimum=-9.0, maximum=9.0),),
        guard=(DefenseSpec(name="bounds"), DefenseSpec(name="release")),
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="torch", source_sha256="0" * 64),
        rows={"x": np.zeros((2, *shape), np.float32)},
    )
    owner = OwnerKey.generate()
    seal(draft, owner, folder / "bundle")
    return verify(folder / "bundle", [owner.public]), file.read_bytes()


def on_demand(
    bundle: VerifiedBundle, most: int | None, tagger: Tagger | None = None, *, pin: bool = True, ahead: bool = True
) -> Callable[[dict[str, Array]], Any]:
    """In segments, whatever fits."""
    pieces = pieces_of(
        bundle, bundle.manifest.graph, ["probabilities"], PART_BYTES if ahead and cores() > 1 else NOT_PARTED
    )
    budget = Budget(None if most is None else max(most, max(pieces.sizes) + pieces.kept_bytes))
    store = VerifiedStore(OutsideMemory(), tagger)
    memory = Memory([pieces], budget, store, pin=pin, places=None if ahead else 1)
    (network,) = memory.networks([pieces], [["probabilities"]])
    if ahead:
        network.load_ahead()
    return lambda x: network.run(["probabilities"], x)


def bare_load(size: int) -> Callable[[], None]:
    """Copy and GMAC of so many bytes, and nothing else: into one buffer that stays in the near cache."""
    outside, mac = OutsideMemory(), Gmac()
    outside.reserve(size)
    outside.write(0, memoryview(bytes(size)))
    target = memoryview(bytearray(CHUNK_BYTES))

    def load() -> None:
        for at in range(0, size - CHUNK_BYTES + 1, CHUNK_BYTES):
            outside.read(at, target)
            mac.tag(0, target)

    return load


def arms_of(bundle: VerifiedBundle, model: bytes) -> dict[str, Callable[[dict[str, Array]], Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    plain = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    size = sum(chunk.size for chunk in bundle.manifest.graph.chunks)
    layer = max(chunk.size for chunk in bundle.manifest.graph.chunks)
    runner, load = Runner(bundle), bare_load(size)
    return {
        "plain": lambda x: plain.run(None, x),
        "resident": runner.run,
        "resident, in segments": on_demand(bundle, None),
        "a quarter resident, GMAC": on_demand(bundle, size // 4),
        "all reloaded, GMAC": on_demand(bundle, layer, pin=False),
        "all reloaded, not checked": on_demand(bundle, layer, Unchecked(), pin=False),
        "all reloaded, SHA-256": on_demand(bundle, layer, Sha256(), pin=False),
        "a quarter resident, GMAC, on one core": on_demand(bundle, size // 4, ahead=False),
        "all reloaded, GMAC, on one core": on_demand(bundle, layer, pin=False, ahead=False),
        "floor on one core": lambda x: (plain.run(None, x), load()),
    }


def measure(
    arms: Mapping[str, Callable[[dict[str, Array]], Any]], x: Array, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of the clock and of the processor, by arm."""
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in arms}
    processor: dict[str, list[float]] = {name: [] for name in arms}
    for warm in range(-2, rounds):
        for name in rng.permutation(list(arms)):
            used, started = time.process_time(), time.perf_counter()
            arms[name]({"x": x})
            took = time.perf_counter() - started
            if warm >= 0:
                times[name].append(took)
                processor[name].append(time.process_time() - used)
    return times, processor


def machine_busy() -> float:
    """Seconds of processor time that all programs of this machine have used, over all cores."""
    fields = [int(n) for n in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    idle, waiting = fields[3], fields[4]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def summary(times: Mapping[str, list[float]], processor: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for name, found in times.items():
        ratios = np.array(found) / np.array(times["plain"])
        drawn = np.median(ratios[rng.integers(0, len(ratios), (2000, len(ratios)))], axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        spent = np.median(np.array(processor[name]) / np.array(processor["plain"]))
        row = {"arm": name, "ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}
        row |= {
            "median_ms": statistics.median(found) * 1e3,
            "least_ms": min(found) * 1e3,
            "processor_ratio": float(spent),
        }
        rows.append(row)
    return rows


def tag_speed() -> dict[str, float]:
    """GB/s of a check and of a copy, best of many."""
    data, target = np.ones(CHUNK_BYTES, np.uint8), np.zeros(CHUNK_BYTES, np.uint8)
    mac = Gmac()
    calls: dict[str, Callable[[], Any]] = {
        "GMAC": lambda: mac.tag(0, data.data),
        "SHA-256": lambda: hashlib.sha256(data.data).digest(),
        "copy within the cache": lambda: np.copyto(target, data),
    }
    speed = {name: CHUNK_BYTES / _least(call, 200) / 1e9 for name, call in calls.items()}
    large = np.ones(47_000_000, np.uint8)
    other = np.empty_like(large)
    return speed | {"copy of 47 MB": large.nbytes / _least(lambda: np.copyto(other, large), 10) / 1e9}


def _least(call: Callable[[], Any], times: int) -> float:
    best = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args()
    speeds = tag_speed()
    found: dict[str, Any] = {
        "processor": platform.processor() or platform.machine(),
        "gigabytes_per_second": speeds,
        "of_the_expected_speed": {name: speeds[name] / expected for name, expected in EXPECTED_GB_S.items()},
    }
    for name, (make, shape) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            bundle, model = sealed(make, shape, Path(folder))
        x = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
        arms = arms_of(bundle, model)
        started, busy, own = time.perf_counter(), machine_busy(), time.process_time()
        found[name] = summary(*measure(arms, x, options.rounds))
        others = machine_busy() - busy - (time.process_time() - own)
        found.setdefault("others", {})[name] = others / (time.perf_counter() - started)
    if options.json:
        print(json.dumps(found))
    else:
        show(found, options.rounds)


def show(found: Mapping[str, Any], rounds: int) -> None:
    speeds = ", ".join(f"{name} {gb:.2f} GB/s" for name, gb in found["gigabytes_per_second"].items())
    print(f"this machine: {speeds}")
    for name in MODELS:
        print(f"\n{name}, batch 1, {rounds} rounds; others used {found['others'][name]:.2f} of a core meanwhile")
        for row in found[name]:
            must = f"   must: {MUST[row['arm']]:.2f}" if name.startswith("ResNet") and row["arm"] in MUST else ""
            told = (
                f"{row['ratio']:6.2f}  [{row['low']:.2f}, {row['high']:.2f}]  processor {row['processor_ratio']:5.2f}"
            )
            print(f"  {row['arm']:38} {told}  {row['median_ms']:7.2f} ms  least {row['least_ms']:7.2f} ms{must}")


if __name__ == "__main__":
    main()
