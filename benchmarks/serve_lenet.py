"""Processor time of the server per guarded request: LeNet-size model, binary tensors, keep-alive connections.

    python -m benchmarks.serve_lenet                                                          # make bench ONLY=request
    python -m benchmarks.serve_lenet --bundle out/demo/bundle --trust out/demo/keys/owner.pub

Without --bundle a bundle of the same shape with random weights is made, whose threshold lets one in 64 rows be misinformed (`benchmarks.serving.models`). The arms take turns, each round one after the other: `raw`, the
bare web server with the bare runtime behind it and nothing else; `guarded`, `garrison serve` without an enclave (guard, budget, signature); and
`isolated`, the same as it is installed, where the processor time of the enclave's process counts too. The server is pinned to one core, the load (wrk where it is installed, else a generator of our own) to another. Processor time is
read from each process's clock; it is steadier than requests per second, and on a busy machine the ratio of the arms is steadier still.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from garrison import datasets
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerKey, OwnerPublicKey
from garrison.errors import DatasetError
from garrison.protocol.oip_client import encode_request
from garrison.runtime.runner import Runner

CONNECTIONS, BODIES, MUST_MICROSECONDS = 32, 64, 200.0
ARMS = ("raw", "guarded", "isolated")
SERVER_CORE, LOAD_CORE = 0, 1
_LIBC = ctypes.CDLL(None)
CLASSES = 10
WEIGHTS = {
    "c1": (6, 1, 5, 5),
    "c2": (16, 6, 5, 5),
    "f1": (400, 120),
    "f2": (120, 84),
    "f3": (84, CLASSES),
    "wrong": (84, CLASSES),
}


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: one row a request, over and over from a pool of honest inputs."""

    folder: Path
    path: str
    json_bytes: int

    @classmethod
    def write(cls, folder: Path, bundle: Path, trust: Path) -> Load:
        spec = verify(bundle, [OwnerPublicKey.from_pem(trust.read_bytes())]).manifest
        (tensor,) = spec.inputs
        try:
            pool = datasets.load("fashion-mnist", "test").x[:BODIES]
        except DatasetError:
            pool = np.random.default_rng(0).random((BODIES, 1, 28, 28), dtype=np.float32)
        for k, image in enumerate(pool):
            body, json_bytes = encode_request({tensor.name: np.ascontiguousarray(image).reshape(1, *tensor.shape)})
            (folder / f"body{k}").write_bytes(body)
        load = cls(folder, f"/v2/models/{spec.name}/infer", json_bytes)
        (folder / "load.lua").write_text(load.lua())
        return load

    def lua(self) -> str:
        return f"""
            local bodies, k = {{}}, 0
            for i = 0, {BODIES - 1} do
                local file = io.open("{self.folder}/body" .. i, "rb"); bodies[i] = file:read("*all"); file:close()
            end
            wrk.method = "POST"
            wrk.headers["Content-Type"] = "application/octet-stream"
            wrk.headers["Inference-Header-Content-Length"] = "{self.json_bytes}"
            request = function() k = (k + 1) % {BODIES}; return wrk.format(nil, nil, nil, bodies[k]) end
            done = function(summary, latency)
                io.write(string.format("RESULT %d %d %d\\n", summary.requests,
                    summary.errors.status + summary.errors.read + summary.errors.timeout, latency:percentile(50)))
            end
        """

    def requests(self) -> list[bytes]:
        head = f"POST {self.path} HTTP/1.1\r\nHost: bench\r\nInference-Header-Content-Length: {self.json_bytes}\r\n"
        bodies = [(self.folder / f"body{k}").read_bytes() for k in range(BODIES)]
        return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


@dataclass(frozen=True, slots=True)
class Round:
    """One arm in one round: requests a second, median latency in ms, processor time a request in us."""

    rate: float
    p50_ms: float
    microseconds: float


def measure(pid: int, url: str, load: Load, seconds: float, connections: int) -> Round:
    drive(url, load, 1.0, connections)  # warm up
    before, started = processor_seconds(pid), time.monotonic()
    requests, errors, p50 = drive(url, load, seconds, connections)
    spent, took = processor_seconds(pid) - before, time.monotonic() - started
    if errors:
        sys.exit(f"{errors} of {requests} requests failed; the figures would mean nothing")
    return Round(requests / took, p50, spent / requests * 1e6)


