"""Against a folder made like the kernel's; not run on hardware."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path
from typing import Any

import pytest
from tests.attest.dcap_world import DcapWorld
from tests.attest.snp_world import SnpWorld
from tests.attest.worlds import change, failed, judge, make_evidence

from garrison.attest.policy import Policy
from garrison.enclave.quotes.tsm import SnpQuoter, TdxQuoter, parse_certificates
from garrison.errors import IsolationError

GUIDS = {
    "vcek": "63da758d-e664-4564-adc5-f4b93be8accd",
    "vlek": "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
    "ask": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "ark": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
}


def table(certificates: dict[str, bytes]) -> bytes:
    at = 24 * (len(certificates) + 1)
    head, body = b"", b""
    for name, data in certificates.items():
        head += struct.pack("<16sII", uuid.UUID(GUIDS[name]).bytes_le, at + len(body), len(data))
        body += data
    return head + bytes(24) + body


class FakeKernel:
    """Fills a new folder with files, and takes them away with it."""

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.written: list[bytes] = []

    def make(self, entry: Path) -> None:
        entry.mkdir()
        for name, data in self.files.items():
            (entry / name).write_bytes(data)

    def remove(self, entry: Path) -> None:
        self.written.append((entry / "inblob").read_bytes())
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()


@pytest.fixture(scope="module")
def snp() -> SnpWorld:
    return SnpWorld()


def kernel_of(snp: SnpWorld, data: bytes, **files: bytes) -> FakeKernel:
    return FakeKernel(**({"provider": b"sev_guest\n", "outblob": snp.quote(data).quote} | files))


def test_a_report_and_the_hosts_certificates_pass_the_verifier(snp: SnpWorld, tmp_path: Path) -> None:
    evidence = make_evidence(snp)
    data = evidence.expected_report_data()
    kernel = kernel_of(snp, data, auxblob=table({**snp.collateral(), "vlek": b"another"}))
    quote = SnpQuoter(tmp_path, make=kernel.make, remove=kernel.remove).quote(data)
    assert kernel.written == [data]
    assert list(tmp_path.iterdir()) == [], "the folder is taken away again"
    assert set(quote.collateral) == {"vcek", "ask", "ark"}
    assert failed(judge(change(evidence, quote=quote), snp.policy())) == []
    assert failed(judge(change(evidence, quote=quote), Policy())) == ["certificates"]


def test_a_host_that_gives_no_certificates(snp: SnpWorld, tmp_path: Path) -> None:
    data = make_evidence(snp).expected_report_data()
    for files in ({}, {"auxblob": b""}):
        kernel = kernel_of(snp, data, **files)
        assert SnpQuoter(tmp_path, make=kernel.make, remove=kernel.remove).quote(data).collateral == {}


def test_tdx(tmp_path: Path) -> None:
    tdx = DcapWorld("tdx")
    evidence = make_evidence(tdx)
    data = evidence.expected_report_data()
    kernel = FakeKernel(provider=b"tdx_guest\n", outblob=evidence.quote.quote)
    bare = TdxQuoter(tmp_path, make=kernel.make, remove=kernel.remove).quote(data)
    assert bare.collateral == {}
    assert failed(judge(change(evidence, quote=bare), tdx.policy())) == ["certificates"]
    given = evidence.quote.collateral
    quote = TdxQuoter(tmp_path, given, make=kernel.make, remove=kernel.remove).quote(data)
    assert failed(judge(change(evidence, quote=quote), tdx.policy())) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"provider": b"tdx_guest\n"}, "sev_guest"),
        ({"outblob": b"short"}, "other report data"),
        ({"auxblob": struct.pack("<16sII", uuid.UUID(GUIDS["ask"]).bytes_le, 24, 100)}, "outside it"),
    ],
)
def test_what_is_wrong_is_named(snp: SnpWorld, tmp_path: Path, files: dict[str, Any], message: str) -> None:
    data = make_evidence(snp).expected_report_data()
    kernel = kernel_of(snp, data, **({"inblob": b""} | files))
    with pytest.raises(IsolationError, match=message):
        SnpQuoter(tmp_path, make=kernel.make, remove=kernel.remove).quote(data)
    assert list(tmp_path.iterdir()) == []


def test_another_callers_report_is_noticed(snp: SnpWorld, tmp_path: Path) -> None:
    kernel = kernel_of(snp, bytes(64))
    with pytest.raises(IsolationError, match="other report data"):
        SnpQuoter(tmp_path, make=kernel.make, remove=kernel.remove).quote(b"x" * 64)


def test_where_there_is_no_such_machine(tmp_path: Path) -> None:
    with pytest.raises(IsolationError, match="configfs-tsm"):
        SnpQuoter(tmp_path / "none")
    with pytest.raises(IsolationError, match="no quote could be had"):
        SnpQuoter(tmp_path).quote(bytes(64))
    with pytest.raises(ValueError, match="64 bytes"):
        SnpQuoter(tmp_path).quote(bytes(63))


@pytest.mark.parametrize("raw", [b"", b"x" * 23, bytes(24), b"\xff" * 16 + bytes(8)])
def test_tables_without_certificates(raw: bytes) -> None:
    assert parse_certificates(raw) == {}
