"""A worker that lies, drips or talks: it is ended or not listened to, the caller may try again, and nobody waits for ever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.enclave.workers import enclave, question, wait_until
from tests.models import Sealed, images, seal_mlp
from tests.stalls import PATIENT_SECONDS

import garrison
from garrison.enclave import log_relay, program
from garrison.enclave.backends.process import ProcessEnclave
from garrison.errors import FrameError, UnavailableError
from garrison.limits import Limits
from garrison.protocol.messages import Ask

TESTS = Path(__file__).parents[3]
HASTY, PATIENT = Limits(enclave_seconds=1.0), Limits(enclave_seconds=15.0)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_mlp(tmp_path_factory.mktemp("sealed") / "mlp")


@pytest.fixture
def liars(monkeypatch: pytest.MonkeyPatch) -> None:
    clean = program.clean_environment
    paths = os.pathsep.join([str(Path(garrison.__file__).parents[1]), str(TESTS)])
    monkeypatch.setattr(program, "WORKER", "tests.enclave.lying_worker")
    monkeypatch.setattr(program, "clean_environment", lambda secret: clean(secret) | {"PYTHONPATH": paths})


@pytest.fixture
def liar(sealed: Sealed, liars: None) -> Iterator[ProcessEnclave]:
    with enclave(sealed, limits=PATIENT) as started:
        yield started


def asked(caller: str) -> list[Ask]:
    plain = question(images(1))
    return [Ask(caller, -1, plain.body, plain.json_bytes)] * 2


def test_a_worker_that_lies_is_replaced(liar: ProcessEnclave) -> None:
    for how in ("short", "long", "other"):
        before = liar.process_id
        with pytest.raises(FrameError) as raised:
            liar.call(asked(how))
        assert raised.value.code == UnavailableError.code, "the client may try again"
        wait_until(lambda before=before: liar.ready and liar.process_id != before)
        assert [reply.code for reply in liar.call(asked("honest"))] == ["", ""]


def test_a_worker_that_drips_is_replaced(sealed: Sealed, liars: None) -> None:
    with enclave(sealed, limits=HASTY) as liar:
        before, started = liar.process_id, time.monotonic()
        with pytest.raises(FrameError) as raised:
            liar.call(asked("drip"))
        assert raised.value.code == UnavailableError.code, "the client may try again"
        assert time.monotonic() - started < 30.0  # to its end it would take minutes
        wait_until(lambda: liar.ready and liar.process_id != before)


def test_what_was_begun_ends_so_too(liar: ProcessEnclave) -> None:
    before = liar.process_id
    begun = liar.begin(asked("short"), cheap=True)
    assert begun is not None
    with pytest.raises(FrameError):
        begun.result()
    wait_until(lambda: liar.ready and liar.process_id != before)


def stuck(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nobody reads our standard error, as it were, until the event is set."""
    free = threading.Event()
    monkeypatch.setattr(log_relay, "_to_standard_error", lambda _: free.wait(PATIENT_SECONDS))
    return free


def test_a_full_log_does_not_stop_it(sealed: Sealed, liars: None, monkeypatch: pytest.MonkeyPatch) -> None:
    free = stuck(monkeypatch)
    with enclave(sealed, limits=PATIENT) as liar:
        before = liar.process_id
        for caller in ("talk", "honest", "talk"):
            assert [reply.code for reply in liar.call(asked(caller))] == ["", ""]
        assert liar.process_id == before
        free.set()


def test_control_with_a_pipe_that_blocks_it_is_stopped(
    sealed: Sealed, liars: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = stuck(monkeypatch)
    monkeypatch.setattr(os, "set_blocking", lambda *_: None)
    with enclave(sealed, limits=HASTY) as liar:
        with pytest.raises(UnavailableError):
            liar.call(asked("talk"))
        free.set()
