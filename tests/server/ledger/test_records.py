"""What a line says, and in which bytes."""

from __future__ import annotations

import pytest

from garrison.server.ledger.records import Answers, Chain, Entry, read_body, write_entries

PLAIN = Entry("alice", 1, request="a" * 64, answer="b" * 64, nonce="n")
TOLD = Entry('b "\u00e9"', 0, code="request.input", replaced=2, distinct=1, shadow={"b": 1, "a": 2}, receipt="cd")


@pytest.mark.parametrize("entries", [(PLAIN,), (PLAIN, TOLD, PLAIN), ()])
def test_entries_that_were_written_before_make_the_same_line(entries: tuple[Entry, ...]) -> None:
    whole, parts, other = Chain(7), Chain(7), Chain(7)
    line = whole.add(Answers(7, 12.345678, "mlp", 2, entries))
    assert parts.add_answers(12.345678, "mlp", 2, write_entries(entries), len(entries)) == line
    assert (parts.seq, parts.head) == (whole.seq, whole.head) == (7 + len(entries), whole.head)
    assert other.add_answers(12.345678, "mlp", 2, write_entries((TOLD,)), len(entries)) != line  # control
    read = read_body(Chain(7).follow(line[:-1]))
    assert isinstance(read, Answers)
    assert read.entries == entries
