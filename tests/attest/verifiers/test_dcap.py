from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from tests.attest.dcap_world import MRTD, RTMR, DcapWorld, when
from tests.attest.worlds import DAY, KEYS, NOW, World, change, failed, judge, make_evidence

from garrison.attest.evidence import Evidence
from garrison.attest.policy import DcapPolicy
from garrison.errors import MissingExtraError

HEADER = 48


@pytest.fixture(params=["sgx", "tdx"])
def dcap(request: pytest.FixtureRequest, worlds: dict[str, World]) -> DcapWorld:
    found = worlds[request.param]
    assert isinstance(found, DcapWorld)
    return found


def with_quote(evidence: Evidence, raw: bytes) -> Evidence:
    changed: Evidence = change(evidence, quote=change(evidence.quote, quote=raw))
    return changed


def with_lists(evidence: Evidence, edit: Callable[[dict[str, Any]], object]) -> Evidence:
    lists = json.loads(evidence.quote.collateral["dcap"])
    edit(lists)
    collateral = {**evidence.quote.collateral, "dcap": json.dumps(lists).encode()}
    changed: Evidence = change(evidence, quote=change(evidence.quote, collateral=collateral))
    return changed


def test_one_flipped_bit_in_any_byte_of_the_signed_report_is_refused(dcap: DcapWorld) -> None:
    evidence, policy, missed = make_evidence(dcap), dcap.policy(), []
    for byte in range(HEADER + (584 if dcap.tdx else 384)):
        raw = bytearray(evidence.quote.quote)
        raw[byte] ^= 1 << byte % 8
        if judge(with_quote(evidence, bytes(raw)), policy).passed:
            missed.append(byte)
    assert missed == []


@pytest.mark.parametrize("status", ["OutOfDate", "SWHardeningNeeded", "ConfigurationNeeded"])
def test_an_old_level_is_refused_unless_the_policy_takes_it(dcap: DcapWorld, status: str) -> None:
    evidence = make_evidence(dcap, quote={"status": status})
    assert failed(judge(evidence, dcap.policy())) == ["tcb"]
    taken = dcap.policy(dcap=DcapPolicy(statuses=("UpToDate", status)))
    assert failed(judge(evidence, taken)) == []


def test_a_revoked_level_is_refused_even_where_the_policy_takes_it(dcap: DcapWorld) -> None:
    evidence = make_evidence(dcap, quote={"status": "Revoked"})
    assert failed(judge(evidence, dcap.policy(dcap=DcapPolicy(statuses=("Revoked",))))) == ["tcb"]


@pytest.mark.parametrize("days", [-11, 21])
def test_collateral_out_of_its_time_is_refused(dcap: DcapWorld, days: int) -> None:
    evidence = make_evidence(dcap, bound={"keys": _long(dcap)}, keys=_long(dcap))
    policy = dcap.policy(most_key_seconds=2**41)
    assert failed(judge(evidence, policy, now=NOW.timestamp() + days * DAY))[0] in {"certificates", "tcb"}
    assert failed(judge(evidence, policy, now=NOW.timestamp() + DAY)) == []


def _long(dcap: DcapWorld) -> Any:
    return change(KEYS, expires=2**40)


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_intels_statements_are_signed(dcap: DcapWorld, name: str) -> None:
    evidence = make_evidence(dcap)
    later = with_lists(evidence, lambda lists: lists.update({name: lists[name].replace(when(20), when(25))}))
    assert failed(judge(later, dcap.policy()))
    same = with_lists(evidence, lambda lists: lists.update({name: lists[name]}))
    assert failed(judge(same, dcap.policy())) == []


def test_the_statements_of_another_world_are_refused(dcap: DcapWorld) -> None:
    kind: Any = dcap.technology
    other = make_evidence(DcapWorld(kind))
    evidence = make_evidence(dcap)
    mixed = change(evidence, quote=change(evidence.quote, collateral=other.quote.collateral | {"root": dcap.root.der}))
    assert failed(judge(mixed, dcap.policy()))


def test_a_root_of_our_own_must_be_there_and_be_the_pinned_one(dcap: DcapWorld) -> None:
    evidence = make_evidence(dcap)
    for root in (None, b"garbage", DcapWorld("sgx").root.der):
        collateral = {"dcap": evidence.quote.collateral["dcap"]} | ({} if root is None else {"root": root})
        changed = change(evidence, quote=change(evidence.quote, collateral=collateral))
        assert failed(judge(changed, dcap.policy())) == ["certificates"]


def test_tdx_measures_the_system_and_not_the_firmware_alone(worlds: dict[str, World]) -> None:
    tdx = worlds["tdx"]
    for listed in (MRTD.hex(), ":".join([MRTD.hex(), RTMR.hex(), RTMR.hex(), *["00" * 48] * 2])):
        assert failed(judge(make_evidence(tdx), tdx.policy(measurements={"tdx": (listed,)}))) == ["measurement"]
    assert failed(judge(make_evidence(tdx), tdx.policy())) == []


def test_cuts_are_refused(dcap: DcapWorld) -> None:
    evidence = make_evidence(dcap)
    raw = evidence.quote.quote
    for cut in (0, 1, 47, 48, 400, 700, len(raw) - 1):
        assert failed(judge(with_quote(evidence, raw[:cut]), dcap.policy())) == ["format"]
    assert failed(judge(with_quote(evidence, raw + bytes(70_000)), dcap.policy())) == ["format"]


@pytest.mark.parametrize("lists", [b"", b"{}", b"\xff", b"[]", b"null"])
def test_collateral_that_cannot_be_read_is_refused(dcap: DcapWorld, lists: bytes) -> None:
    evidence = make_evidence(dcap)
    collateral = {**evidence.quote.collateral, "dcap": lists}
    assert failed(judge(change(evidence, quote=change(evidence.quote, collateral=collateral)), dcap.policy())) == [
        "certificates"
    ]


def test_without_the_extra_it_is_named(dcap: DcapWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = make_evidence(dcap)
    monkeypatch.setitem(sys.modules, "dcap_qvl", None)
    with pytest.raises(MissingExtraError, match=r"garrison\[attest\]"):
        judge(evidence, dcap.policy())
