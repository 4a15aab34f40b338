"""Against a stand-in for the ioctl; not run on hardware."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path
from typing import Any

import cbor2
import pytest
from tests.attest.nitro_world import NitroWorld
from tests.attest.worlds import change, failed, judge, make_evidence

from garrison.enclave.quotes.nitro import NSM_IOCTL_RAW, RESPONSE_BYTES, NitroQuoter, NsmMessage
from garrison.errors import IsolationError


class FakeModule:
    """Reads the request from the caller's memory and writes the response there, as the kernel does."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: Any = None

    def __call__(self, descriptor: int, number: int, message: NsmMessage) -> int:
        assert number == NSM_IOCTL_RAW
        assert descriptor >= 0
        self.asked = cbor2.loads(ctypes.string_at(message.request.base, message.request.length))
        assert message.response.length == RESPONSE_BYTES
        ctypes.memmove(message.response.base, self.answer, len(self.answer))
        message.response.length = len(self.answer)
        return 0


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "nsm"
    path.touch()
    return path


def test_a_document_passes_the_verifier(device: Path) -> None:
    nitro = NitroWorld()
    evidence = make_evidence(nitro)
    data = evidence.expected_report_data()
    module = FakeModule(cbor2.dumps({"Attestation": {"document": evidence.quote.quote}}))
    quote = NitroQuoter(device, module).quote(data)
    assert module.asked == {"Attestation": {"user_data": data, "nonce": None, "public_key": None}}
    assert failed(judge(change(evidence, quote=quote), nitro.policy())) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (cbor2.dumps({"Error": "InvalidOperation"}), "InvalidOperation"),
        (cbor2.dumps({"Attestation": {}}), "no document"),
        (cbor2.dumps({"Attestation": 1}), "no document"),
        (cbor2.dumps([1]), "no document"),
        (b"", "no CBOR"),
        (b"\xa1", "no CBOR"),
    ],
)
def test_refusals_are_told(device: Path, answer: bytes, message: str) -> None:
    with pytest.raises(IsolationError, match=message):
        NitroQuoter(device, FakeModule(answer)).quote(bytes(64))


def test_the_real_ioctl_on_something_else(device: Path) -> None:
    with pytest.raises(IsolationError, match="ioctl") as caught:
        NitroQuoter(device).quote(bytes(64))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOTTY


def test_where_there_is_no_such_machine(tmp_path: Path, device: Path) -> None:
    with pytest.raises(IsolationError, match="Nitro enclave"):
        NitroQuoter(tmp_path / "none")
    with pytest.raises(ValueError, match="64 bytes"):
        NitroQuoter(device).quote(b"")


def test_the_number_is_the_kernels() -> None:
    """_IOWR(0x0A, 0, 32 bytes)."""
    assert ctypes.sizeof(NsmMessage) == 32
    assert NSM_IOCTL_RAW == (3 << 30) | (32 << 16) | (0x0A << 8)
