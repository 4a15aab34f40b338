"""Two minutes at twice what a server can do: `garrison serve`, guarded and isolated, ResNet-18 size, binary tensors.

    python -m benchmarks.overload                  # make bench ONLY=overload
    python -m benchmarks.overload --seconds 20     # shorter

What the server can do is measured first, with a few connections that ask again at once. Then requests fall due at random times at twice
that rate, whether or not those before them were answered. Must hold: each answer is the one that its input got while the server was idle,
what is not answered gets 503 with Retry-After, no answer is older than the queue's time and one batch, and memory does not grow. Ends with
exit code 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from benchmarks.serve_lenet import server
from benchmarks.serving.driving import tree
from benchmarks.serving.models import MODELS, prepare
from benchmarks.serving.peers.common import Array

from benchmarks.serving import pools
from garrison.limits import DEFAULT_LIMITS

WARM_SECONDS, CAPACITY_SECONDS, CONNECTIONS = 2.0, 8.0, 16
OVER, TOLERANCE = 2.0, 1e-4
GROWTH_MIB, SLACK_SECONDS = 64.0, 3.0
"""What may come on top: memory from the first quarter to the last, time on the queue's."""


@dataclass
class Seen:
    """What came back. `latencies` in seconds, of answers alone."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    wrong: int = 0
    other: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """Whole requests, and what each was answered before."""

    url: str
    requests: list[bytes]
    expected: list[Array]

    async def ask(self, number: int, seen: Seen) -> None:
        """One request over a connection of its own."""
        k, began = number % len(self.requests), time.monotonic()
        parts = urlsplit(self.url)
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError:
            seen.other += 1
            return
        try:
            writer.write(self.requests[k])
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(headers["content-length"]))
        except (OSError, EOFError, KeyError):
            seen.other += 1
            return
        finally:
            writer.close()
        if " 503 " in head.split("\r\n", 1)[0] and "retry-after" in headers:
            seen.refused += 1
        elif " 200 " not in head.split("\r\n", 1)[0]:
            seen.other += 1
        else:
            seen.latencies.append(time.monotonic() - began)
            found = pools.decode(body, int(headers["inference-header-content-length"]))
            seen.wrong += not np.allclose(found, self.expected[k], atol=TOLERANCE)


async def capacity(load: Load, seconds: float) -> float:
    """Answers a second, with connections that ask again as soon as they are answered."""
    seen, end = Seen(), time.monotonic() + seconds

    async def one(number: int) -> None:
        while time.monotonic() < end:
            await load.ask(number, seen)

    await asyncio.gather(*map(one, range(CONNECTIONS)))
    return len(seen.latencies) / seconds


async def flood(load: Load, rate: float, seconds: float, pid: int) -> tuple[Seen, list[float]]:
    """Requests at random times; and the server's memory in MiB, once a second."""
    seen, memory, tasks = Seen(), [resident(pid)], set[asyncio.Task[None]]()
    start = due = time.monotonic()
    number = 0
    while due < start + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.ensure_future(load.ask(number, seen))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
        due += random.expovariate(rate)
        if time.monotonic() - start > len(memory):
            memory.append(resident(pid))
    await asyncio.gather(*tasks)
    return seen, memory


def resident(pid: int) -> float:
    """MiB of a server's processes."""
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in tree(pid))
    return pages * 4096 / 2**20


def report(able: float, rate: float, seen: Seen, memory: list[float]) -> dict[str, Any]:
    quarter = max(1, len(memory) // 4)
    growth = statistics.median(memory[-quarter:]) - statistics.median(memory[quarter : 2 * quarter] or memory)
    longest = max(seen.latencies, default=0.0)
    bound = DEFAULT_LIMITS.queue_seconds + SLACK_SECONDS
    return {
        "capacity_a_second": round(able, 1),
        "asked_a_second": round(rate, 1),
        "answered": len(seen.latencies),
        "refused_503": seen.refused,
        "wrong": seen.wrong,
        "other": seen.other,
        "p50_s": round(float(np.percentile(seen.latencies or [0.0], 50)), 2),
        "p99_s": round(float(np.percentile(seen.latencies or [0.0], 99)), 2),
        "longest_s": round(longest, 2),
        "longest_must_s": bound,
        "memory_mib": round(memory[-1], 1),
        "memory_growth_mib": round(growth, 1),
        "met": not seen.wrong and not seen.other and bool(seen.latencies) and longest <= bound and growth <= GROWTH_MIB,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--isolation", choices=("none", "process"), default="process")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = MODELS["resnet18"]
        prepared = prepare(model, folder / "model")
        words = ["--trust", str(prepared.trust), "--port", "0", "--state", str(folder / "state")]
        command = [sys.executable, "-m", "garrison", "serve", str(prepared.guarded), *words]
        with server([*command, "--isolation", given.isolation]) as (pid, url):
            rows = model.rows()
            bodies = [pools.encode(x, model.name) for x in rows]
            answers = [pools.decode(*pools.ask(url, body)) for body in bodies]
            load = Load(url, [pools.raw(url, body) for body in bodies], answers)
            asyncio.run(capacity(load, WARM_SECONDS))
            able = asyncio.run(capacity(load, CAPACITY_SECONDS))
            seen, memory = asyncio.run(flood(load, OVER * able, given.seconds, pid))
    found = report(able, OVER * able, seen, memory)
    print(json.dumps(found, indent=2))
    if not found["met"]:
        sys.exit("not all that must hold held")


if __name__ == "__main__":
    main()
