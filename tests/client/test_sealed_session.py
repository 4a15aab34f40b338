"""Sessions of a sealing client: one exchange of keys for many requests, and what happens when a session is not there any more."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.models import BOUNDS, RELEASE, Sealed, images, seal_mlp
from tests.serving import Served
from tests.simulated import Simulated, serve_simulated

from garrison.attest.policy import Policy
from garrison.client import AsyncClient, Client
from garrison.limits import Limits
from garrison.protocol.sealed_session import within_session
from garrison.server.auth import add_key

SIMULATED = Policy(allow_simulated=True)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sealed]:
    return {"mlp": seal_mlp(tmp_path_factory.mktemp("bundle") / "mlp", (BOUNDS, RELEASE))}


@pytest.fixture
def running(sealed: dict[str, Sealed], tmp_path: Path) -> Iterator[tuple[Served, Simulated]]:
    with serve_simulated(sealed["mlp"], state=tmp_path) as (served, (enclave,)):
        yield served, enclave


def kinds(enclave: Simulated) -> list[bool]:
    """Of the sealed requests so far: whether each was within a session."""
    return [within_session(ask.body) for ask in enclave.asks]


def test_one_exchange_of_keys_serves_a_session(running: tuple[Served, Simulated]) -> None:
    served, enclave = running
    with Client(served.url, sealed=True, allow_simulated=True) as client:
        for _ in range(5):
            assert client.predict(images(2)).attested
    assert kinds(enclave) == [False, True, True, True, True]
    assert enclave.attested == 1


def test_a_session_that_the_enclave_does_not_keep_is_begun_anew_by_itself(running: tuple[Served, Simulated]) -> None:
    served, enclave = running
    with Client(served.url, sealed=True, allow_simulated=True) as client:
        client.predict(images(1))
        sessions = enclave.service._mail._sessions
        sessions._drop(next(iter(sessions._all)))
        assert client.predict(images(1)).attested
        assert client.predict(images(1)).attested
    assert kinds(enclave) == [False, True, False, True]
    assert [reply.code for reply in enclave.replies] == ["", "request.stale_session", "", ""]
    assert enclave.attested == 1, "without attesting anew"


def test_where_no_session_is_granted_each_request_is_a_first_one(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    limits = Limits(sessions=1, sessions_a_caller=1)
    keys = {name: add_key(tmp_path / "keys.json", name) for name in ("alice", "bob")}
    with serve_simulated(sealed["mlp"], state=tmp_path / "s", keys=str(tmp_path / "keys.json"), limits=limits) as (
        served,
        (enclave,),
    ):
        for name, expected in (("alice", [False, True, True]), ("bob", [False, False, False])):
            with Client(served.url, api_key=keys[name], sealed=True, allow_simulated=True) as client:
                for _ in range(3):
                    assert client.predict(images(1)).attested
            assert kinds(enclave)[-3:] == expected
        with Client(served.url, api_key=keys["alice"], sealed=True, allow_simulated=True) as client:
            client.predict(images(1))
            assert client.predict(images(1)).attested
        assert kinds(enclave)[-2:] == [False, True], "in the place of her own"


def test_requests_at_once_begin_one_session_and_come_in_any_order(running: tuple[Served, Simulated]) -> None:
    served, enclave = running

    async def main() -> int:
        async with AsyncClient(served.url, sealed=True, policy=SIMULATED) as client:
            rows = 0
            for _ in range(3):
                rows += sum(p.rows for p in await asyncio.gather(*(client.predict(images(2)) for _ in range(16))))
            return rows

    assert asyncio.run(main()) == 3 * 16 * 2
    assert not kinds(enclave)[0]
    assert all(kinds(enclave)[16:])
    assert not any(reply.code for reply in enclave.replies)
    assert len(enclave.service._mail._sessions) == 1


def test_a_forked_client_is_told_of_a_replay_and_goes_on(running: tuple[Served, Simulated]) -> None:
    """Both copies give out the same counters; each message still has a key of its own, and no input is lost."""
    served, enclave = running
    with Client(served.url, sealed=True, allow_simulated=True) as client:
        client.predict(images(1))
        channel = client._core._channel
        assert channel is not None
        (session,) = channel._sessions._sessions.values()
        copied = copy.copy(session._counters)
        assert client.predict(images(1)).attested
        object.__setattr__(session, "_counters", copied)
        assert client.predict(images(2)).rows == 2
    assert [reply.code for reply in enclave.replies] == ["", "", "request.replayed", ""]


def test_a_session_ends_for_the_client_no_later_than_for_the_enclave(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    with serve_simulated(sealed["mlp"], state=tmp_path, limits=Limits(session_seconds=1)) as (served, (enclave,)):
        with Client(served.url, sealed=True, allow_simulated=True) as client:
            client.predict(images(1))
            time.sleep(1.1)
            client.predict(images(1))
        assert kinds(enclave) == [False, False]
        assert not any(reply.code for reply in enclave.replies)
