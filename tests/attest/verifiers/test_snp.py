from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tests.attest.dcap_world import revocations
from tests.attest.snp_world import CHIP, OID, TCB, SnpWorld, integer, vcek_extensions
from tests.attest.worlds import DAY, NOW, Authority, change, failed, judge, make_evidence

from garrison.attest.evidence import Quote
from garrison.attest.policy import SnpPolicy, SnpTcb
from garrison.attest.verifiers.snp import REPORT_BYTES, SIGNED_BYTES, parse_report


def with_report(snp: SnpWorld, raw: bytes) -> list[str]:
    evidence = make_evidence(snp)
    return failed(judge(change(evidence, quote=change(evidence.quote, quote=raw)), snp.policy()))


def with_vcek(snp: SnpWorld, vcek: Authority, **fields: Any) -> list[str]:
    return failed(judge(make_evidence(snp, quote={"vcek": vcek, **fields}), snp.policy()))


def flips_missed(snp: SnpWorld, bits: list[int]) -> list[int]:
    evidence, policy, missed = make_evidence(snp), snp.policy(), []
    for bit in bits:
        raw = bytearray(evidence.quote.quote)
        raw[bit // 8] ^= 1 << bit % 8
        flipped = change(evidence, quote=change(evidence.quote, quote=bytes(raw)))
        if judge(flipped, policy).passed:
            missed.append(bit)
    return missed


def test_one_flipped_bit_in_any_byte_is_refused(snp: SnpWorld) -> None:
    """Every byte of the report, signed or not: the signature, and the zeros behind it."""
    assert flips_missed(snp, [8 * byte + byte % 8 for byte in range(REPORT_BYTES)]) == []
    assert failed(judge(make_evidence(snp), snp.policy())) == []


@pytest.mark.slow
def test_any_flipped_bit_of_the_signed_range_is_refused(snp: SnpWorld) -> None:
    assert flips_missed(snp, list(range(8 * SIGNED_BYTES))) == []


def test_one_flipped_bit_in_any_byte_of_the_vcek_is_refused(snp: SnpWorld) -> None:
    evidence, missed = make_evidence(snp), []
    for byte in range(len(snp.vcek.der)):
        raw = bytearray(snp.vcek.der)
        raw[byte] ^= 1 << byte % 8
        collateral = {**evidence.quote.collateral, "vcek": bytes(raw)}
        if judge(change(evidence, quote=change(evidence.quote, collateral=collateral)), snp.policy()).passed:
            missed.append(byte)
    assert missed == []


@pytest.mark.parametrize("name", ["bootloader", "tee", "snp", "microcode"])
def test_every_part_of_the_firmware_must_be_new_enough(snp: SnpWorld, name: str) -> None:
    level = getattr(TCB, name)
    newer = snp.policy(snp=SnpPolicy(least_tcb=change(TCB, **{name: level + 1})))
    assert failed(judge(make_evidence(snp), newer)) == ["tcb"]
    older = snp.policy(snp=SnpPolicy(least_tcb=change(TCB, **{name: level - 1})))
    assert failed(judge(make_evidence(snp), older)) == []


def test_a_policy_that_names_no_least_firmware_refuses(snp: SnpWorld) -> None:
    assert failed(judge(make_evidence(snp), snp.policy(snp=SnpPolicy()))) == ["tcb"]


def test_a_report_of_old_firmware_cannot_pass_with_the_certificate_of_new_firmware(snp: SnpWorld) -> None:
    """The VCEK is derived from the levels: what it is certified for must be what the report says, in both directions."""
    old = change(TCB, microcode=TCB.microcode - 5)
    assert with_vcek(snp, snp.certify(old)) == ["platform"]
    assert with_vcek(snp, snp.vcek, tcb=old) == ["platform", "tcb"]
    assert with_vcek(snp, snp.certify(old), tcb=old) == ["tcb"]


def test_the_certificate_of_another_processor_is_refused(snp: SnpWorld) -> None:
    assert with_vcek(snp, snp.certify(chip=CHIP[::-1])) == ["platform"]
    assert with_vcek(snp, snp.certify(chip=CHIP[:8])) == ["platform"], (
        "a short id is for processors that fill up with zeros"
    )
    assert with_vcek(snp, snp.certify(chip=b"\x04\x40" + CHIP)) == [], "as a DER octet string"


@pytest.mark.parametrize("oid", [f"{OID}.3.1", f"{OID}.3.8", f"{OID}.4"])
def test_a_certificate_that_lacks_an_extension_is_refused(snp: SnpWorld, oid: str) -> None:
    extensions = vcek_extensions(TCB, CHIP)
    del extensions[oid]
    assert with_vcek(snp, Authority("VCEK", snp.ask, snp.key, extensions=extensions)) == ["platform"]
    broken = vcek_extensions(TCB, CHIP) | {oid: b"\x02\x02" + integer(7)}
    assert with_vcek(snp, Authority("VCEK", snp.ask, snp.key, extensions=broken)) == ["platform"]


@pytest.mark.parametrize(
    ("fields", "step"),
    [
        ({"vmpl": 1}, "platform"),
        ({"policy": 1 << 18}, "platform"),
        ({"flags": 1 << 2}, "platform"),
        ({"flags": 7 << 2}, "platform"),
        ({"flags": 2}, "platform"),
        ({"algorithm": 2}, "signature"),
        ({"version": 1}, "format"),
        ({"version": 6}, "format"),
    ],
    ids=["level", "migration agent", "VLEK", "no key", "masked id", "algorithm", "version 1", "version 6"],
)
def test_a_signed_report_of_the_wrong_kind_is_refused(snp: SnpWorld, fields: dict[str, int], step: str) -> None:
    assert failed(judge(make_evidence(snp, quote=fields), snp.policy())) == [step]


@pytest.mark.parametrize("version", [2, 3, 5])
def test_versions(snp: SnpWorld, version: int) -> None:
    assert failed(judge(make_evidence(snp, quote={"version": version}), snp.policy())) == []


def test_the_policy_may_allow_a_lower_level(snp: SnpWorld) -> None:
    policy = snp.policy(snp=SnpPolicy(least_tcb=TCB, most_vmpl=2))
    assert failed(judge(make_evidence(snp, quote={"vmpl": 2}), policy)) == []
    assert failed(judge(make_evidence(snp, quote={"vmpl": 3}), policy)) == ["platform"]


def test_turin_orders_its_levels_differently(snp: SnpWorld) -> None:
    tcb = SnpTcb(fmc=1, bootloader=2, tee=3, snp=4, microcode=90)
    vcek = snp.certify(tcb, CHIP[:8], turin=True)
    evidence = make_evidence(snp, quote={"vcek": vcek, "tcb": tcb, "family": 0x1A})
    assert parse_report(evidence.quote.quote).reported == tcb
    assert failed(judge(evidence, snp.policy(snp=SnpPolicy(least_tcb=tcb)))) == []
    newer = SnpPolicy(least_tcb=change(tcb, fmc=2))
    assert failed(judge(evidence, snp.policy(snp=newer))) == ["tcb"]


def test_lengths(snp: SnpWorld) -> None:
    raw = make_evidence(snp).quote.quote
    for cut in (0, 1, SIGNED_BYTES, REPORT_BYTES - 1):
        assert with_report(snp, raw[:cut]) == ["format"]
    assert with_report(snp, raw + b"\0") == ["format"]
    assert with_report(snp, raw) == []


def test_a_chain_with_a_hole_or_in_the_wrong_order_is_refused(snp: SnpWorld) -> None:
    good = make_evidence(snp)
    ways = [
        {"vcek": snp.vcek.der, "ark": snp.ark.der},
        {"vcek": snp.vcek.der, "ask": snp.ark.der, "ark": snp.ask.der},
        {"vcek": snp.vcek.der, "ask": snp.ark.der, "ark": snp.ark.der},
        {"vcek": snp.ask.der, "ask": snp.ask.der, "ark": snp.ark.der},
    ]
    for collateral in ways:
        evidence = change(good, quote=change(good.quote, collateral=collateral))
        assert failed(judge(evidence, snp.policy())) == ["certificates"]


def test_the_report_of_another_processor_of_the_same_maker_is_refused(snp: SnpWorld) -> None:
    """The report's own key must have signed it, not just any that AMD certified."""
    other = Authority("VCEK", snp.ask, ec.generate_private_key(ec.SECP384R1()), extensions=vcek_extensions(TCB, CHIP))
    assert with_vcek(snp, other) == ["signature"]
    weak = Authority("VCEK", snp.ask, ec.generate_private_key(ec.SECP256R1()), extensions=vcek_extensions(TCB, CHIP))
    assert with_vcek(snp, weak) == ["signature"]


def test_a_missing_certificate_is_named(snp: SnpWorld) -> None:
    good = make_evidence(snp)
    bare = change(good, quote=Quote(technology="snp", quote=good.quote.quote))
    (step,) = judge(bare, snp.policy()).failures
    assert step.found == "no vcek, ask, ark"


def test_a_revoked_authority_is_refused(snp: SnpWorld) -> None:
    required = SnpPolicy(least_tcb=TCB, require_crl=True)
    serial = snp.ask.certificate.serial_number
    empty, full = revocations(snp.ark), revocations(snp.ark, serial)
    impostor = revocations(Authority("ARK", None, rsa.generate_private_key(65537, 2048), ca=1))
    cases = [(None, None, True), (None, required, False), (b"garbage", None, False)]
    cases += [(empty, required, True), (full, None, False), (full, required, False), (impostor, required, False)]
    for crl, policy, passes in cases:
        good = make_evidence(snp)
        collateral = good.quote.collateral | ({} if crl is None else {"crl": crl})
        evidence = change(good, quote=change(good.quote, collateral=collateral))
        report = judge(evidence, snp.policy() if policy is None else snp.policy(snp=policy))
        assert failed(report) == ([] if passes else ["certificates"])


def test_an_old_revocation_list_is_refused(snp: SnpWorld) -> None:
    good = make_evidence(snp)
    evidence = change(good, quote=change(good.quote, collateral=good.quote.collateral | {"crl": revocations(snp.ark)}))
    for days, steps in ((-11, ["certificates"]), (0, []), (21, ["certificates"])):
        report = judge(evidence, snp.policy(), now=NOW.timestamp() + days * DAY)
        assert [step for step in failed(report) if step != "keys"] == steps
