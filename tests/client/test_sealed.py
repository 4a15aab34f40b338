"""The sealing client against a real server whose enclave is simulated, and against hosts that lie."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.models import LABELS, Sealed, images
from tests.serving import Bundles, Served, serve
from tests.simulated import Simulated, serve_simulated
from tests.stalls import again_after_a_stall

from garrison.attest.evidence import Evidence
from garrison.attest.policy import Policy
from garrison.attest.report import Report
from garrison.client import AsyncClient, Client
from garrison.client.names import caller_of
from garrison.enclave.service import Service
from garrison.errors import (
    AttestationError,
    BudgetExhaustedError,
    ConfigError,
    InputError,
    SealedRequestError,
    SealingRequiredError,
    StaleKeyError,
    UnavailableError,
)
from garrison.limits import Limits
from garrison.server.auth import add_key

SIMULATED = Policy(allow_simulated=True)


@pytest.fixture
def running(sealed: dict[str, Sealed], tmp_path: Path) -> Iterator[tuple[Served, Simulated]]:
    with serve_simulated(sealed["mlp"], state=tmp_path) as (served, (enclave,)):
        yield served, enclave


@pytest.fixture(scope="module")
def several(sealed: dict[str, Sealed], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_simulated(*sealed.values(), state=tmp_path_factory.mktemp("state")) as (served, _):
        yield served


def test_it_gets_what_the_service_answers(running: tuple[Served, Simulated], sealed: dict[str, Sealed]) -> None:
    served, enclave = running
    x = images(70)
    expected = Service(sealed["mlp"].verified(), key=sealed["mlp"].key).predict({"image": x}).outputs["probabilities"]
    with Client(served.url, sealed=True, allow_simulated=True) as client:
        for binary in (True, False):
            found = client.predict(x, rows_a_request=32, binary=binary)
            assert found.probabilities is not None
            np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
            assert (found.rows, found.proved, found.attested, found.labels) == (70, True, True, LABELS)
        attested = client.attest()
    assert (attested.report.technology, attested.model.name) == ("sim", "mlp")
    assert enclave.attested == 1  # once for all of it
    assert all(ask.sealed for ask in enclave.asks)
    with Client(served.url) as plain:
        assert not plain.predict(x).attested


def test_an_enclave_in_a_process_of_its_own(bundles: Bundles, tmp_path: Path) -> None:
    x = images(5)
    with serve(bundles, "mlp-1", state=tmp_path, isolation="process") as served:
        with Client(served.url, sealed=True) as strict, pytest.raises(AttestationError, match="sim"):
            strict.predict(x)
        with Client(served.url, sealed=True, allow_simulated=True) as client, Client(served.url) as plain:
            found = client.predict(x)
            assert found.attested
            np.testing.assert_array_equal(found.outputs["probabilities"], plain.predict(x).outputs["probabilities"])


def test_the_asynchronous_client_too(running: tuple[Served, Simulated]) -> None:
    served, _ = running

    async def main() -> list[Any]:
        async with AsyncClient(served.url, sealed=True, policy=SIMULATED) as client:
            assert (await client.attest()).model.version == 1
            return list(await asyncio.gather(*(client.predict(images(k)) for k in range(1, 7))))

    assert [found.rows for found in asyncio.run(main()) if found.attested] == [1, 2, 3, 4, 5, 6]


def test_the_default_policy_refuses_simulation_and_sends_nothing(running: tuple[Served, Simulated]) -> None:
    served, enclave = running
    with Client(served.url, sealed=True) as client, pytest.raises(AttestationError, match="sim") as caught:
        client.predict(images(1))
    assert "for trials it is taken by --allow-simulated" in str(caught.value)
    assert isinstance(caught.value.report, Report)
    assert not caught.value.report.passed
    assert [step.name for step in caught.value.report.failures] == ["technology"]
    assert enclave.asks == []


def test_options_that_contradict() -> None:
    url = "http://127.0.0.1:1"
    for wrong in ({"policy": Policy()}, {"allow_simulated": True}, {"sealed": True, "verify": False}):
        with pytest.raises(ConfigError):
            Client(url, **wrong)
    with Client(url) as client, pytest.raises(ConfigError, match="sealed=True"):
        client.attest()


def test_versions_and_rollback(several: Served) -> None:
    for version, answers in ((None, "2"), (1, "1"), (2, "2")):
        with Client(several.url, model="mlp", version=version, sealed=True, policy=SIMULATED) as client:
            assert client.predict(images(1)).model_version == answers
    newest = msgspec.structs.replace(SIMULATED, least_version=2)
    with (
        Client(several.url, model="mlp", version=1, sealed=True, policy=newest) as client,
        pytest.raises(AttestationError, match="version"),
    ):
        client.predict(images(1))


def test_an_owner_who_demands_seals(several: Served) -> None:
    with Client(several.url, model="strict") as client, pytest.raises(SealingRequiredError, match="garrison connect"):
        client.predict(images(1))
    with Client(several.url, model="strict", sealed=True, allow_simulated=True) as client:
        assert client.predict(images(3)).rows == 3


def test_refusals_come_back_as_their_types(several: Served) -> None:
    with Client(several.url, model="metered", sealed=True, allow_simulated=True) as client:
        with pytest.raises(InputError, match="outside the range"):
            client.predict(images(1) * 9)
        assert client.predict(images(15)).rows == 15
        with pytest.raises(BudgetExhaustedError):
            client.predict(images(15))


def test_a_restarted_enclave_is_attested_anew_by_itself(running: tuple[Served, Simulated]) -> None:
    served, enclave = running
    with Client(served.url, sealed=True, allow_simulated=True) as client:
        first = client.predict(images(2)), client.attest().keys
        enclave.restart()
        second = client.predict(images(2)), client.attest().keys
        np.testing.assert_array_equal(first[0].classes, second[0].classes)
        assert first[1].signing != second[1].signing
        assert enclave.attested == 2


def test_another_version_in_the_middle_is_not_taken_for_the_one_it_began_with(
    running: tuple[Served, Simulated], sealed: dict[str, Sealed]
) -> None:
    """A host may start an older or newer model of the owner's at any time; its classes may mean something else."""
    served, enclave = running
    with Client(served.url, model="mlp", sealed=True, allow_simulated=True) as client:
        assert client.predict(images(3)).model_version == "1"
        enclave._sealed = sealed["mlp-2"]
        enclave.restart()
        with pytest.raises(UnavailableError, match="another version"):
            client.predict(images(3))
        assert client.predict(images(3)).model_version == "2", "control: a prediction that begins with it is answered"


