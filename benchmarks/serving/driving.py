"""One server under load: wrk where it is installed, else the generator of our own; and what the server's processes spent meanwhile."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serve_lenet import LOAD_CORE, pinned, processor_seconds
from benchmarks.serving.pools import Pool

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 30
SETTLE_SECONDS, IDLE_SHARE = 20.0, 0.2
ATTEMPTS = 5
SCRIPT = """
local file = io.open("%(folder)s/requests", "rb")
local sizes, all, k = {}, {}, 0
for line in io.lines("%(folder)s/sizes") do sizes[#sizes + 1] = tonumber(line) end
if %(once)s then
    request = function()
        k = k + 1
        if k > #sizes then return all[1] end
        local one = file:read(sizes[k]); all[1] = one
        return one
    end
else
    for i, size in ipairs(sizes) do all[i] = file:read(size) end
    request = function() k = k %% #all + 1; return all[k] end
end
done = function(summary, latency)
    io.write(string.format("RESULT %%d %%d %%d %%d %%d\\n", summary.requests, summary.errors.status + summary.errors.connect
        + summary.errors.read + summary.errors.write + summary.errors.timeout, summary.duration, latency:percentile(50), latency:percentile(99)))
end
"""


class LoadError(Exception):
    """The load could not be applied, or not all was answered: figures would mean nothing."""


class PoolUsedUpError(LoadError):
    """A pool of requests that may be sent once was too small."""


@dataclass(frozen=True, slots=True)
class Driven:
    """What a generator saw. Latencies in ms."""

    requests: int
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm in one round: requests a second, latency in ms, the server's processor time a request in us."""

    rate: float
    p50_ms: float
    p99_ms: float
    processor_us: float
    requests: int


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def measure(pid: int, url: str, pool: Pool, seconds: float, connections: int, rate: float = 0.0) -> Measured:
    """Load one server, and read what it took.

    Raises:
        LoadError: a request failed.
    """
    before = spent_seconds(pid)
    driven = drive(url, pool, seconds, connections, rate)
    spent = spent_seconds(pid) - before
    if pool.once and driven.requests >= pool.count:
        raise PoolUsedUpError(f"{pool.count} requests were too few")
    if driven.errors:
        raise LoadError(f"{driven.errors} of {driven.requests} requests failed")
    if not driven.requests or math.isnan(driven.p99_ms):
        raise LoadError(f"no answer within {seconds:g} s")
    good = driven.requests
    return Measured(good / driven.seconds, driven.p50_ms, driven.p99_ms, spent / good * 1e6, good)


def drive(url: str, pool: Pool, seconds: float, connections: int, rate: float = 0.0) -> Driven:
    """Send for about so many seconds (wrk: whole ones); with 0, one request a connection."""
    if rate or not seconds or not has_wrk():
        words = [str(pool.folder), str(seconds), str(connections), str(rate)]
        command = [sys.executable, "-m", "benchmarks.serving.generator", url, *words]
        said = _run(command, seconds)
        found: Driven = Driven(**json.loads(said))
        return found
    script = pool.folder / "load.lua"
    script.write_text(SCRIPT % {"folder": pool.folder.absolute(), "once": "true" if pool.once else "false"})
    words = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", f"{TIMEOUT_SECONDS}s"]
    return parse(_run(["wrk", *words, "-s", str(script), url], seconds))


def parse(said: str) -> Driven:
    """What our script lets wrk say."""
    found = re.search(r"^RESULT (\d+) (\d+) (\d+) (\d+) (\d+)$", said, re.MULTILINE)
    if found is None:
        raise LoadError(f"the load generator said nothing that can be read: {said[-200:]}")
    requests, errors, microseconds, p50, p99 = map(int, found.groups())
    return Driven(requests, errors, microseconds / 1e6, p50 / 1e3, p99 / 1e3)


def _run(command: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(
            pinned(LOAD_CORE, command),
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds + 2 * TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError("the load generator did not end") from error
    if done.returncode:
        raise LoadError(f"the load generator failed: {(done.stderr or done.stdout).strip()[-200:]}")
    return done.stdout


def tree(pid: int) -> Iterator[int]:
    """A process and all that it started, parents first."""
    yield pid
    try:
        tasks = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return
    for children in tasks:
        for child in children.split():
            yield from tree(int(child))


def spent_seconds(pid: int) -> float:
    """Processor time of a process and all that it started, of those that live.

    Raises:
        LoadError: it has ended.
    """
    for _ in range(ATTEMPTS):
        try:
            return processor_seconds(pid)
        except (FileNotFoundError, ProcessLookupError):  # one of them ended while we looked
            continue
    raise LoadError("the server has ended")


def settle(pid: int, most: float = SETTLE_SECONDS) -> None:
    """Wait until a server has done what it was still doing."""
    end = time.monotonic() + most
    spent = spent_seconds(pid)
    while time.monotonic() < end:
        time.sleep(0.1)
        now = spent_seconds(pid)
        if now - spent <= 0.1 * IDLE_SHARE:
            return
        spent = now


def pool_size(rate: float, seconds: float) -> int:
    """How many requests to seal for a load of so many a second: what may come, and some more."""
    return math.ceil(rate * max(1.0, seconds) * 1.35) + 200


def signal_all(pid: int, number: int) -> None:
    """Send a signal to a server and all that it started."""
    for one in list(tree(pid)):
        try:
            os.kill(one, number)
        except ProcessLookupError:
            continue
