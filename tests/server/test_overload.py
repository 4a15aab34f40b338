"""Twice what it can do: what is answered is right and in time, the rest is told to come again, and memory stays as it is.

Open loop: requests are sent at their times, whether or not those before them were answered. The model takes some milliseconds a row
and gains next to nothing by batches. A second caller, who asks now and then, must not notice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.models import BOUNDS, CLASSES, LABELS, PIXELS, RELEASE, Sealed, images
from tests.serving import Bundles, command

from garrison.bundle.manifest import InputSpec, Provenance
from garrison.crypto.owner import OwnerKey
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.types import Array, Task

logger = logging.getLogger(__name__)

QUEUE_SECONDS = 1.0
GREEDY, POLITE = "127.0.0.1", "127.0.0.2"  # without keys, a caller is an address
POLITE_EVERY = 0.25
INPUTS, ROWS = 16, 8
CONNECTIONS = 32
LAYERS, CHANNELS = 16, 64
MIB = 1 << 20


def deep() -> onnx.ModelProto:
    """images -> probabilities and logits, by many convolutions."""
    rng = np.random.default_rng(0)
    sizes = [(CHANNELS, 1, 3, 3)] + [(CHANNELS, CHANNELS, 3, 3)] * (LAYERS - 1)
    weights = [rng.normal(size=s).astype(np.float32) * np.sqrt(2 / np.prod(s[1:])) for s in sizes]
    last = (rng.normal(size=(CHANNELS * 64, CLASSES)) / np.sqrt(CHANNELS * 64)).astype(np.float32)
    initializers = [numpy_helper.from_array(w.astype(np.float32), f"w{k}") for k, w in enumerate(weights)]
    nodes, at = [], "image"
    for k in range(LAYERS):
        nodes.append(helper.make_node("Conv", [at, f"w{k}"], [f"c{k}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"]))
        at = f"r{k}"
    nodes += [
        helper.make_node("Flatten", [at], ["flat"]),
        helper.make_node("MatMul", ["flat", "last"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", CLASSES]) for n in ("probabilities", "logits")]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *PIXELS])]
    initializers.append(numpy_helper.from_array(last, "last"))
    graph = helper.make_graph(nodes, "deep", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def deep_bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder, owner, model = tmp_path_factory.mktemp("deep"), OwnerKey.generate(), deep()
    draft = Draft(
        name="deep",
        version=1,
        model=model,
        misinformation=None,
        task=Task.CLASSIFICATION,
        labels=LABELS,
        inputs=(InputSpec(name="image", datatype="FP32", shape=PIXELS, minimum=0.0, maximum=1.0),),
        guard=(BOUNDS, RELEASE),
        provenance=Provenance(created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64),
        rows={"image": images(4)},
    )
    seal(draft, owner, folder / "deep")
    (folder / "owner.pub").write_bytes(owner.public.pem)
    return Bundles(folder, owner, {"deep": Sealed(folder / "deep", owner, model, b"")})


def memory(process: int) -> int:
    """Resident bytes of a process and all that it started."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    children: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        children += map(int, (task / "children").read_text().split())
    return (int(found[1]) * 1024 if found else 0) + sum(map(memory, children))


@dataclass
class Told:
    """What one caller was told.

    Attributes:
        seconds, refused_seconds: of each answer, of each refusal.
        wrong: answers that are not the right ones, and refusals that say something else.
        broken: connections that ended, by error.
    """

    codes: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    refused_seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)


