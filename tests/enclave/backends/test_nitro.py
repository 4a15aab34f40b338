"""The Nitro backend against a made-up enclave (`tests.enclave.nitro`). Not run on hardware."""

from __future__ import annotations

import errno
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.attest.nitro_world import PCR0
from tests.enclave.nitro import FakeEnclave, LiveWorld, fake_enclave
from tests.enclave.workers import question, wait_until
from tests.models import Sealed, images, seal_mlp
from tests.serving import Served

from garrison.attest.appraise import appraise
from garrison.attest.evidence import NONCE_BYTES, Evidence
from garrison.attest.policy import Policy
from garrison.attest.report import Report
from garrison.client import Client
from garrison.config import Config, ServerConfig
from garrison.enclave.backends.nitro import Nitro
from garrison.enclave.delivery import Welcome, guest_end
from garrison.enclave.host import Launch, launch
from garrison.enclave.service import Service
from garrison.errors import AttestationError, ChangedFileError, ConfigError, IsolationError, UnavailableError
from garrison.server.launching import launch_all
from garrison.server.root import assemble_enclaves, background


@dataclass(frozen=True)
class Running:
    outside: FakeEnclave
    enclave: Nitro


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_mlp(tmp_path_factory.mktemp("sealed") / "mlp")


@pytest.fixture(scope="module")
def world() -> LiveWorld:
    return LiveWorld()


@pytest.fixture(scope="module")
def running(sealed: Sealed, world: LiveWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(sealed, world, tmp_path_factory.mktemp("parent")) as found:
        yield found


@contextmanager
def started(sealed: Sealed, world: LiveWorld, folder: Path) -> Iterator[Running]:
    with fake_enclave(folder, world) as outside:
        enclave = Nitro(start(sealed, require="hardware"), outside.connect)
        try:
            yield Running(outside, enclave)
        finally:
            enclave.stop()


def start(sealed: Sealed, **more: Any) -> Launch:
    return Launch(sealed.path, [sealed.owner.public], sealed.key, **more)


def demanded(world: LiveWorld, sealed: Sealed, **changes: Any) -> Policy:
    return world.policy(owners=(sealed.owner.public.fingerprint,), **changes)


def judged(evidence: Evidence, policy: Policy) -> Report:
    return appraise(evidence, policy, evidence.nonce, time.time())


@contextmanager
def server(enclave: Nitro, state: Path) -> Iterator[str]:
    assembly = assemble_enclaves(Config(server=ServerConfig(port=0, state=str(state))), [enclave])
    with background(assembly) as url:
        yield Served(url, assembly).url


def test_its_evidence_passes_and_a_changed_byte_does_not(running: Running, world: LiveWorld, sealed: Sealed) -> None:
    evidence, policy = running.enclave.evidence(secrets.token_bytes(NONCE_BYTES)), demanded(world, sealed)
    report = judged(evidence, policy)
    assert report.passed, report
    assert not policy.allow_simulated
    assert not policy.allow_debug
    assert not judged(evidence, Policy()).passed, "another root, no owner"
    quote = bytearray(evidence.quote.quote)
    place = quote.index(PCR0) + 7
    quote[place] ^= 1
    other = msgspec.structs.replace(evidence.quote, quote=bytes(quote))
    failed = judged(msgspec.structs.replace(evidence, quote=other), policy).failures
    assert [step.name for step in failed][:1] == ["signature"]
    keys = msgspec.structs.replace(evidence.keys, hpke=bytes(len(evidence.keys.hpke)))
    assert not judged(msgspec.structs.replace(evidence, keys=keys), policy).passed


def test_its_card_says_what_it_is(running: Running) -> None:
    card = running.enclave.card
    assert card.technology == "nitro"
    assert card.isolation.startswith("nitro, process")
    assert card.capabilities["measured"] == f"PCR0 {PCR0.hex()}"
    assert card.capabilities["security-module"] == "i-0-enc0"
    assert card.capabilities["seccomp"], "the inner program opens no device, so it is confined as everywhere"
    assert running.outside.module.asked[:2] == [{"DescribePCR": {"index": 0}}, "DescribeNSM"]


def test_nothing_of_the_bundle_is_left_in_files(running: Running) -> None:
    folders = [Path(program.folder) for program in running.outside.keeper._programs]
    assert running.enclave.ready
    assert folders, "what runs was delivered through a folder of its own"
    assert [file for folder in folders for file in folder.rglob("*") if not file.is_dir()] == []


@pytest.fixture
def mortal(sealed: Sealed, world: LiveWorld, tmp_path: Path) -> Iterator[Running]:
    """One that a test may end; the server that it serves stops it."""
    with started(sealed, world, tmp_path) as found:
        yield found


def test_sealed_requests_the_whole_way_through_death_and_a_new_enclave(
    mortal: Running, world: LiveWorld, sealed: Sealed, tmp_path: Path
) -> None:
    x, enclave, outside = images(5), mortal.enclave, mortal.outside
    expected = Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]
    with server(enclave, tmp_path / "state") as url:
        with Client(url, sealed=True) as stranger, pytest.raises(AttestationError):
            stranger.predict(x)  # control: Amazon's root did not sign this
        with Client(url, sealed=True, policy=demanded(world, sealed)) as client:

            def check() -> None:
                found = client.predict(x)
                assert found.probabilities is not None
                np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
                assert (found.proved, found.attested) == (True, True)

            check()
            before = enclave.card.public_key
            (program,) = outside.keeper._programs
            program.process.kill()
            wait_until(lambda: enclave.ready and enclave.card.public_key != before)
            check()
            before = enclave.card.public_key
            outside.terminate()
            wait_until(lambda: not enclave.ready)
            with pytest.raises(UnavailableError):
                enclave.call([question(x)])
            outside.run()
            wait_until(lambda: enclave.ready and enclave.card.public_key != before)
            check()


