"""The hardware backends, each with a public key infrastructure of the tests' own in place of the device. Not run on hardware."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.attest.dcap_world import DcapWorld
from tests.attest.snp_world import SnpWorld
from tests.attest.worlds import NOW, World
from tests.enclave.workers import question
from tests.models import Sealed, images, seal_mlp

from garrison.attest.appraise import appraise
from garrison.attest.evidence import NONCE_BYTES, Quote, Technology
from garrison.attest.policy import Policy
from garrison.attest.report import Report
from garrison.enclave.backends.gramine import Gramine
from garrison.enclave.backends.process import ProcessEnclave
from garrison.enclave.host import Enclave, Launch, launch
from garrison.errors import IsolationError


@dataclass
class Hardware:
    """A device that signs as the world's does."""

    world: World
    asked: int = 0

    @property
    def technology(self) -> Technology:
        return self.world.technology

    def quote(self, report_data: bytes) -> Quote:
        self.asked += 1
        return self.world.quote(report_data)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_mlp(tmp_path_factory.mktemp("sealed") / "mlp")


@pytest.fixture(scope="module", params=["snp", "tdx", "sgx"])
def world(request: pytest.FixtureRequest) -> World:
    return SnpWorld() if request.param == "snp" else DcapWorld(request.param)


@pytest.fixture(scope="module")
def started(world: World, sealed: Sealed) -> Iterator[Enclave]:
    backend: Any = Gramine if world.technology == "sgx" else ProcessEnclave
    found = backend(start(sealed, require="hardware"), Hardware(world))
    yield found
    found.stop()


def start(sealed: Sealed, **more: Any) -> Launch:
    return Launch(sealed.path, [sealed.owner.public], sealed.key, **more)


def demanded(world: World, sealed: Sealed) -> Policy:
    """The key set is judged at the clock of the tests' certificates, from where its end is far off."""
    return world.policy(owners=(sealed.owner.public.fingerprint,), most_key_seconds=2**31)


def judged(enclave: Enclave, policy: Policy, **changes: Any) -> Report:
    nonce = secrets.token_bytes(NONCE_BYTES)
    evidence = msgspec.structs.replace(enclave.evidence(nonce), **changes)
    # The key set of a service that runs now, judged at the clock of the tests' certificates.
    return appraise(evidence, policy, nonce, NOW.timestamp())


def test_its_evidence_passes_without_simulation_being_allowed(started: Enclave, world: World, sealed: Sealed) -> None:
    policy = demanded(world, sealed)
    assert not policy.allow_simulated
    assert judged(started, policy).passed
    assert not judged(started, Policy()).passed


def test_its_card_says_which_hardware_and_the_level_is_reached(started: Enclave, world: World) -> None:
    assert started.card.technology == world.technology
    assert started.card.isolation.startswith(world.technology)


def test_the_host_cannot_pass_off_a_model_of_its_own(world: World, sealed: Sealed, tmp_path: Path) -> None:
    own = seal_mlp(tmp_path / "own", name=sealed.verified().manifest.name, version=999)
    enclave = ProcessEnclave(start(own), Hardware(world))
    try:
        report = judged(enclave, demanded(world, sealed))
        assert [step.name for step in report.failures] == ["owner"]
        assert judged(enclave, demanded(world, own)).passed, "control: to its own owner it is good"
    finally:
        enclave.stop()


def test_other_keys_or_another_guard_than_the_quoted_ones_are_noticed(
    started: Enclave, world: World, sealed: Sealed
) -> None:
    keys = started.evidence(bytes(NONCE_BYTES)).keys
    assert judged(started, demanded(world, sealed)).passed
    for changes in ({"keys": msgspec.structs.replace(keys, signing=bytes(32))}, {"guard": "0" * 64}):
        assert not judged(started, demanded(world, sealed), **changes).passed


def test_it_answers(started: Enclave) -> None:
    (reply,) = started.call([question(images(2))])
    assert reply.code == ""


def test_after_a_crash_it_shows_evidence_over_fresh_keys(sealed: Sealed) -> None:
    world = SnpWorld()
    enclave = ProcessEnclave(start(sealed), Hardware(world))
    try:
        before = enclave.evidence(bytes(NONCE_BYTES)).keys
        enclave._present().process.kill()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and enclave.card.public_key == before.signing:
            time.sleep(0.05)
        assert judged(enclave, demanded(world, sealed)).passed
        assert enclave.evidence(bytes(NONCE_BYTES)).keys.hpke != before.hpke
        assert enclave.card.technology == "snp"
    finally:
        enclave.stop()


@pytest.mark.parametrize("name", ["snp", "tdx", "sgx"])
def test_without_the_hardware_it_does_not_start(sealed: Sealed, name: str) -> None:
    if Path("/sys/kernel/config/tsm/report").exists() or Path("/dev/attestation").exists():
        pytest.skip("this machine has such hardware")
    with pytest.raises(IsolationError):
        launch(name, start(sealed))


def test_a_simulation_is_not_hardware(sealed: Sealed) -> None:
    """The control of the level."""
    with pytest.raises(IsolationError, match="'hardware' is required"):
        ProcessEnclave(start(sealed, require="hardware"))


def test_answers_are_those_of_the_service_itself(started: Enclave, sealed: Sealed) -> None:
    plain = launch("none", start(sealed))
    mine, theirs = (enclave.call([question(images(4))])[0].body for enclave in (started, plain))
    assert np.frombuffer(mine[-16:], np.uint8).tolist() == np.frombuffer(theirs[-16:], np.uint8).tolist()


def test_limit_whoever_may_ask_the_device_has_quotes_over_other_keys(
    started: Enclave, world: World, sealed: Sealed
) -> None:
    """Not a promise but its end: within a guest the hardware does not tell one program from another (docs/threat-model.md)."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    true = started.evidence(nonce)
    forged = msgspec.structs.replace(true, keys=msgspec.structs.replace(true.keys, hpke=b"x" * 32, signing=b"y" * 32))
    policy = demanded(world, sealed)
    assert not appraise(forged, policy, nonce, NOW.timestamp()).passed
    asked = msgspec.structs.replace(forged, quote=Hardware(world).quote(forged.expected_report_data()))
    assert appraise(asked, policy, nonce, NOW.timestamp()).passed
