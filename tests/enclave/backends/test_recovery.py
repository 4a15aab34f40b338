"""When an enclave's process dies, hangs or does not start: who is told what, and how soon it serves again."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.enclave.workers import enclave, question, wait_until
from tests.models import BOUNDS, CLASSES, RELEASE, Sealed, images, seal_mlp
from tests.serving import Served, budget
from tests.stalls import again_after_a_stall

from garrison.client import Client
from garrison.config import Config, ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.enclave.backends.process import ProcessEnclave
from garrison.enclave.host import Launch, launch
from garrison.enclave.restarts import AT_ONCE
from garrison.errors import LimitError, UnavailableError
from garrison.limits import Limits
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.protocol.statement import verify_answer
from garrison.server.root import assemble, background
from garrison.types import Array

logger = logging.getLogger(__name__)

RECOVERY_SECONDS = 2.0
"""Asked of a machine with nothing else to do: slow tests."""
PATIENT_SECONDS = 30.0
"""On a busy one."""
ROWS = 100_000


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_mlp(tmp_path_factory.mktemp("sealed") / "mlp")


def test_a_dead_worker_is_replaced_by_one_with_fresh_keys(sealed: Sealed) -> None:
    with enclave(sealed) as started:
        before, nonce = started.card, b"n" * 32
        old = started.evidence(nonce)
        os.kill(started.process_id, signal.SIGKILL)
        wait_until(lambda: started.ready and started.card is not before)
        assert started.card.public_key != before.public_key
        new = started.evidence(nonce)
        assert new.keys.hpke != old.keys.hpke
        assert new.keys.signing == started.card.public_key
        ask = question(images(2))
        (reply,) = started.call([ask])
        verify_answer(reply.proof, started.card.public_key, request=ask.body, answer=reply.body, nonce="")


def test_what_stops_the_whole_service_lets_the_server_finish_first(sealed: Sealed) -> None:
    with enclave(sealed) as started:
        worker = started.process_id
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker, number)
        time.sleep(0.2)
        assert started.call([question(images(1))])[0].code == ""
        assert started.process_id == worker


def test_what_is_too_long_for_the_pipe_is_not_sent_and_harms_nothing(sealed: Sealed) -> None:
    small = Limits(queue_bytes=1 << 20, queue_requests=1)
    with enclave(sealed, limits=small) as started:
        body = b'{"inputs":[{"name":"image","datatype":"FP32","shape":[1,1,8,8],"data":[' + b"0," * 63 + b"0]}]}"
        worker, many = started.process_id, [Ask("caller", -1, body)] * 80_000
        with pytest.raises(LimitError, match="longer than"):
            started.call(many)
        assert started.call([Ask("caller", -1, body)])[0].code == ""
        assert started.process_id == worker


@again_after_a_stall
def test_a_worker_that_hangs_is_ended(sealed: Sealed) -> None:
    with enclave(sealed, limits=Limits(enclave_seconds=1.0)) as started:
        stuck = started.process_id
        os.kill(stuck, signal.SIGSTOP)
        with pytest.raises(UnavailableError):
            started.call([question(images(1))])
        wait_until(lambda: started.ready and started.process_id != stuck)
        assert started.call([question(images(1))])[0].code == ""


def test_a_worker_that_cannot_start_again_is_tried_ever_more_slowly(sealed: Sealed, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sealed.path, copy)
    started = ProcessEnclave(Launch(copy, [sealed.owner.public], sealed.key))
    try:
        copy.rename(tmp_path / "away")
        os.kill(started.process_id, signal.SIGKILL)
        wait_until(lambda: not started.ready)
        time.sleep(1.0)
        assert not started.ready
        with pytest.raises(UnavailableError, match="started anew"):
            started.call([question(images(1))])
        (tmp_path / "away").rename(copy)
        wait_until(lambda: started.ready)
        assert started.call([question(images(1))])[0].code == ""
    finally:
        started.stop()


def test_a_bundle_that_was_exchanged_meanwhile_is_not_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An older model of the same owner, put into the folder while the server runs: it must not count because the worker died."""
    owner = OwnerKey.generate()
    newer = seal_mlp(tmp_path / "newer", owner=owner, version=2)
    older = seal_mlp(tmp_path / "older", owner=owner, version=1)
    folder = tmp_path / "served"
    shutil.copytree(newer.path, folder)
    started = ProcessEnclave(Launch(folder, [owner.public], newer.key))
    try:
        folder.rename(tmp_path / "away")
        shutil.copytree(older.path, folder)
        os.kill(started.process_id, signal.SIGKILL)
        wait_until(lambda: "another model than at the start" in caplog.text)
        assert not started.ready
        shutil.rmtree(folder)
        (tmp_path / "away").rename(folder)
        wait_until(lambda: started.ready)
        assert started.call([question(images(1))])[0].code == "", "control: with its own model back it serves again"
    finally:
        started.stop()