def processor_seconds(pid: int) -> float:
    """Of a process and all that it started, to the nanosecond.

    By the process's own clock, clock_getcpuclockid(3), which counts threads that have ended too: /proc/PID/stat tells whole hundredths of a
    second, a tenth of what a short round takes.

    Raises:
        FileNotFoundError, ProcessLookupError: one of them has ended.
    """
    tasks = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    clock = ctypes.c_int()
    if _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise ProcessLookupError(f"process {pid} has ended")
    try:
        own = time.clock_gettime(clock.value)
    except OSError as error:
        raise ProcessLookupError(f"process {pid} has ended") from error
    return own + sum(processor_seconds(int(child)) for children in tasks for child in children.split())


def drive(url: str, load: Load, seconds: float, connections: int) -> tuple[int, int, float]:
    """Requests answered, errors, and the median latency in ms."""
    if shutil.which("wrk"):
        words = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "-s", str(load.folder / "load.lua")]
        command = [*words, url + load.path]
    else:
        command = [sys.executable, __file__, "--generate", url, str(load.folder), load.path, str(load.json_bytes)]
        command += [str(seconds), str(connections)]
    said = subprocess.run(pinned(LOAD_CORE, command), capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+)", said)
    if found is None:
        sys.exit(f"the load generator said nothing that can be read: {said}")
    return int(found[1]), int(found[2]), int(found[3]) / 1000


def pinned(core: int, command: list[str]) -> list[str]:
    enough = core < (os.cpu_count() or 1) and shutil.which("taskset")
    return ["taskset", "-c", str(core), *command] if enough else command


