"""The inner program, without confining the process of the tests."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator

import pytest

from garrison.enclave import worker
from garrison.enclave.talk import FROM_WORKER, MOST_START_BYTES, Failed, FromHost, FromWorker, Start
from garrison.limits import DEFAULT_LIMITS
from garrison.protocol.frames import Channel


@pytest.fixture
def _thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_thawed")
def test_what_lives_as_long_as_the_enclave_is_not_looked_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[int] = []

    class Confined:
        def __init__(self, *_: object) -> None:
            frozen.append(gc.get_freeze_count())
            self.kept: list[list[int]] = [[] for _ in range(1000)]

        def ready(self) -> FromWorker:
            return Failed("stand-in", "for a card")

    class Waiting:
        def __init__(self, *_: object) -> None: ...

        def serve(self, *_: object) -> None:
            frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(worker, "Worker", Confined)
    monkeypatch.setattr(worker, "Lines", Waiting)
    ours, theirs = socket.socketpair()
    sizes = {"most_sent": MOST_START_BYTES, "most_received": MOST_START_BYTES}
    host: Channel[FromHost, FromWorker] = Channel(ours, FROM_WORKER, **sizes)
    with ours, theirs:
        host.send(
            Start(
                bundle="",
                trusted=(),
                key=None,
                tightened={},
                limits=DEFAULT_LIMITS,
                parameter_memory=None,
                user=0,
            )
        )
        worker.serve(theirs)
        assert isinstance(host.receive(), Failed)
    before, while_serving = frozen
    assert before == 0
    assert while_serving > 1000
