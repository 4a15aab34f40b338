"""Several front processes before one enclave: one budget, one key, one replay set; who dies is replaced, and nothing outlives the server."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.models import images
from tests.serving import Bundles, command

from garrison.client import Client
from garrison.config import Config, ServerConfig
from garrison.errors import ConfigError
from garrison.protocol.oip_client import encode_request
from garrison.protocol.statement import verify_answer
from garrison.server.auth import add_key, revoke_key
from garrison.server.root import assemble

WORKERS = 3
SECONDS = 60.0


def children(process: int) -> list[int]:
    """Of all its threads."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return sorted(found)


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_front(process: int) -> bool:
    return b"garrison.server.front" in Path(f"/proc/{process}/cmdline").read_bytes()


def wait_until(good: Callable[[], bool], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < end, f"it was not so within {seconds} s"
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Fleet:
    server: subprocess.Popen[str]
    ready: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def fronts(self) -> list[int]:
        return [child for child in children(self.server.pid) if is_front(child)]

    @property
    def enclave(self) -> int:
        """The one that answers; the spare is younger."""
        return min(child for child in children(self.server.pid) if not is_front(child))

    def infer(self, rows: int = 1, name: str = "metered", **headers: str) -> httpx.Response:
        """On a connection of its own: some worker answers."""
        body, length = encode_request({"image": images(rows)})
        sent = {"inference-header-content-length": str(length), "connection": "close"} | headers
        return httpx.post(f"{self.url}/v2/models/{name}/infer", content=body, headers=sent, timeout=30)


@contextmanager
def fleet(bundles: Bundles, name: str, folder: Path, isolation: str, *more: str) -> Iterator[Fleet]:
    words = ("--isolation", isolation, "--workers", str(WORKERS), *more)
    with command(bundles, name, folder, *words) as (server, ready):
        yield Fleet(server, ready)


@pytest.mark.parametrize("isolation", ["process", pytest.param("none", marks=pytest.mark.slow)])
def test_a_budget_is_exact_over_all_workers(bundles: Bundles, tmp_path: Path, isolation: str) -> None:
    """100 rows, whoever is asked: not one more, and none lost in another worker's memory."""
    told: Counter[int] = Counter()
    with fleet(bundles, "metered", tmp_path, isolation) as running:
        assert len(running.fronts) == WORKERS
        assert running.ready["workers"] == WORKERS
        lock = threading.Lock()

        def asked() -> int:
            """Who finds the store in use for a second is told to come again, and nothing was charged."""
            found: list[int] = []
            wait_until(lambda: found.append(running.infer().status_code) or found[-1] != 503)  # type: ignore[func-returns-value]
            return found[-1]

        def ask() -> None:
            for _ in range(20):
                status = asked()
                with lock:
                    told[status] += 1

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        end = time.monotonic() + 30
        while told[200] < 100 and time.monotonic() < end:  # blocks that lie unused elsewhere come back
            told[asked()] += 1
            time.sleep(0.1)
        assert told[200] == 100, told
        assert set(told) == {200, 429}
        assert asked() == 429


@pytest.mark.slow
def test_without_an_enclave_all_workers_sign_alike(bundles: Bundles, tmp_path: Path) -> None:
    body, _ = encode_request({"image": images(1)})
    with fleet(bundles, "plain", tmp_path, "none") as running:
        key = bytes.fromhex(running.ready["models"][0]["public_key"])
        seen = set()
        for _ in range(12):
            answer = running.infer(name="plain")
            proof = base64.b64decode(answer.headers["garrison-proof"])
            verify_answer(proof, key, request=body, answer=answer.content, nonce="")
            seen.add(httpx.get(f"{running.url}/.well-known/garrison/keys").json()["keys"][0]["public_key"])
        assert seen == {key.hex()}


@pytest.mark.slow
def test_sealed_requests_and_evidence_go_through_each_worker(bundles: Bundles, tmp_path: Path) -> None:
    with fleet(bundles, "metered", tmp_path, "process") as running:
        for _ in range(8):
            with Client(
                running.url, sealed=True, allow_simulated=True
            ) as client:  # attests anew, on a connection of its own
                assert client.predict(images(2)).proved
        nonces = [os.urandom(32) for _ in range(8)]
        evidence = []
        for nonce in nonces:
            text = base64.urlsafe_b64encode(nonce).decode()
            got = httpx.get(f"{running.url}/.well-known/garrison/attestation", params={"nonce": text})
            assert got.status_code == 200
            evidence.append(got.json())
        assert len({e["keys"]["hpke"] for e in evidence}) == 1
        assert len({e["nonce"] for e in evidence}) == 8


def test_what_was_opened_once_is_a_replay_at_every_worker(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    with fleet(bundles, "metered", tmp_path, "process") as running:
        original = httpx.Client.send

        def remember(self: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
            if request.method == "POST":
                sent.append(request.read())
            return original(self, request, **more)

        monkeypatch.setattr(httpx.Client, "send", remember)
        with Client(running.url, sealed=True, allow_simulated=True) as client:
            client.predict(images(1))
        monkeypatch.undo()
        assert sent
        letter = sent[-1]
        headers = {"content-type": "application/vnd.garrison.sealed", "connection": "close"}
        for _ in range(12):
            again = httpx.post(f"{running.url}/v2/models/metered/infer", content=letter, headers=headers)
            assert (again.status_code, again.json()["code"]) == (409, "request.replayed")


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_while_the_others_answer(bundles: Bundles, tmp_path: Path) -> None:
    with fleet(bundles, "metered", tmp_path, "process") as running:
        before, enclave = running.fronts, running.enclave
        key = httpx.get(f"{running.url}/.well-known/garrison/keys").json()
        os.kill(before[0], signal.SIGKILL)
        told = Counter(running.infer().status_code for _ in range(20))
        assert set(told) == {200}
        wait_until(lambda: len(running.fronts) == WORKERS and before[0] not in running.fronts)
        fresh = next(front for front in running.fronts if front not in before)
        for front in before[1:]:  # now the fresh one must answer
            os.kill(front, signal.SIGSTOP)
        try:
            wait_until(lambda: running.infer().status_code == 200)
        finally:
            for front in before[1:]:
                os.kill(front, signal.SIGCONT)
        assert runs(fresh)
        assert running.enclave == enclave
        assert httpx.get(f"{running.url}/.well-known/garrison/keys").json() == key


def test_an_enclave_that_dies_comes_back_to_all_workers(bundles: Bundles, tmp_path: Path) -> None:
    with fleet(bundles, "metered", tmp_path, "process") as running:
        key = running.ready["models"][0]["public_key"]
        assert running.infer().status_code == 200
        wait_until(lambda: len(children(running.server.pid)) == WORKERS + 2)  # a spare stands by
        os.kill(running.enclave, signal.SIGKILL)

        def keys() -> set[str]:
            found = set()
            for _ in range(12):
                with httpx.Client() as client:
                    if client.get(f"{running.url}/v2/health/ready").status_code != 200:
                        return set()
                    found.add(client.get(f"{running.url}/.well-known/garrison/keys").json()["keys"][0]["public_key"])
            return found

        wait_until(lambda: len(keys()) == 1 and keys() != {key})
        assert {running.infer().status_code for _ in range(12)} == {200}


@pytest.mark.slow
def test_all_end_with_the_first_process(bundles: Bundles, tmp_path: Path) -> None:
    with fleet(bundles, "metered", tmp_path, "process") as running:
        everybody = children(running.server.pid)
        assert len(everybody) >= WORKERS + 1
        running.server.kill()
        wait_until(lambda: not any(map(runs, everybody)))


def test_a_graceful_stop_ends_all_and_gives_budgets_back(bundles: Bundles, tmp_path: Path) -> None:
    with fleet(bundles, "metered", tmp_path, "process") as running:
        assert running.infer(7).status_code == 200
        everybody = children(running.server.pid)
        running.server.send_signal(signal.SIGTERM)
        _, said = running.server.communicate(timeout=60)
        assert running.server.returncode == 0
        assert "Traceback" not in said
        assert not any(map(runs, everybody))
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{running.url}/v2/health/live")
    with command(bundles, "metered", tmp_path) as (_, ready):
        body, length = encode_request({"image": images(93)})
        headers = {"inference-header-content-length": str(length)}
        url = f"{ready['url']}/v2/models/metered/infer"
        assert httpx.post(url, content=body, headers=headers).status_code == 200


def test_a_server_that_cannot_start_says_why(bundles: Bundles, tmp_path: Path) -> None:
    words = [str(bundles.sealed["metered"].path), "--trust", str(bundles.folder / "owner.pub"), "--workers", "2"]
    words += ["--isolation", "none", "--port", "0", "--state", "/proc/nowhere"]
    done = subprocess.run(
        [sys.executable, "-m", "garrison", "serve", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    # Root gets as far as to the workers; anybody else is told by the check of the setting.
    assert "budgets cannot be kept" in done.stderr or "server.state, --state: /proc/nowhere" in done.stderr


def test_a_server_whose_bundle_is_not_good_says_so_and_leaves_nobody_behind(bundles: Bundles, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "empty"), "--trust", str(bundles.folder / "owner.pub"), "--workers", "2", "--port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "garrison", "serve", *words],
        check=False,
        capture_output=True,  # ends when everybody who holds the pipes has ended
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_key_that_is_revoked_is_good_at_no_worker(bundles: Bundles, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    alice, bob = add_key(keys, "alice"), add_key(keys, "bob")
    with fleet(bundles, "plain", tmp_path, "process", "--keys", str(keys)) as running:

        def told(key: str) -> set[int]:
            return {running.infer(name="plain", authorization=f"Bearer {key}").status_code for _ in range(12)}

        assert (told(alice), told(bob)) == ({200}, {200})
        revoke_key(keys, "alice")
        wait_until(lambda: told(alice) == {401})
        assert told(bob) == {200}


def test_an_enclave_that_is_the_process_takes_one_worker(bundles: Bundles) -> None:
    config = Config(server=ServerConfig(isolation="sgx", workers=2))
    with pytest.raises(ConfigError, match="takes one"):
        assemble(config, bundles.paths("plain"), [bundles.owner.public])
