from __future__ import annotations

from pathlib import Path

from garrison.attest.evidence import KeySet, report_data
from garrison.enclave.quotes import QUOTERS, make_quoter
from garrison.enclave.quotes.sim import SimQuoter, source_measurement

DATA = report_data(KeySet(suite="s", hpke=b"h", signing=b"s" * 32, epoch=1, expires=1), b"n" * 32, "m", "g", "o")


def test_every_quoter_has_its_own_key_and_the_same_measurement() -> None:
    first, second = SimQuoter(), SimQuoter()
    assert first.technology == first.quote(DATA).technology == "sim"
    assert first.quote(DATA) == first.quote(DATA)
    assert first.quote(DATA) != second.quote(DATA)
    assert source_measurement().encode() in first.quote(DATA).quote
    assert source_measurement().encode() in second.quote(DATA).quote


def test_the_measurement_covers_names_and_bytes_of_the_sources(tmp_path: Path) -> None:
    found = set()
    for n, (name, text) in enumerate([("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", "x = 1"), ("sub/a.py", "x = 1")]):
        file = tmp_path / str(n) / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        found.add(source_measurement(tmp_path / str(n)))
    assert len(found) == 4
    same = tmp_path / "same"
    same.mkdir()
    (same / "a.py").write_text("x = 1")
    (same / "a.pyc").write_text("not a source")
    assert source_measurement(same) in found


def test_the_registry_makes_it() -> None:
    assert isinstance(make_quoter("sim"), SimQuoter)
    assert set(QUOTERS) == {"sim", "snp", "tdx", "sgx", "nitro"}
