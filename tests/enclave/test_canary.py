"""The client's input is nowhere but in the client and the enclave, and with a secret heap not readable there.

A canary of 32 random bytes goes in as eight numbers of a sealed request to a real server with a real enclave. Root then looks for it in
the memory of every process but the client's (this one), and in all files of the temporary folder that changed meanwhile, core files
among them. Each arm has its control: what must not be found where it is protected is found where it is not.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.enclave.processes import needs_root, scan
from tests.models import images
from tests.serving import Bundles, command
from tests.stalls import PATIENT_SECONDS, wait_until

from garrison.client import Client
from garrison.enclave import secret_heap
from garrison.protocol.oip_client import encode_request
from garrison.types import Array

pytestmark = [needs_root, pytest.mark.xdist_group("canary")]
ROWS = 37
_PIECE = 1 << 24


def input_with_canary() -> tuple[Array, bytes]:
    """Random rows, and 32 bytes of them that occur nowhere else."""
    x = images(ROWS)
    x[20, 0, 3] = np.random.default_rng().random(8, dtype=np.float32)
    return x, x[20, 0, 3].tobytes()


@dataclass(frozen=True, slots=True)
class Found:
    """Where a canary was found, by what was searched."""

    server: int
    worker: int
    others: int


@dataclass(frozen=True, slots=True)
class Running:
    url: str
    server: int

    @property
    def worker(self) -> int:
        """The child that is confined; a spare that waits is not yet."""
        children = Path(f"/proc/{self.server}/task/{self.server}/children").read_text().split()
        return next(int(child) for child in children if "Seccomp:\t2" in Path(f"/proc/{child}/status").read_text())

    def search(self, canary: bytes) -> Found:
        others = sum(_hits(process, canary) for process in _processes() - {os.getpid(), self.server, self.worker})
        return Found(_hits(self.server, canary), _hits(self.worker, canary), others)


def _processes() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def _hits(process: int, canary: bytes) -> int:
    try:
        return scan(process, canary).hits
    except OSError:  # a kernel thread, or it has ended
        return 0


def _in_files(canary: bytes, since: float, *folders: Path) -> int:
    found = 0
    for folder in folders or {Path(tempfile.gettempdir()), Path("/dev/shm"), Path("/var/tmp")}:  # noqa: S108
        for path in (Path(at) / name for at, _, names in os.walk(folder) for name in names):
            try:
                if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= since:
                    found += _holds(path, canary)
            except OSError:
                continue
    return found


def _holds(file: Path, wanted: bytes) -> bool:
    """Whatever size it has: others write into these folders too."""
    with file.open("rb") as stream:
        tail = b""
        while piece := stream.read(_PIECE):
            if wanted in tail + piece:
                return True
            tail = piece[-len(wanted) :]
    return False


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not secret_heap.secret_memory_offered():
        pytest.skip("this kernel gives no secret memory (memfd_secret)")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GARRISON_CACHE", str(tmp_path_factory.mktemp("cache")))
        secret_heap.build()
        yield


@contextmanager
def running(bundles: Bundles, folder: Path, *more: str) -> Iterator[Running]:
    with command(bundles, "plain", folder, "--isolation", "process", *more) as (server, ready):
        yield Running(ready["url"], server.pid)


@contextmanager
def asked_without_pause(client: Client, x: Array) -> Iterator[None]:
    done, answered = threading.Event(), threading.Event()
    wrong: list[Exception] = []

    def work() -> None:
        try:
            while not done.is_set():
                client.predict(x)
                answered.set()
        except Exception as error:
            wrong.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert answered.wait(PATIENT_SECONDS), wrong
        yield
    finally:
        done.set()
        thread.join()
    assert wrong == []


def search_while_and_after(service: Running, x: Array, canary: bytes) -> tuple[Found, Found]:
    with Client(service.url, sealed=True, allow_simulated=True) as client:
        with asked_without_pause(client, x):
            during = service.search(canary)
        after = service.search(canary)
    return during, after


@pytest.mark.slow
def test_a_sealed_input_is_found_nowhere_with_a_secret_heap(bundles: Bundles, tmp_path: Path, library: None) -> None:
    x, canary = input_with_canary()
    since = time.time() - 1
    with running(bundles, tmp_path, "--secret-heap", "--require-isolation", "process-secret-heap") as service:
        during, after = search_while_and_after(service, x, canary)
        assert during == after == Found(0, 0, 0)
        worker = service.worker
        os.kill(worker, signal.SIGABRT)  # no core file either
        wait_until(lambda: not Path(f"/proc/{worker}").exists())
        assert _in_files(canary, since) == 0
        cores = [core for core in Path("/").glob("core*") if core.stat().st_mtime >= since]  # where it works
        assert not any(_holds(core, b"garrison.enclave.worker") for core in cores)


@pytest.mark.slow
def test_control_an_ordinary_heap_shows_it_to_root_and_to_nobody_else(bundles: Bundles, tmp_path: Path) -> None:
    x, canary = input_with_canary()
    with running(bundles, tmp_path) as service:
        during, after = search_while_and_after(service, x, canary)
        assert during.worker + after.worker > 0
        assert (during.server, during.others) == (after.server, after.others) == (0, 0)


@pytest.mark.slow
def test_control_a_plain_input_is_found_in_the_server(bundles: Bundles, tmp_path: Path) -> None:
    x, canary = input_with_canary()
    body, json_bytes = encode_request({"image": x})
    with running(bundles, tmp_path) as service:
        url, headers = f"{service.url}/v2/models/plain/infer", {"inference-header-content-length": str(json_bytes)}
        with httpx.Client() as client:
            found = 0
            for _ in range(20):
                assert client.post(url, content=body, headers=headers).status_code == 200
                found += _hits(service.server, canary)
        assert found > 0


CRASH = """
import os, resource, sys
from garrison.enclave.confine.readers import no_core, not_dumpable
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
if sys.argv[2] == "confined":
    no_core(), not_dumpable()
held = bytes(byte ^ 1 for byte in bytes.fromhex(sys.argv[1]))  # so that the words of the command are not it
os.abort()
"""


def test_a_process_that_crashes_leaves_a_core_file_unless_it_is_confined(tmp_path: Path) -> None:
    if Path("/proc/sys/kernel/core_pattern").read_text()[:1] in "|/":
        pytest.skip("this machine keeps core files elsewhere")
    canary, since = os.urandom(32), time.time() - 1
    for how, files in (("confined", 0), ("open", 1)):
        words = [sys.executable, "-c", CRASH, bytes(byte ^ 1 for byte in canary).hex(), how]
        assert subprocess.run(words, cwd=tmp_path, check=False).returncode == -signal.SIGABRT
        assert _in_files(canary, since, tmp_path) == files, how


def test_control_a_file_with_it_is_found(tmp_path: Path) -> None:
    _, canary = input_with_canary()
    since = time.time() - 1
    assert _in_files(canary, since, tmp_path) == 0
    (tmp_path / "leak").write_bytes(b"x" * 100 + canary)
    assert _in_files(canary, since, tmp_path) == 1
