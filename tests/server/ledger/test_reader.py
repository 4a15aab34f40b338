"""Reading a ledger that somebody else has written: a line without an end must not fill the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.errors import LedgerError
from garrison.server.ledger import reader


def test_a_line_that_no_server_writes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"{}\n" + b"x" * 100 + b"\n")
    assert len(list(reader.lines_of(path))) == len(list(reader.lines_from(path))) == 2  # control
    monkeypatch.setattr(reader, "MOST_LINE_BYTES", 99)
    with pytest.raises(LedgerError, match="more than 99 bytes"):
        list(reader.lines_of(path))
    path.write_bytes(b"{}\n" + b"x" * 100)  # no end at all
    with pytest.raises(LedgerError, match="more than 99 bytes"):
        list(reader.lines_from(path))
    assert len(list(reader.lines_of(path))) == 1