async def generate(
    url: str, requests: list[bytes], seconds: float, connections: int, context: ssl.SSLContext | None = None
) -> None:
    """The load generator for machines without wrk: asks over and over, and prints answers, errors and the median latency in us."""
    parts, end = urlsplit(url), time.monotonic() + seconds
    latencies: list[float] = []
    errors = 0

    async def connection(number: int) -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
        k = number
        while time.monotonic() < end:
            started = time.monotonic()
            writer.write(requests[k % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            errors += not head.startswith(b"HTTP/1.1 200")
            latencies.append(time.monotonic() - started)
            k += connections
        writer.close()

    await asyncio.gather(*map(connection, range(connections)))
    print(f"RESULT {len(latencies)} {errors} {round(statistics.median(latencies) * 1e6)}")


def serve_raw(bundle: Path, trust: Path) -> None:
    """The raw arm: granian and the runtime, one run a request, nothing else."""
    import uvloop
    from granian.server.embed import Server

    verified = verify(bundle, [OwnerPublicKey.from_pem(trust.read_bytes())])
    runner = Runner(verified)
    (tensor,) = verified.manifest.inputs
    shape = (1, *tensor.shape)
    length = int(np.prod(shape)) * 4

    async def application(scope: Any, protocol: Any) -> None:
        body = await protocol()
        if scope.method == "GET":
            protocol.response_empty(200, [])
            return
        x = np.frombuffer(body[-length:], np.float32).reshape(shape)
        answer = runner.run({tensor.name: x}).values
        protocol.response_bytes(200, [("content-type", "application/octet-stream")], answer.tobytes())

    async def main() -> None:
        port = free_port()
        print(f"http://127.0.0.1:{port}", flush=True)
        await Server(application, port=port, log_enabled=False).serve()

    uvloop.run(main())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(command: list[str]) -> Iterator[tuple[int, str]]:
    """A server that prints its URL: its process id, and that URL. It may not be ready yet."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        pinned(SERVER_CORE, command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        url = (process.stdout.readline() if process.stdout else "").strip()
        if not url.startswith("http"):
            sys.exit(f"the server did not start: {' '.join(command)}")
        yield process.pid, url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def server(command: list[str]) -> Iterator[tuple[int, str]]:
    """The same, once it is ready."""
    with started(command) as (pid, url):
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{url}/v2/health/ready", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield pid, url


def compare(bundle: Path, trust: Path, options: argparse.Namespace) -> dict[str, list[Round]]:
    found: dict[str, list[Round]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        load = Load.write(folder, bundle, trust)
        garrison = [sys.executable, "-m", "garrison", "serve", str(bundle), "--trust", str(trust), "--port", "0"]
        commands = {
            "raw": [sys.executable, __file__, "--raw", str(bundle), str(trust)],
            "guarded": [*garrison, "--state", str(folder / "guarded"), "--isolation", "none"],
            "isolated": [*garrison, "--state", str(folder / "isolated"), "--workers", str(options.workers)],
        }
        with ExitStack() as stack:
            running = {arm: stack.enter_context(server(commands[arm])) for arm in ARMS}
            for _ in range(options.rounds):
                for arm, (pid, url) in running.items():
                    found[arm].append(measure(pid, url, load, options.seconds, options.connections))
    return found


def report(found: dict[str, list[Round]], connections: int) -> dict[str, Any]:
    arms = {
        arm: {
            "processor_us": round(statistics.median(r.microseconds for r in rounds), 1),
            "processor_us_low": round(min(r.microseconds for r in rounds), 1),
            "processor_us_high": round(max(r.microseconds for r in rounds), 1),
            "requests_a_second": round(statistics.median(r.rate for r in rounds)),
            "p50_ms": round(statistics.median(r.p50_ms for r in rounds), 2),
        }
        for arm, rounds in found.items()
    }
    ratios = [g.microseconds / r.microseconds for r, g in zip(found["raw"], found["guarded"], strict=True)]
    pairs = [(i.microseconds, g.microseconds) for i, g in zip(found["isolated"], found["guarded"], strict=True)]
    return {
        **arms,
        "ratio": round(statistics.median(ratios), 2),
        "ratio_low": round(min(ratios), 2),
        "ratio_high": round(max(ratios), 2),
        "isolated_to_guarded": round(statistics.median(i / g for i, g in pairs), 2),
        "rounds": len(ratios),
        "connections": connections,
        "generator": "wrk" if shutil.which("wrk") else "own",
        "must_us": MUST_MICROSECONDS,
        "met": arms["guarded"]["processor_us"] <= MUST_MICROSECONDS,
    }


def lenet(seed: int = 0) -> Any:
    """x (n, 1, 28, 28) -> probabilities, logits, misinformation (log f'): LeNet with random weights, for timing alone."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    initializers = []
    for name, shape in WEIGHTS.items():
        convolution = len(shape) == 4
        fan = int(np.prod(shape[1:])) if convolution else shape[0]
        weight = rng.normal(size=shape) * np.sqrt(2 / fan)
        bias = np.zeros(shape[0] if convolution else shape[1])
        initializers += [
            numpy_helper.from_array(weight.astype(np.float32), name),
            numpy_helper.from_array(bias.astype(np.float32), f"{name}_bias"),
        ]
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["x", "c1", "c1_bias"], ["a1"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["a1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], **pool),
        helper.make_node("Conv", ["p1", "c2", "c2_bias"], ["a2"]),
        helper.make_node("Relu", ["a2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], **pool),
        helper.make_node("Flatten", ["p2"], ["flat"]),
        helper.make_node("Gemm", ["flat", "f1", "f1_bias"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["g1"]),
        helper.make_node("Gemm", ["g1", "f2", "f2_bias"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["g2"]),
        helper.make_node("Gemm", ["g2", "f3", "f3_bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("Gemm", ["g2", "wrong", "wrong_bias"], ["z"]),
        helper.make_node("LogSoftmax", ["z"], ["misinformation"], axis=1),
    ]
    outputs = ("probabilities", "logits", "misinformation")
    graph = helper.make_graph(
        nodes,
        "lenet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", CLASSES]) for name in outputs],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def seal_lenet(folder: Path, tau: float | None = None) -> tuple[Path, Path]:
    """The bundle and its owner's public key, as `benchmarks.serving` seals it.

    Args:
        tau: the threshold of misinformation; None for one that as few of the load's rows lie below as there.
    """
    from benchmarks.serving.models import MODELS, draft_of, guard, threshold  # it takes the network from here

    from garrison.sealing.seal import seal

    owner, model, kind = OwnerKey.generate(), lenet(), MODELS["lenet"]
    chain = guard(threshold(model, kind.rows()) if tau is None else tau)
    bundle, trust = folder / "bundle", folder / "owner.pub"
    seal(draft_of(kind, model, chain), owner, bundle)
    trust.write_bytes(owner.public.pem)
    return bundle, trust


def main() -> None:
    if sys.argv[1:2] == ["--raw"]:
        serve_raw(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--generate"]:
        url, folder, path, json_bytes, seconds, connections = sys.argv[2:]
        load = Load(Path(folder), path, int(json_bytes))
        asyncio.run(generate(url, load.requests(), float(seconds), int(connections)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--trust", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--workers", type=int, default=1, help="front processes of the isolated arm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bundle, trust = options.bundle, options.trust
        if bundle is None:
            bundle, trust = seal_lenet(Path(name))
        print(json.dumps(report(compare(bundle, trust, options), options.connections), indent=2))


if __name__ == "__main__":
    main()
