"""The servers that are compared: how each is started, asked and checked.

Every server is pinned to one core, and stopped (SIGSTOP) while another is measured: some are busy when nobody asks. None is measured before an answer of
its own was compared with what the runtime says of the same input.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.serve_lenet import SERVER_CORE, free_port, pinned
from benchmarks.serving.driving import ROOT, settle, signal_all, tree
from benchmarks.serving.environments import PEERS, Environment, last_line
from benchmarks.serving.models import Model, Prepared
from benchmarks.serving.peers import common
from benchmarks.serving.peers.common import Array, Body

from benchmarks.serving import pools
from garrison.errors import GarrisonError

START_SECONDS, STOP_SECONDS = 90.0, 15.0
TOLERANCE = 1e-4
WAKE_SECONDS = 4.0
SETTINGS = "[limits]\nsession_seconds = 3600\n"
"""So that what is sealed beforehand for the sealed arm is still taken when it is sent."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One server. For a peer `isolation` is empty."""

    name: str
    title: str
    wire: str
    guarded: bool = False
    isolation: str = ""
    sealed: bool = False

    @property
    def ours(self) -> bool:
        return bool(self.isolation)


BINARY = "Open Inference Protocol over HTTP, binary tensors"
OURS = (
    Arm("unguarded", "Garrison, unguarded", BINARY, isolation="none"),
    Arm("guarded", "Garrison, guarded", BINARY, guarded=True, isolation="none"),
    Arm("isolated", "Garrison, guarded and isolated", BINARY, guarded=True, isolation="process"),
    Arm(
        "sealed",
        "Garrison, guarded, isolated, sealed",
        "sealed Open Inference Protocol",
        guarded=True,
        isolation="process",
        sealed=True,
    ),
)
CONTROL = Arm("control", "Garrison, unguarded, a second one", BINARY, isolation="none")
"""Stands in a guarded server's place: what two equal servers seem to differ by, a measure cannot tell from nothing."""


def module_of(peer: str) -> str:
    return f"benchmarks.serving.peers.{PEERS[peer].module}"


def peer_arm(name: str) -> Arm:
    wire: str = importlib.import_module(module_of(name)).WIRE
    return Arm(name, PEERS[name].title, wire)


class ArmError(Exception):
    """An arm cannot be measured; the message says why, fit for a cell of a table."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server of one arm, stopped but for while it is `awake`."""

    arm: Arm
    model: Model
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @contextmanager
    def awake(self) -> Iterator[None]:
        if self.process.poll() is not None:
            raise ArmError(f"it ended by itself: {_said(self.log) or self.process.returncode}")
        signal_all(self.pid, signal.SIGCONT)
        try:
            settle(self.pid, WAKE_SECONDS)  # what it has missed while it was stopped
            yield
            settle(self.pid)
        finally:
            signal_all(self.pid, signal.SIGSTOP)

    def pool(self, folder: Path, count: int = 0) -> pools.Pool:
        """What to send; `count` only for sealed requests."""
        rows, name = self.model.rows(), self.model.name
        if self.arm.sealed:
            return pools.write(folder, self.url, pools.sealed(self.url, name, rows, count), once=True)
        encode = pools.encode if self.arm.ours else importlib.import_module(module_of(self.arm.name)).encode
        return pools.write(folder, self.url, [encode(x, name) for x in rows])

    def check(self, plain: Path) -> None:
        """Ask once, and compare.

        Raises:
            ArmError: another answer than the runtime's.
            OSError, GarrisonError: none.
        """
        x = self.model.rows()[0]
        found = pools.ask_sealed(self.url, self.model.name, x) if self.arm.sealed else self._ask(x)
        expected = common.Model(str(plain)).run(x).ravel()
        if self.arm.guarded:  # misinformed rows are told something else, on purpose
            if found.shape != expected.shape or not np.isclose(found.sum(), 1, atol=1e-3):
                raise ArmError("its answer is no distribution over the classes")
        elif found.shape != expected.shape or not np.allclose(found, expected, atol=TOLERANCE):
            raise ArmError("its answer differs from what the runtime says")

    def _ask(self, x: Array) -> Array:
        if self.arm.ours:
            return pools.decode(*pools.ask(self.url, pools.encode(x, self.model.name)))
        module = importlib.import_module(module_of(self.arm.name))
        encode: Callable[[Array, str], Body] = module.encode
        decode: Callable[[bytes, int], Array] = module.decode
        return decode(*pools.ask(self.url, encode(x, self.model.name)))


def garrison_command(arm: Arm, prepared: Prepared, port: int, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "garrison.toml"
    settings.write_text(SETTINGS)
    bundle = prepared.guarded if arm.guarded else prepared.unguarded
    words = [
        sys.executable,
        "-m",
        "garrison",
        "serve",
        str(bundle),
        "--trust",
        str(prepared.trust),
        "--port",
        str(port),
    ]
    return [*words, "--isolation", arm.isolation, "--state", str(folder / "state"), "--config", str(settings)]


def peer_command(arm: Arm, environment: Environment, prepared: Prepared, port: int) -> list[str]:
    return [str(environment.python), "-m", module_of(arm.name), str(prepared.plain), str(port)]


@contextmanager
def serving(arm: Arm, prepared: Prepared, environment: Environment | None, folder: Path) -> Iterator[Server]:
    """Start a server, wait for its first good answer, and put it to sleep.

    Raises:
        ArmError: it cannot be measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "log"
    if arm.ours:
        command = garrison_command(arm, prepared, port, folder)
    elif environment is None or environment.failure:
        raise ArmError(environment.failure if environment else "it has no environment")
    else:
        command = peer_command(arm, environment, prepared, port)
    settings = {"OMP_NUM_THREADS": "1", "BENCH_MODEL": prepared.model.name, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            pinned(SERVER_CORE, command),
            cwd=ROOT,
            env=os.environ | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        server = Server(arm, prepared.model, process, f"http://127.0.0.1:{port}", log)
        _wait(server, prepared)
        signal_all(process.pid, signal.SIGSTOP)
        yield server
    finally:
        stop(process)


def _wait(server: Server, prepared: Prepared) -> None:
    end, reason = time.monotonic() + START_SECONDS, "no answer"
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise ArmError(f"it did not start: {_said(server.log) or server.process.returncode}")
        try:
            server.check(prepared.plain)
            return
        except (OSError, GarrisonError) as error:
            reason = str(error)
            time.sleep(0.2)
    raise ArmError(f"no good answer after {START_SECONDS:.0f} s: {last_line(reason)}")


def _said(log: Path) -> str:
    return last_line(log.read_text(errors="replace"))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and all that it started, gently at first."""
    family = list(tree(process.pid))
    signal_all(process.pid, signal.SIGCONT)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for one in family:
        try:
            if Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                os.kill(one, signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
    process.wait()
