"""Against a folder of plain files; not run on hardware."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.attest.dcap_world import DcapWorld
from tests.attest.worlds import change, failed, judge, make_evidence

from garrison.enclave.quotes.gramine import MANIFEST_TEMPLATE, GramineQuoter
from garrison.errors import IsolationError


def test_a_quote_passes_the_verifier(tmp_path: Path) -> None:
    sgx = DcapWorld("sgx")
    evidence = make_evidence(sgx)
    data = evidence.expected_report_data()
    (tmp_path / "attestation_type").write_text("dcap")
    (tmp_path / "quote").write_bytes(evidence.quote.quote)
    quote = GramineQuoter(tmp_path, evidence.quote.collateral).quote(data)
    assert (tmp_path / "user_report_data").read_bytes() == data
    assert failed(judge(change(evidence, quote=quote), sgx.policy())) == []
    assert GramineQuoter(tmp_path).quote(data).collateral == {}
    with pytest.raises(IsolationError, match="other report data"):
        GramineQuoter(tmp_path).quote(bytes(64))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsolationError, match="attestation_type"):
        GramineQuoter(tmp_path)
    (tmp_path / "attestation_type").write_text("none")
    with pytest.raises(IsolationError, match=r"sgx\.remote_attestation"):
        GramineQuoter(tmp_path)
    (tmp_path / "attestation_type").write_text("dcap")
    with pytest.raises(IsolationError, match="no quote could be had"):
        GramineQuoter(tmp_path).quote(bytes(64))
    with pytest.raises(ValueError, match="64 bytes"):
        GramineQuoter(tmp_path).quote(b"")


def test_the_manifest_template_forbids_debug_and_asks_for_dcap() -> None:
    text = MANIFEST_TEMPLATE.read_text()
    assert "sgx.debug = false" in text
    assert 'sgx.remote_attestation = "dcap"' in text
    assert "allowed_files" not in text, "files that nobody measures"
    assert "insecure__use_cmdline_argv" not in text
    assert "insecure__use_host_env" not in text
