"""Real evidence from public repositories. None of it was made over our report data, so `report-data` always fails; the rest is real."""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
from pathlib import Path
from typing import Any

import cbor2
import pytest
from tests.attest import vectors
from tests.attest.worlds import DAY, GUARD, KEYS, MANIFEST, NONCE, OWNER, change, failed, judge

from garrison.attest.evidence import Evidence, Quote
from garrison.attest.policy import DcapPolicy, Policy, SnpPolicy, SnpTcb
from garrison.attest.report import Report
from garrison.attest.verifiers.nitro import AWS_ROOTS
from garrison.attest.verifiers.snp import AMD_ROOTS
from garrison.crypto.canonical import sha256_hex

OURS = {"measurement", "report-data", "owner"}
"""What fails in any case: nothing is listed, and the evidence is not ours."""
SNP_TIME = dt.datetime(2023, 1, 1, tzinfo=dt.UTC).timestamp()


@pytest.fixture
def folder() -> Path:
    return vectors.folder()


def appraise(quote: Quote, now: float, policy: Policy | None = None) -> Report:
    keys = change(KEYS, expires=int(now) + 3600)
    evidence = Evidence(
        quote=quote, keys=keys, nonce=NONCE, model="digits", version=3, manifest=MANIFEST, guard=GUARD, owner=OWNER
    )
    return judge(evidence, policy or Policy(), now=now)


def snp_quote(folder: Path) -> Quote:
    ask, ark = (folder / "snp/ask_ark_milan.pem").read_bytes().split(b"-----END CERTIFICATE-----\n")[:2]
    end = b"-----END CERTIFICATE-----\n"
    collateral = {"vcek": (folder / "snp/vcek.testcer").read_bytes(), "ask": ask + end, "ark": ark + end}
    return Quote(technology="snp", quote=(folder / "snp/attestation.bin").read_bytes(), collateral=collateral)


def test_snp_holds_and_its_debug_bit_is_refused(folder: Path) -> None:
    least = SnpTcb(bootloader=2, tee=0, snp=5, microcode=68)
    real = Policy(snp=SnpPolicy(least_tcb=least))
    report = appraise(snp_quote(folder), SNP_TIME, real)
    assert set(failed(report)) == OURS | {"debug"}
    statuses = {step.name: step.status for step in report.steps}
    assert {statuses[name] for name in ("format", "certificates", "signature", "platform", "tcb")} == {"passed"}
    listed = change(real, allow_debug=True, measurements={"snp": (report.measurement,)})
    assert failed(appraise(snp_quote(folder), SNP_TIME, listed)) == ["report-data", "owner"]


def test_snp_of_a_level_below_the_policys_is_refused(folder: Path) -> None:
    assert "tcb" in failed(appraise(snp_quote(folder), SNP_TIME))
    newer = Policy(snp=SnpPolicy(least_tcb=SnpTcb(bootloader=2, tee=0, snp=5, microcode=69)))
    assert "tcb" in failed(appraise(snp_quote(folder), SNP_TIME, newer))


def test_snp_with_any_byte_changed_is_refused_by_its_signature(folder: Path) -> None:
    quote, good = snp_quote(folder), {"signature", "platform", "format"}
    for byte in range(0, 0x2A0, 7):
        raw = bytearray(quote.quote)
        raw[byte] ^= 1
        assert set(failed(appraise(change(quote, quote=bytes(raw)), SNP_TIME))) & good, byte


def dcap(folder: Path, name: str) -> tuple[dict[str, bytes], float]:
    lists = (folder / f"dcap/{name}_collateral.json").read_bytes()
    issued = dt.datetime.fromisoformat(json.loads(json.loads(lists)["tcb_info"])["issueDate"])
    return {"dcap": lists}, issued.timestamp() + DAY


def dcap_quote(folder: Path, name: str, technology: Any) -> tuple[Quote, float]:
    collateral, now = dcap(folder, name)
    return Quote(technology=technology, quote=(folder / "dcap" / name).read_bytes(), collateral=collateral), now


def test_tdx_holds(folder: Path) -> None:
    quote, now = dcap_quote(folder, "tdx_quote", "tdx")
    report = appraise(quote, now)
    assert set(failed(report)) == OURS
    listed = Policy(measurements={"tdx": (report.measurement,)})
    assert failed(appraise(quote, now, listed)) == ["report-data", "owner"]