def test_it_tries_that_once(running: tuple[Served, Simulated]) -> None:
    served, enclave = running
    show = enclave.evidence

    def always_another(nonce: bytes) -> Evidence:
        found = show(nonce)
        enclave.restart()
        return found

    enclave.evidence = always_another  # type: ignore[method-assign]
    with Client(served.url, sealed=True, allow_simulated=True) as client, pytest.raises(StaleKeyError):
        client.predict(images(1))
    assert enclave.attested == 2


@again_after_a_stall
def test_keys_that_end_and_sets_that_are_full_cost_a_client_nothing(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    limits = Limits(
        key_offered_seconds=0.5, key_grace_seconds=6.5, replay_entries=3, key_least_seconds=0.01, session_requests=2
    )
    with (
        serve_simulated(sealed["mlp"], state=tmp_path, limits=limits) as (served, (enclave,)),
        Client(served.url, sealed=True, allow_simulated=True) as client,
    ):
        for _ in range(25):  # nine first requests, of which one key opens three
            assert client.predict(images(1)).attested
            time.sleep(0.02)
        assert 3 <= enclave.attested <= 6
        before = client.attest().keys
        time.sleep(2.5)  # within five seconds of its end a key is not used any more
        client.predict(images(1))
        assert client.attest().keys.epoch > before.epoch


def test_the_callers_name_goes_inside(sealed: dict[str, Sealed], tmp_path: Path) -> None:
    keys = {name: add_key(tmp_path / "keys.json", name) for name in ("alice", "bob.b-1")}
    with serve_simulated(sealed["mlp"], state=tmp_path / "s", keys=str(tmp_path / "keys.json")) as (served, (enclave,)):
        for name, key in keys.items():
            with Client(served.url, api_key=key, sealed=True, allow_simulated=True) as client:
                assert client.predict(images(1)).attested
            assert enclave.asks[-1].caller == name
        with Client(served.url, api_key=keys["alice"], sealed=True, allow_simulated=True) as client:
            client.attest()
            client._http.headers["authorization"] = ""
            channel = client._core._channel
            assert channel is not None
            client.predict(images(1))
            channel._headers = {"authorization": f"Bearer {keys['bob.b-1']}"}  # a host that names another caller
            with pytest.raises(SealedRequestError, match="handed in for"):
                client.predict(images(1))
            assert enclave.replies[-2].code == "request.stale_session", "her session is not his"


@pytest.mark.parametrize("key", ["", "alice", "gk_", "gk__x", "gk_a_", "gk_a", "sk_a_b"])
def test_a_key_that_is_none(key: str) -> None:
    with pytest.raises(ConfigError, match="gk_NAME_SECRET"):
        caller_of(key)


def test_a_callers_name() -> None:
    assert caller_of("gk_alice_00ff") == "alice"
    assert caller_of(None) == ""


def test_what_a_host_says_of_labels_and_inputs_does_not_count(several: Served) -> None:
    """A host that swaps the labels in the metadata fools a plain client, and not a sealing one."""
    with (
        Client(several.url, model="mlp") as plain,
        Client(several.url, model="mlp", sealed=True, policy=SIMULATED) as seal,
    ):
        for client in (plain, seal):
            honest = client.metadata()
            assert honest.garrison is not None
            lie = msgspec.structs.replace(honest.garrison, labels=tuple(reversed(LABELS)))
            client._core._metadata = msgspec.structs.replace(honest, garrison=lie)
        assert plain.predict(images(1)).labels == tuple(reversed(LABELS))
        assert seal.predict(images(1)).labels == LABELS
        for client in (plain, seal):  # nor does what it keeps quiet about
            client._core._metadata = msgspec.structs.replace(client.metadata(), garrison=None)
        assert plain.predict(images(1)).labels == ()
        assert seal.predict(images(1)).labels == LABELS
