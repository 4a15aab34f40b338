"""The small reader and writer of protocol buffers: what the library writes is read, and no bytes do harm."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.errors import LimitError, MalformedRequestError
from garrison.protocol.protobuf import (
    BYTES,
    FIXED32,
    MOST_FIELDS,
    VARINT,
    Fields,
    field,
    flag,
    packed,
    scan,
    signed,
    string,
    varint,
    varints,
)

NUMBERS = [0, 1, 127, 128, 300, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def fields(data: bytes) -> Fields:
    return Fields(data, 0, len(data))


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_come_back(number: int) -> None:
    message = varint(1 << 3 | VARINT) + varint(number)
    assert [one.start for one in scan(message, 0, len(message))] == [number]
    assert varints(varint(number), 0, len(varint(number))).tolist() == [number]
    assert fields(message).numbers(1) == [signed(number)]


def test_packed_numbers_come_back_all_at_once() -> None:
    values = [*NUMBERS[:-2], -1, -(2**63)]
    data = packed(4, values)
    assert fields(data).numbers(4) == values
    one = fields(data).every(4)[0]
    assert varints(data, one.start, one.end).view(np.int64).tolist() == values
    assert packed(4, []) == b""
    assert varints(b"", 0, 0).size == 0


def test_texts_and_messages() -> None:
    data = (
        string(1, "größe") + field(2, string(1, "inner")) + flag(3, value=True) + flag(4, value=False) + string(5, "")
    )
    found = fields(data)
    assert found.text(1) == "größe"
    inner = found.one(2)
    assert inner is not None
    assert found.inner(inner).text(1) == "inner"
    assert found.numbers(3) == [1]
    assert found.numbers_found == {1, 2, 3}
    assert found.text(9) == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a\x05abc", "longer than"),
        (b"\x0a", "does not end"),
        (b"\xff" * 11, "does not end, or is too large"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "too large"),
        (b"\x0b\x0c", "wire type that is not read"),
        (b"\x00\x00", "no number"),
        (b"\x0d\x00\x00", "longer than"),
        (varint(2**29 << 3) + b"\x00", "no number"),
    ],
)
def test_what_is_no_message(data: bytes, words: str) -> None:
    with pytest.raises(MalformedRequestError, match=words):
        fields(data)


@pytest.mark.parametrize("data", [b"\x80", b"\xff" * 10 + b"\x01", b"\xff" * 9 + b"\x02", b"\x01\x80"])
def test_numbers_that_are_none(data: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        varints(data, 0, len(data))


def test_fields_that_may_stand_once() -> None:
    twice = string(1, "a") + string(1, "b")
    with pytest.raises(MalformedRequestError, match="stands twice"):
        fields(twice).text(1)
    assert [twice[one.start : one.end] for one in fields(twice).every(1)] == [b"a", b"b"]
    with pytest.raises(MalformedRequestError, match="another wire type"):
        fields(b"\x08\x01").text(1)
    with pytest.raises(MalformedRequestError, match="another wire type"):
        fields(b"\x0d\x01\x02\x03\x04").numbers(1)
    with pytest.raises(MalformedRequestError, match="another wire type"):
        fields(b"\x08\x01").any_of(1, FIXED32)
    with pytest.raises(MalformedRequestError, match="UTF-8"):
        fields(b"\x0a\x01\xff").text(1)


def test_many_fields_are_too_many() -> None:
    one = b"\x08\x01"
    assert len(fields(one * MOST_FIELDS).every(1, VARINT)) == MOST_FIELDS
    with pytest.raises(LimitError, match="packed"):
        fields(one * (MOST_FIELDS + 1))


def test_any_bytes_are_read_or_refused() -> None:
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(3000):
        data = rng.bytes(int(rng.integers(1, 40)))
        try:
            found = fields(data)
        except MalformedRequestError:
            continue
        read += 1
        for number in found.numbers_found:
            for one in found._found[number]:
                assert one.wire == VARINT or 0 <= one.start <= one.end <= len(data)
    assert read > 20, "control: some are messages"
    assert BYTES == 2


def test_messages_within_a_message_share_a_bound() -> None:
    inner = flag(1, value=True) * (MOST_FIELDS - 1)
    message = fields(b"".join(field(1, inner) for _ in range(5)))
    parts = message.every(1)
    for part in parts[:3]:
        message.inner(part)
    with pytest.raises(LimitError, match="with those within it"):
        message.inner(parts[3])