@pytest.mark.slow
def test_when_the_server_goes_its_program_ends(sealed: Sealed, world: LiveWorld, tmp_path: Path) -> None:
    with fake_enclave(tmp_path, world) as outside:
        enclave = Nitro(start(sealed), outside.connect)
        assert len(outside.keeper._programs) == 1
        enclave.stop()
        wait_until(lambda: not outside.keeper._programs)


def test_debug_mode_is_refused(sealed: Sealed, world: LiveWorld, tmp_path: Path) -> None:
    with (
        fake_enclave(tmp_path, world, debug=True) as outside,
        pytest.raises(IsolationError, match=r"debug mode \(PCR0 is all zero\)"),
    ):
        Nitro(start(sealed), outside.connect)


@pytest.mark.slow
def test_debug_mode_that_the_image_allows_is_no_hardware_and_its_evidence_is_refused(
    sealed: Sealed, world: LiveWorld, tmp_path: Path
) -> None:
    with fake_enclave(tmp_path, world, debug=True, allow_debug=True) as outside:
        with pytest.raises(IsolationError, match="'hardware' is required"):
            Nitro(start(sealed, require="hardware"), outside.connect)
        enclave = Nitro(start(sealed), outside.connect)
        try:
            assert enclave.card.isolation.startswith("nitro in debug mode")
            assert not enclave.card.capabilities["measured"]
            evidence = enclave.evidence(bytes(NONCE_BYTES))
            failures = {step.name for step in judged(evidence, demanded(world, sealed)).failures}
            assert {"debug", "measurement"} <= failures
            measurements = {"nitro": (bytes(48).hex(),)}
            allowed = demanded(world, sealed, allow_debug=True, measurements=measurements)
            assert judged(evidence, allowed).passed, "control"
        finally:
            enclave.stop()


def test_a_bundle_that_was_changed_is_refused_inside(sealed: Sealed, world: LiveWorld, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sealed.path, tmp_path / "copy"))
    graph = next(copy.rglob("*.onnx"))
    data = graph.read_bytes()
    graph.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with fake_enclave(tmp_path, world) as outside:
        with pytest.raises(ChangedFileError, match=graph.name):
            Nitro(Launch(copy, [sealed.owner.public], sealed.key), outside.connect)
        wait_until(lambda: not outside.keeper._programs)


def test_without_vsock_address_or_enclave_it_says_what_is_missing(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="CID:PORT"):
        launch("nitro", start(sealed))

    def refused(*_: Any) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    with monkeypatch.context() as patched:
        patched.setattr("garrison.enclave.vsock.socket.socket", refused)
        with pytest.raises(IsolationError, match="this machine has no vsock"):
            launch("nitro", start(sealed, address="16:5005"))
    with pytest.raises(ConfigError, match="no secret heap"):
        launch("nitro", start(sealed, address="16:5005", secret_heap_bytes=1))
    with pytest.raises(ConfigError, match="one server process"):
        launch("nitro", start(sealed, address="16:5005", lines=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"isolation": "nitro"}, "--enclave CID:PORT"),
        ({"isolation": "process", "enclave": "16:5005"}, "nothing else does"),
        ({"isolation": "nitro", "enclave": "16:5005", "workers": 2}, "--isolation nitro takes one"),
        ({"isolation": "nitro", "enclave": "16:5005", "secret_heap": True}, "secret heap"),
    ],
)
def test_settings_that_cannot_be_are_refused(sealed: Sealed, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launch_all(Config(server=ServerConfig(**settings)), [sealed.path], [sealed.owner.public])


def answered(sealed: Sealed, said: Any) -> None:
    """Start with an enclave that says something and then no more."""
    ours, theirs = socket.socketpair()
    with theirs:
        talk = threading.Thread(target=said, args=(theirs,))
        talk.start()
        try:
            Nitro(start(sealed), lambda: ours)
        finally:
            talk.join()


def test_what_is_no_enclave_of_ours_is_told_apart(sealed: Sealed) -> None:
    def another_version(connection: socket.socket) -> None:
        guest_end(connection).send(Welcome(version="0", module="m", measurement="00", debug=False))

    with pytest.raises(IsolationError, match="does not answer as one of ours"):
        answered(sealed, lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises(IsolationError, match="does not answer as one of ours"):
        answered(sealed, lambda connection: connection.shutdown(socket.SHUT_RDWR))
    with pytest.raises(IsolationError, match="build the image anew"):
        answered(sealed, another_version)
