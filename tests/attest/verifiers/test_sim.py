from __future__ import annotations

from typing import Any

import pytest
from tests.attest.worlds import change, failed, judge, make_evidence

from garrison.attest.evidence import Quote, Technology
from garrison.attest.policy import Policy
from garrison.attest.verifiers.sim import SimClaims, encode_quote
from garrison.crypto.signing import AnswerSigner
from garrison.enclave.quotes.sim import SimQuoter, source_measurement

ALLOWED = Policy(allow_simulated=True)


class SimWorld:
    technology: Technology = "sim"

    def quote(self, data: bytes, **changes: Any) -> Quote:
        return SimQuoter().quote(data)

    def policy(self, **changes: Any) -> Policy:
        return Policy(allow_simulated=True, **changes)


def test_simulation_is_refused_unless_allowed_in_so_many_words() -> None:
    evidence = make_evidence(SimWorld())
    assert failed(judge(evidence, Policy())) == ["technology"]
    assert failed(judge(evidence, Policy(technologies=("sim", "snp")))) == ["technology"]
    assert failed(judge(evidence, ALLOWED)) == []


def test_allowing_simulation_allows_nothing_else() -> None:
    for changes in ({"nonce": b"x" * 32}, {"guard": "ab" * 32}, {"manifest": b'{"name":"digits","version":3}'}):
        assert "report-data" in failed(judge(make_evidence(SimWorld(), **changes), ALLOWED))


def test_a_measurement_is_checked_where_one_is_listed() -> None:
    evidence = make_evidence(SimWorld())
    assert failed(judge(evidence, Policy(allow_simulated=True, measurements={"sim": ("ab" * 32,)}))) == ["measurement"]
    listed = Policy(allow_simulated=True, measurements={"sim": (source_measurement(),)})
    assert failed(judge(evidence, listed)) == []


def test_one_flipped_bit_in_any_byte_is_refused() -> None:
    evidence, missed = make_evidence(SimWorld()), []
    for byte in range(len(evidence.quote.quote)):
        raw = bytearray(evidence.quote.quote)
        raw[byte] ^= 1 << byte % 7
        if judge(change(evidence, quote=change(evidence.quote, quote=bytes(raw))), ALLOWED).passed:
            missed.append(byte)
    assert missed == []


def test_anyone_can_make_one() -> None:
    """The limit, written down: a program that is not Garrison passes, which is why the default refuses."""
    stranger = AnswerSigner()
    evidence = make_evidence(SimWorld())
    claims = SimClaims(
        report_data=evidence.expected_report_data(), measurement=source_measurement(), key=stranger.public_key
    )
    forged = change(evidence, quote=Quote(technology="sim", quote=encode_quote(claims, stranger.sign)))
    assert failed(judge(forged, ALLOWED)) == []


@pytest.mark.parametrize("quote", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"claims": 1, "signature": ""}'])
def test_garbage_is_refused(quote: bytes) -> None:
    evidence = change(make_evidence(SimWorld()), quote=Quote(technology="sim", quote=quote))
    assert failed(judge(evidence, ALLOWED)) == ["format"]