def test_sgx_that_needs_configuration_is_refused_by_default(folder: Path) -> None:
    quote, now = dcap_quote(folder, "sgx_quote", "sgx")
    report = appraise(quote, now)
    assert set(failed(report)) == OURS | {"tcb"}
    (step,) = [step for step in report.failures if step.name == "tcb"]
    assert step.found.startswith("ConfigurationAndSWHardeningNeeded")
    taken = Policy(
        dcap=DcapPolicy(statuses=("ConfigurationAndSWHardeningNeeded",)), measurements={"sgx": (report.measurement,)}
    )
    assert failed(appraise(quote, now, taken)) == ["report-data", "owner"]


def test_the_outdated_tdx_quote_does_not_verify(folder: Path) -> None:
    quote, now = dcap_quote(folder, "tdx_quote_outdated", "tdx")
    anything = Policy(dcap=DcapPolicy(statuses=("UpToDate", "OutOfDate", "Revoked")))
    report = appraise(quote, now, anything)
    assert failed(report) == ["tcb"]
    assert report.measurement == ""


@pytest.mark.parametrize(("name", "technology"), [("tdx_quote", "tdx"), ("sgx_quote", "sgx")])
def test_todays_clock_finds_the_lists_expired(folder: Path, name: str, technology: str) -> None:
    quote, _ = dcap_quote(folder, name, technology)
    report = appraise(quote, time.time())
    assert failed(report) == ["certificates"]
    assert "Expired" in report.failures[0].found


@pytest.mark.parametrize(("name", "technology"), [("tdx_quote", "tdx"), ("sgx_quote", "sgx")])
def test_a_changed_report_does_not_verify(folder: Path, name: str, technology: str) -> None:
    quote, now = dcap_quote(folder, name, technology)
    for byte in range(48, 48 + 384, 16):
        raw = bytearray(quote.quote)
        raw[byte] ^= 1
        assert set(failed(appraise(change(quote, quote=bytes(raw)), now))) <= {"signature", "debug", "format", "tcb"}


def nitro_quote(folder: Path, name: str) -> tuple[Quote, float]:
    raw = (folder / "nitro" / name).read_bytes()
    raw = base64.b64decode(raw) if "base64" in name else raw
    made = cbor2.loads(cbor2.loads(raw)[2])["timestamp"] / 1000
    return Quote(technology="nitro", quote=raw), made


def test_nitro_holds(folder: Path) -> None:
    quote, made = nitro_quote(folder, "valid-attestation-doc-bytes")
    assert dt.datetime.fromtimestamp(made, dt.UTC).date() == dt.date(2022, 10, 13)
    report = appraise(quote, made + 5)
    assert set(failed(report)) == OURS
    listed = Policy(measurements={"nitro": (report.measurement,)})
    assert failed(appraise(quote, made + 5, listed)) == ["report-data", "owner"]


@pytest.mark.parametrize("name", ["valid-attestation-doc-base64", "debug-mode-attestation-doc-bytes"])
def test_nitro_from_debug_enclaves_is_signed_and_refused(folder: Path, name: str) -> None:
    quote, made = nitro_quote(folder, name)
    report = appraise(quote, made + 5)
    assert set(failed(report)) == OURS | {"debug"}
    assert {step.name for step in report.steps if step.status == "passed"} >= {"certificates", "signature"}


def test_nitro_leaves_live_three_hours(folder: Path) -> None:
    quote, made = nitro_quote(folder, "valid-attestation-doc-bytes")
    assert failed(appraise(quote, made + 4 * 3600)) == ["certificates"]
    assert "certificates" not in failed(appraise(quote, made + 2 * 3600))


def test_the_pinned_roots_are_the_vendors(folder: Path) -> None:
    ark = snp_quote(folder).collateral["ark"]
    pem = (folder / "nitro/nitro.pem").read_bytes()
    for data, pinned in ((ark, AMD_ROOTS), (pem, AWS_ROOTS)):
        der = base64.b64decode(b"".join(data.split(b"-----")[2].split()))
        assert sha256_hex(der) in pinned