class Load:
    """Raw HTTP on kept connections: quick enough to ask for more than a server can do."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        x = images(INPUTS * ROWS)
        self._requests = []
        for k in range(INPUTS):
            body, length = encode_request({"image": x[k * ROWS : (k + 1) * ROWS]})
            head = (
                f"POST /v2/models/deep/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                f"Inference-Header-Content-Length: {length}\r\n\r\n"
            )
            self._requests.append(head.encode() + body)
        self._expected: dict[int, Array] = {}
        self._idle: dict[str, list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = {GREEDY: [], POLITE: []}

    async def learn(self) -> None:
        """The right answers, while nothing else is asked."""
        told = Told()
        for k in range(INPUTS):
            await self.ask(k, GREEDY, told)
        assert told.codes == {200: INPUTS}

    async def capacity(self, seconds: float) -> float:
        """Answers a second, when many connections ask as fast as they are answered."""
        told, end = Told(), time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < end:
                await self.ask(0, GREEDY, told)

        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
        return told.codes[200] / seconds

    async def open_loop(self, caller: str, gap: float, seconds: float, told: Told) -> None:
        tasks, start = set(), time.monotonic()
        for k in range(int(seconds / gap)):
            await asyncio.sleep(max(0.0, start + k * gap - time.monotonic()))
            task = asyncio.create_task(self.ask(k % INPUTS, caller, told))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def ask(self, k: int, caller: str, told: Told) -> None:
        start = time.monotonic()
        try:
            reader, writer = await self._connection(caller)
            writer.write(self._requests[k])
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
            body = await reader.readexactly(int(fields["content-length"]))
        except (OSError, asyncio.IncompleteReadError) as error:
            told.broken[type(error).__name__] += 1
            return
        self._idle[caller].append((reader, writer))
        status, took = int(head.split(b" ", 2)[1]), time.monotonic() - start
        told.codes[status] += 1
        if status == 200:
            told.seconds.append(took)
            self._check(k, body, int(fields["inference-header-content-length"]), told)
        else:
            told.refused_seconds.append(took)
            if (json.loads(body)["code"], fields.get("retry-after")) != ("unavailable", "1"):
                told.wrong.append(body.decode())

    async def close(self) -> None:
        for _, writer in (pair for pairs in self._idle.values() for pair in pairs):
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _connection(self, caller: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._idle[caller]:
            return self._idle[caller].pop()
        return await asyncio.open_connection(self._host, self._port, local_addr=(caller, 0))

    def _check(self, k: int, body: bytes, length: int, told: Told) -> None:
        found = decode_response(body, length).outputs["probabilities"]
        if not np.allclose(found, self._expected.setdefault(k, found), atol=1e-5):
            told.wrong.append(f"input {k}: {found}")


@contextmanager
def overloaded(bundles: Bundles, folder: Path) -> Iterator[tuple[str, int]]:
    settings = folder / "settings.toml"
    # Connections that were kept and not used for a while stay open.
    settings.write_text(f"[limits]\nqueue_seconds = {QUEUE_SECONDS}\nheader_read_seconds = 600.0\n")
    with command(bundles, "deep", folder, "--isolation", "process", "--config", str(settings)) as (server, ready):
        yield ready["url"], server.pid


async def overload(url: str, server: int, seconds: float) -> tuple[float, Told, Told, list[int]]:
    load = Load(url)
    await load.learn()
    capacity = await load.capacity(min(2.0, seconds / 3))
    greedy, polite, sizes = Told(), Told(), []

    async def watch() -> None:
        while True:
            sizes.append(memory(server))
            await asyncio.sleep(seconds / 40)

    watching = asyncio.create_task(watch())
    await asyncio.gather(
        load.open_loop(GREEDY, 1 / (2 * capacity), seconds, greedy),
        load.open_loop(POLITE, POLITE_EVERY, seconds, polite),
    )
    watching.cancel()
    await load.close()
    return capacity, greedy, polite, sizes


def check(bundles: Bundles, folder: Path, seconds: float, growth: int) -> None:
    with overloaded(bundles, folder) as (url, server):
        capacity, greedy, polite, sizes = asyncio.run(overload(url, server, seconds))
    said = (
        f"capacity {capacity:.0f} a second; greedy {dict(greedy.codes)}, p50 {np.median(greedy.seconds):.2f} s, "
        f"longest {max(greedy.seconds):.2f} s; polite {dict(polite.codes)}, longest {max(polite.seconds):.2f} s; "
        f"memory {sizes[len(sizes) // 4] / MIB:.0f} to {sizes[-1] / MIB:.0f} MiB"
    )
    logger.info("%s", said)
    assert greedy.wrong == []
    assert polite.wrong == []
    assert (greedy.broken, polite.broken) == (Counter(), Counter()), said
    assert set(greedy.codes) == {200, 503}, said
    assert greedy.codes[200] > 0.25 * capacity * seconds, said
    assert greedy.codes[503] > 0.2 * sum(greedy.codes.values()), said
    assert max(greedy.seconds) < QUEUE_SECONDS + 1.5, said
    assert np.median(greedy.refused_seconds) < QUEUE_SECONDS, said
    assert set(polite.codes) == {200}, said
    assert np.median(polite.seconds) < 0.3, said
    assert sizes[-1] - sizes[len(sizes) // 4] < growth, said


@pytest.mark.slow
def test_five_seconds_at_twice_the_capacity(deep_bundles: Bundles, tmp_path: Path) -> None:
    check(deep_bundles, tmp_path, 5.0, 64 * MIB)


@pytest.mark.slow
def test_two_minutes_at_twice_the_capacity(deep_bundles: Bundles, tmp_path: Path) -> None:
    check(deep_bundles, tmp_path, 120.0, 16 * MIB)
