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
        list(reader.lines_of(path))


@pytest.mark.parametrize("part", [1 << 20, 5, 3, 1])
def test_lines_end_where_zeros_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """However the file is cut into the parts that are read."""
    monkeypatch.setattr(reader, "_PART_BYTES", part)
    path = tmp_path / "ledger.jsonl"
    for rest, left in [
        (b"", b""),
        (bytes(9), b""),
        (b"ab", b"ab"),
        (b"ab" + bytes(9), b"ab"),
        (bytes(9) + b"ab\n{}\n", bytes(9) + b"ab\n{}\n"),
    ]:
        path.write_bytes(b"{1}\n{2}\n" + rest)
        assert list(reader.lines_from(path)) == [line.text for line in reader.lines_of(path)] == [b"{1}", b"{2}"]
        assert list(reader.lines_from(path, 4)) == [b"{2}"]
        assert reader.rest_of(path, 8) == left