def test_the_worker_ends_with_its_host(sealed: Sealed, tmp_path: Path) -> None:
    code = (
        "import sys, os, pathlib; from garrison.enclave.host import launch, Launch; from garrison.crypto.owner import OwnerPublicKey\n"
        "e = launch('process', Launch(pathlib.Path(sys.argv[1]), [OwnerPublicKey.from_pem(bytes.fromhex(sys.argv[2]))], bytes.fromhex(sys.argv[3])))\n"
        "print(e.process_id, flush=True); os.kill(os.getpid(), 9)\n"
    )
    words = [sys.executable, "-c", code, str(sealed.path), sealed.owner.public.pem.hex(), sealed.key.hex()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    worker = int(done.stdout)
    wait_until(lambda: b"worker" not in command_line(worker))


def command_line(process: int) -> bytes:
    """Of a process, b"" where it has ended. Its other files are closed to whoever did not start as root."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class Load:
    """Four clients who ask without a pause; what they were told, and what was wrong."""

    def __init__(self, served: Served, expected: Array, x: Array) -> None:
        self.told: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.good_times: list[float] = []
        self._served, self._expected, self._x = served, expected, x
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(4)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, first: int) -> None:
        with httpx.Client(base_url=self._served.url, timeout=60) as http:
            row = first
            while not self._done.is_set():
                row = (row + 1) % len(self._x)
                body, json_bytes = encode_request({"image": self._x[row : row + 1]})
                headers = {"inference-header-content-length": str(json_bytes)}
                self._note(row, http.post("/v2/models/mlp/infer", content=body, headers=headers))

    def _note(self, row: int, answer: httpx.Response) -> None:
        with self._lock:
            self.told[answer.status_code] += 1
            if answer.status_code == 200:
                self.good_times.append(time.monotonic())
                got = np.frombuffer(answer.content[-4 * CLASSES :], dtype=np.float32)
                if not np.allclose(got, self._expected[row], atol=1e-5):
                    self.wrong.append(f"row {row}")
            elif answer.json()["code"] != "unavailable":
                self.wrong.append(answer.text)


@pytest.mark.slow
def test_a_dead_worker_is_replaced_in_time(sealed: Sealed) -> None:
    with enclave(sealed) as started:
        before = started.card
        os.kill(started.process_id, signal.SIGKILL)
        assert wait_until(lambda: started.ready and started.card is not before) < RECOVERY_SECONDS


def test_killed_under_load_it_serves_again_and_nobody_is_told_anything_wrong(tmp_path: Path) -> None:
    assert max(killed_under_load(tmp_path, kills=2)) < PATIENT_SECONDS


@pytest.mark.slow
def test_killed_under_load_it_serves_again_in_time(tmp_path: Path) -> None:
    """The figure that is asked for, with the clients on the same machine: from each kill to the first good answer, as often as starts are free."""
    recoveries = killed_under_load(tmp_path, kills=AT_ONCE)
    logger.info("served again after %s s", ", ".join(f"{seconds:.2f}" for seconds in recoveries))
    assert max(recoveries) < RECOVERY_SECONDS, recoveries


def killed_under_load(folder: Path, kills: int) -> list[float]:
    """Seconds from each kill to the next good answer; checks on the way that nobody is told anything wrong, and what was charged."""
    owner = OwnerKey.generate()
    sealed = seal_mlp(folder / "mlp", chain=(BOUNDS, budget(ROWS), RELEASE), owner=owner)
    plain = launch("none", Launch(sealed.path, [owner.public]))
    x = images(64, seed=8)
    (reply,) = plain.call([Ask("caller", -1, *encode_request({"image": x}))])
    expected = np.frombuffer(reply.body[-4 * CLASSES * len(x) :], dtype=np.float32).reshape(len(x), CLASSES)
    config = Config(server=ServerConfig(port=0, state=str(folder / "state"), isolation="process"))
    assembly = assemble(config, [sealed.path], [owner.public])
    with background(assembly) as url:
        (inside,) = assembly.enclaves
        assert isinstance(inside, ProcessEnclave)
        recoveries = []
        with Load(Served(url, assembly), expected, x) as load:
            for _ in range(kills):
                time.sleep(1.5)
                recoveries.append(_kill(inside, load))
        assert load.wrong == []
        assert set(load.told) == {200, 503}
        book = assembly.book
        assert book is not None
        assert ROWS - book.remaining("mlp", "ip:127.0.0.1", "ever", ROWS) == load.told[200]
        published = httpx.get(f"{url}/.well-known/garrison/keys").json()["keys"][0]["public_key"]
        assert published == inside.card.public_key.hex()
    return recoveries


def _kill(inside: ProcessEnclave, load: Load) -> float:
    keys, killed = inside.card.public_key, time.monotonic()
    os.kill(inside.process_id, signal.SIGKILL)
    wait_until(lambda: inside.ready and inside.card.public_key != keys)
    wait_until(lambda: bool(load.good_times) and load.good_times[-1] > killed + 0.1)
    return min(t for t in load.good_times if t > killed + 0.1) - killed


def test_a_sealing_client_goes_on_by_itself_after_its_enclave_died(tmp_path: Path) -> None:
    sealed = seal_mlp(tmp_path / "mlp", chain=(BOUNDS, budget(ROWS), RELEASE))
    config = Config(server=ServerConfig(port=0, state=str(tmp_path / "state"), isolation="process"))
    assembly = assemble(config, [sealed.path], [sealed.owner.public])
    x = images(5)
    with background(assembly) as url, Client(url, sealed=True, allow_simulated=True) as client:
        (inside,) = assembly.enclaves
        assert isinstance(inside, ProcessEnclave)
        before = client.predict(x)
        time.sleep(1.5)
        os.kill(inside.process_id, signal.SIGKILL)
        killed = time.monotonic()
        after = client.predict(x)
        assert time.monotonic() - killed < PATIENT_SECONDS
        assert after.proved
        for name, values in before.outputs.items():
            np.testing.assert_allclose(after.outputs[name], values, atol=1e-6)
        assert assembly.book is not None
        assert ROWS - assembly.book.remaining("mlp", "ip:127.0.0.1", "ever", ROWS) == 2 * len(x)


def test_a_server_without_its_enclave_is_not_ready_and_says_how_it_is_kept(tmp_path: Path) -> None:
    sealed = seal_mlp(tmp_path / "mlp")
    config = Config(server=ServerConfig(port=0, state=str(tmp_path / "state")))
    assembly = assemble(config, [sealed.path], [sealed.owner.public])
    with background(assembly) as url:
        extras = httpx.get(f"{url}/v2").json()["garrison"]
        assert extras["isolation"].startswith("process")
        assert extras["capabilities"]["seccomp"] == assembly.enclaves[0].card.capabilities["seccomp"]
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        sealed.path.rename(tmp_path / "away")
        inside = assembly.enclaves[0]
        assert isinstance(inside, ProcessEnclave)
        os.kill(inside.process_id, signal.SIGKILL)
        wait_until(lambda: not inside.ready)
        assert httpx.get(f"{url}/v2/health/ready").status_code == 503
        assert httpx.get(f"{url}/v2/models/mlp/ready").status_code == 503
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        answer = Served(url, assembly).infer(images(1))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        index = httpx.post(f"{url}/v2/repository/index", content=b"{}").json()
        assert index[0]["state"] == "UNAVAILABLE"
