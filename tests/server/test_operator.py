"""The story of an alarm on a real server: it rings, it changes answers, it outlives the server, the operator sees and clears it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.commands import as_json, fails, run
from tests.enclave.workers import wait_until
from tests.guard.detectors.chains import chain, watch_for_strangers
from tests.models import RELEASE, images, seal_mlp
from tests.serving import Bundles, Served, serve

from garrison.client import Client
from garrison.crypto.owner import OwnerKey
from garrison.enclave import snapshots
from garrison.errors import ConfigError, UnavailableError
from garrison.server.operator import Told, Wish, ask_servers, open_operator
from garrison.types import Array

CALLER = "ip:127.0.0.1"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder, owner = tmp_path_factory.mktemp("operated"), OwnerKey.generate()
    sealed = {
        "mlp": seal_mlp(folder / "mlp", chain(watch_for_strangers()), owner=owner),
        "plain": seal_mlp(folder / "plain", (RELEASE,), name="plain", owner=owner),
    }
    (folder / "owner.pub").write_bytes(owner.public.pem)
    return Bundles(folder, owner, sealed)


@pytest.fixture
def running(bundles: Bundles, tmp_path: Path) -> Iterator[Served]:
    with serve(bundles, "mlp", "plain", state=tmp_path) as served:
        yield served


def asked(served: Served, x: Array, each: int = 4) -> Array:
    with Client(served.url, model="mlp") as client:
        parts = [client.predict(x[i : i + each]).outputs["probabilities"] for i in range(0, len(x), each)]
    return np.concatenate(parts)


def alarms(folder: Path) -> dict[str, bool]:
    """Callers, and whether their alarm rings."""
    (told,) = ask_servers(folder, Wish(model="mlp"))
    return {alarm.caller: alarm.active for alarm in told.models[0].alarms}


@pytest.mark.parametrize("more", [0, 200], ids=["short", "longer than an address may be"])
def test_a_state_folder_of_any_length(bundles: Bundles, tmp_path: Path, more: int) -> None:
    state = tmp_path / ("f" * more)
    with serve(bundles, "mlp", "plain", state=state) as served:
        asked(served, images(64))
        assert alarms(state) == {CALLER: True}
        assert len(list(state.glob("operator.*.sock"))) == 1
    with pytest.raises(UnavailableError, match="no server"):
        alarms(state)


def test_an_alarm_rings_changes_answers_and_is_cleared(bundles: Bundles, tmp_path: Path) -> None:
    thefts, probe = images(64), images(16, seed=5)
    with serve(bundles, "mlp", "plain", state=tmp_path) as served:
        honest = asked(served, probe, 1)
        assert alarms(tmp_path) == {}, "control"
        asked(served, thefts)
        assert alarms(tmp_path) == {CALLER: True}
        np.testing.assert_array_equal(asked(served, probe, 1), honest)  # asked before: no answer shows the alarm
        others = images(16, seed=6)
        minded = asked(served, others)
    with serve(bundles, "mlp", "plain", state=tmp_path) as served:
        np.testing.assert_array_equal(asked(served, others), minded)  # after a restart
        (listed,) = as_json("alarms", "list", "--state", str(tmp_path))
        assert listed["model"] == "mlp"
        assert (listed["alarms"][0]["detector"], listed["alarms"][0]["action"]) == ("ood-rate", "misinform")
        assert CALLER in run("alarms", "list", "--state", str(tmp_path)).stdout
        assert as_json("alarms", "clear", CALLER, "--state", str(tmp_path))["cleared"] == ["mlp, version 1"]
        assert "nothing was known" in run("alarms", "clear", "nobody", "--state", str(tmp_path)).stdout
        assert alarms(tmp_path) == {}
        assert not np.allclose(asked(served, others), minded, atol=1e-3)
    with serve(bundles, "mlp", state=tmp_path):
        assert alarms(tmp_path) == {}
    message = fails(UnavailableError, "alarms", "list", "--state", str(tmp_path))
    assert "no server that watches its callers" in message


def test_who_watches_nobody_says_so(running: Served, tmp_path: Path) -> None:
    message = fails(ConfigError, "alarms", "list", "--state", str(tmp_path), "--model", "plain")
    assert "no model here watches" in message
    assert open_operator(tmp_path, [running.assembly.enclaves[1]]) is None


def test_the_socket_is_the_operators_alone_and_takes_no_nonsense(running: Served, tmp_path: Path) -> None:
    (path,) = tmp_path.glob("operator.*.sock")
    assert path.stat().st_mode & 0o777 == 0o600
    for nonsense in (b"\n", b"junk\n", b'{"cleer":"x"}\n', b"\xff\xfe\n", b"x" * 100_000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            try:
                connection.sendall(nonsense)
                answer = connection.recv(4096)
            except OSError:
                answer = b""
            assert answer == b"" or b'"error":"' in answer
    assert alarms(tmp_path) == {}, "and goes on"


def test_a_server_that_was_killed_leaves_a_socket_that_harms_nobody(running: Served, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "operator.1.sock"))
    (told,) = ask_servers(tmp_path, Wish())
    assert isinstance(told, Told)


@pytest.mark.slow
def test_alarms_and_their_clearing_outlive_an_enclave_that_is_killed(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "EVERY_SECONDS", 0.1)
    others = images(16, seed=6)
    with serve(bundles, "mlp", state=tmp_path, isolation="process") as served:
        (enclave,) = served.assembly.enclaves
        calm = asked(served, others[:1])
        asked(served, images(64))
        minded = asked(served, others[1:])
        folder = tmp_path / "callers"
        wait_until(lambda: list(folder.glob("*.sealed")))
        kept = next(folder.glob("*.sealed"))
        wait_until(lambda: not _changes(kept, 2.0))
        for cleared in (False, True):
            card = enclave.card
            os.kill(enclave.process_id, signal.SIGKILL)  # type: ignore[attr-defined]
            wait_until(lambda card=card: enclave.ready and enclave.card is not card)
            if not cleared:
                np.testing.assert_allclose(asked(served, others[1:]), minded, atol=1e-6)
                assert alarms(tmp_path) == {CALLER: True}
                assert as_json("alarms", "clear", CALLER, "--state", str(tmp_path))["cleared"]
        assert alarms(tmp_path) == {}
        np.testing.assert_allclose(asked(served, others[:1]), calm, atol=1e-6)
        assert not np.allclose(asked(served, others[1:]), minded, atol=1e-3)


def _changes(file: Path, seconds: float) -> bool:
    before = file.stat().st_mtime_ns
    try:
        wait_until(lambda: file.stat().st_mtime_ns != before, seconds)
    except AssertionError:
        return False
    return True
