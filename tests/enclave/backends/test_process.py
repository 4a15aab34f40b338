"""The `process` backend: who can read it and what it says of itself."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.enclave.processes import ENCLAVE_USER, OTHER_USER, PROBES, needs_root, probe, probed, scan, secret_address
from tests.enclave.workers import enclave, question, wait_until
from tests.models import Sealed, images, seal_mlp
from tests.stalls import PATIENT_SECONDS

from garrison.enclave import secret_heap
from garrison.enclave.backends.process import ProcessEnclave
from garrison.enclave.host import Launch, launch
from garrison.enclave.levels import FULL
from garrison.errors import ChangedFileError, GuardError, IsolationError, KeyFileError
from garrison.protocol.messages import Ask
from garrison.protocol.statement import verify_answer

HEAP_BYTES = 1 << 29


def namespace(process: int, kind: str) -> Path:
    return Path(f"/proc/{process}/ns/{kind}").readlink()


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_mlp(tmp_path_factory.mktemp("sealed") / "mlp")


@pytest.fixture(scope="module")
def running(sealed: Sealed) -> Iterator[ProcessEnclave]:
    with enclave(sealed) as started:
        yield started


@pytest.fixture(scope="module")
def heap_library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not secret_heap.secret_memory_offered():
        pytest.skip("this kernel gives no secret memory (memfd_secret)")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GARRISON_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield secret_heap.build()


def test_answers_are_those_of_the_service_itself(running: ProcessEnclave, sealed: Sealed) -> None:
    plain = launch("none", Launch(sealed.path, [sealed.owner.public], sealed.key))
    asks = [question(images(rows, seed=rows)) for rows in (1, 2, 37)]
    for ask, inside, outside in zip(asks, running.call(asks), plain.call(asks), strict=True):
        assert inside.body == outside.body
        assert inside.body
        verify_answer(inside.proof, running.card.public_key, request=ask.body, answer=inside.body, nonce="")
    (refused,) = running.call([Ask("caller", -1, b"{}")])
    assert refused.code == "request.malformed"


@needs_root
def test_as_root_every_step_is_had_and_looked_up(running: ProcessEnclave) -> None:
    card = running.card
    assert card.isolation == "process"
    assert card.technology == "sim"
    assert all(card.capabilities[name] for name in FULL), card.capabilities
    assert not card.capabilities["secret-heap"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{running.process_id}/status").read_text().splitlines())
    assert status["Uid"].split() == [str(ENCLAVE_USER)] * 4
    assert status["Groups"].split() == []
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    for kind in ("net", "ipc"):
        assert namespace(running.process_id, kind) != namespace(os.getpid(), kind)
    interfaces = Path(f"/proc/{running.process_id}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


def test_nothing_of_the_hosts_surroundings_goes_in(sealed: Sealed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASSWORD", "hunter2")
    with enclave(sealed) as started:
        if os.geteuid() == 0:
            names = {
                line.split(b"=")[0] for line in Path(f"/proc/{started.process_id}/environ").read_bytes().split(b"\0")
            }
            assert b"A_PASSWORD" not in names
            assert b"PATH" not in names
            log = Path(f"/proc/{started.process_id}/fd/2").readlink()
            assert str(log).startswith("pipe:"), "its log goes through a pipe of its own"
            links = [link.readlink() for link in Path(f"/proc/{started.process_id}/fd").iterdir()]
            sockets = [link for link in links if str(link).startswith("socket:") and link != log]
            assert len(sockets) == 1
            assert {str(link) for link in links if link not in {*sockets, log}} == {"/dev/null"}
        assert started.call([question(images(1))])[0].code == ""


@needs_root
@pytest.mark.parametrize("user", [ENCLAVE_USER, OTHER_USER], ids=["the same user", "another user"])
def test_other_processes_cannot_read_it(running: ProcessEnclave, user: int) -> None:
    assert probe(running.process_id, user) == {
        "mem": errno.EACCES,
        "process_vm_readv": errno.EPERM,
        "pidfd_getfd": errno.EPERM,
        "ptrace": errno.EPERM,
    }
    assert running.call([question(images(1))])[0].code == ""


@contextmanager
def not_confined() -> Iterator[int]:
    """Another process of the enclave's user, asleep."""
    other = subprocess.Popen(["sleep", "600"], user=ENCLAVE_USER, group=ENCLAVE_USER, extra_groups=[])
    try:
        wait_until(lambda: Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")
        yield other.pid
    finally:
        other.kill()
        other.wait()


@needs_root
def test_control_the_same_user_reads_a_process_that_is_not_confined() -> None:
    with not_confined() as other:
        assert set(probe(other, ENCLAVE_USER).values()) == {0}
        assert all(probe(other, OTHER_USER).values())


@needs_root
@pytest.mark.skipif(shutil.which("gcore") is None, reason="gcore (gdb) is not installed")
def test_nobody_gets_a_core_of_it(running: ProcessEnclave) -> None:
    with not_confined() as other, tempfile.TemporaryDirectory() as folder:  # pytest's own are root's
        os.chown(folder, ENCLAVE_USER, ENCLAVE_USER)

        def core(process: int) -> tuple[bool, list[str]]:
            words = ["gcore", "-o", f"{folder}/core", str(process)]
            who: dict[str, Any] = {"user": ENCLAVE_USER, "group": ENCLAVE_USER, "extra_groups": []}
            done = subprocess.run(words, capture_output=True, check=False, cwd="/", **who)
            return done.returncode == 0, [file.name for file in Path(folder).iterdir()]

        assert core(running.process_id) == (False, [])
        assert core(other) == (True, [f"core.{other}"]), "control: a core of an ordinary process can be had"


@needs_root
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="root may debug any process; docs/isolation.md says so")
def test_root_cannot_debug_it(running: ProcessEnclave) -> None:
    assert probe(running.process_id, 0)["ptrace"] == errno.EPERM


@needs_root
@pytest.mark.skipif(not PROBES.exists(), reason="this kernel has no uprobes")
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="root may probe any process; docs/isolation.md says so")
def test_root_cannot_probe_it(running: ProcessEnclave) -> None:
    with probed(running.process_id, "recv") as reached:
        running.call([question(images(1))])
        assert reached() == 0


def canary_hits(started: ProcessEnclave) -> tuple[int, int]:
    """Readable copies of a canary of 32 bytes in the worker while and after it is asked, and bytes that could not be read.

    The canary goes in as eight numbers of a plain request; tests/enclave/test_canary.py does it with sealed ones, and looks everywhere.
    """
    x = images(37)
    x[20, 0, 3] = np.random.default_rng().random(8, dtype=np.float32)
    canary = x[20, 0, 3].tobytes()
    assert len(canary) == 32
    ask = question(x)
    assert canary in ask.body
    done, answered = threading.Event(), threading.Event()

    def work() -> None:
        while not done.is_set():
            assert started.call([ask])[0].code == ""
            answered.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert answered.wait(PATIENT_SECONDS)
        during = scan(started.process_id, canary)
    finally:
        done.set()
        thread.join()
    after = scan(started.process_id, canary)
    assert during.read_bytes > 1_000_000
    return during.hits + after.hits, after.refused_bytes


@needs_root
def test_with_a_secret_heap_root_finds_no_canary_and_without_it_does(sealed: Sealed, heap_library: Path) -> None:
    with enclave(sealed, secret_heap_bytes=HEAP_BYTES, require="process-secret-heap") as secret:
        assert secret.card.isolation == "process-secret-heap"
        hits, refused = canary_hits(secret)
        assert hits == 0
        assert refused >= HEAP_BYTES
        root = probe(secret.process_id, 0, secret_address(secret.process_id))
        assert root["process_vm_readv"] == errno.EFAULT
        assert root["peek"] == errno.EIO
        assert secret.call([question(images(1))])[0].code == ""
    with enclave(sealed) as plain:
        hits, refused = canary_hits(plain)
        assert hits > 0, "control: with an ordinary heap the canary is found"
        assert refused < HEAP_BYTES
        root = probe(plain.process_id, 0)
        assert (root["process_vm_readv"], root["peek"]) == (0, 0)


def test_a_secret_heap_that_is_too_small_is_an_error_at_start(sealed: Sealed, heap_library: Path) -> None:
    with pytest.raises(IsolationError, match="its log says why"):
        ProcessEnclave(Launch(sealed.path, [sealed.owner.public], sealed.key, secret_heap_bytes=1 << 20))


def test_a_secret_heap_that_is_not_built_says_how_to_build_it(
    sealed: Sealed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GARRISON_CACHE", str(tmp_path))
    with pytest.raises(IsolationError, match="garrison secret-heap build"):
        ProcessEnclave(Launch(sealed.path, [sealed.owner.public], sealed.key, secret_heap_bytes=HEAP_BYTES))


def test_less_than_is_required_is_refused_with_what_is_missing(sealed: Sealed) -> None:
    with pytest.raises(IsolationError, match="without a secret heap: start with --secret-heap"):
        ProcessEnclave(Launch(sealed.path, [sealed.owner.public], sealed.key, require="process-secret-heap"))
    with pytest.raises(IsolationError, match="'hardware' is required"):
        launch("process", Launch(sealed.path, [sealed.owner.public], sealed.key, require="hardware"))
    with pytest.raises(IsolationError, match="choose --isolation process"):
        launch("none", Launch(sealed.path, [sealed.owner.public], sealed.key, require="process-basic"))


def test_what_is_wrong_inside_is_told_outside(sealed: Sealed, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError):
        launch("process", Launch(sealed.path, [sealed.owner.public], b"x" * 32))
    with pytest.raises(GuardError):
        launch("process", Launch(sealed.path, [sealed.owner.public], sealed.key, {"release": {"mode": "more"}}))
    copy = tmp_path / "copy"
    shutil.copytree(sealed.path, copy)
    graph = copy / sealed.verified().manifest.graph.file
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(ChangedFileError) as caught:
        launch("process", Launch(copy, [sealed.owner.public], sealed.key))
    assert caught.value.file == graph.name


ORDINARY = """
import json, pathlib, sys
from garrison.crypto.owner import OwnerPublicKey
from garrison.enclave.host import Launch, launch
from garrison.errors import IsolationError
path, pem, key = pathlib.Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
trusted = [OwnerPublicKey.from_pem(pem)]
e = launch("process", Launch(path, trusted, key))
found = {"isolation": e.card.isolation, "capabilities": e.card.capabilities, "ready": e.ready}
e.stop()
try:
    launch("process", Launch(path, trusted, key, require="process"))
except IsolationError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_an_ordinary_user_gets_the_best_that_can_be_had_and_it_is_named(sealed: Sealed) -> None:
    """As `nobody`; allowed to read files, because Python itself may lie where only root looks."""
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    nobody += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    words = [sys.executable, "-c", ORDINARY, str(sealed.path), sealed.owner.public.pem.hex(), sealed.key.hex()]
    done = subprocess.run([*nobody, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ready"]
    assert found["isolation"].startswith("process-basic: without a user of its own")
    assert not found["capabilities"]["user"]
    assert all(found["capabilities"][name] for name in ("not-dumpable", "no-core", "no-new-privileges", "seccomp"))
    assert "'process' is required" in found["refused"]
    assert "start the server as root" in found["refused"]
    assert "isolation: no user" in done.stderr
