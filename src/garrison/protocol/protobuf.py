"""The wire form of protocol buffers, as much of it as gRPC messages need: a small strict reader, and a writer.

No library is used: what strangers send is read inside the enclave, where each line counts as trusted, and these few say all that can happen. Messages are
read where they lie; no tensor is copied.

What the standard calls valid and no writer of messages makes is refused: groups, a number in more bytes than it needs beyond ten, a single field
that stands twice (`Fields.one`). Fields that are not known are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from garrison.errors import LimitError, MalformedRequestError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_FIELDS = 4096
"""In one message, not counting those of messages within it. Longer lists of numbers stand in one packed field."""
MOST_NESTED_FIELDS = 16_384
"""In a message and all messages within it that are read, so that reading one takes no longer than computing on it."""
_MOST_VARINT_BYTES = 10
_LENGTHS = {FIXED64: 8, FIXED32: 4}
_SIGN, _ALL = 1 << 63, 1 << 64


class Field(NamedTuple):
    """One field of a message. A number stands in `start` where `wire` is VARINT; anything else lies from `start` to `end`."""

    number: int
    wire: int
    start: int
    end: int


class Fields:
    """The fields of one message.

    Args:
        data: holds the message.
        start, end: where.
        read: how many fields were read of the messages that this one stands in; None where it stands in none.

    Raises:
        MalformedRequestError: that is no message.
        LimitError: it has too many fields.
    """

    def __init__(self, data: bytes, start: int, end: int, read: list[int] | None = None) -> None:
        self.data = data
        self._found: dict[int, list[Field]] = {}
        self._read = [0] if read is None else read
        for field in scan(data, start, end):
            self._found.setdefault(field.number, []).append(field)
            self._read[0] += 1
            if self._read[0] > MOST_NESTED_FIELDS:
                raise LimitError(f"a message may have {MOST_NESTED_FIELDS} fields with those within it")

    def every(self, number: int, wire: int = BYTES) -> Sequence[Field]:
        """All fields of a number, in order."""
        found = self._found.get(number, ())
        if any(field.wire != wire for field in found):
            raise MalformedRequestError(f"field {number} has another wire type than it should")
        return found

    @property
    def numbers_found(self) -> frozenset[int]:
        """Which fields there are."""
        return frozenset(self._found)

    def any_of(self, number: int, wire: int) -> Sequence[Field]:
        """All fields of a list of numbers: packed, or each of its own wire type."""
        found = self._found.get(number, ())
        if any(field.wire not in (BYTES, wire) for field in found):
            raise MalformedRequestError(f"field {number} has another wire type than it should")
        return found

    def numbers(self, number: int) -> list[int]:
        """A repeated whole number, packed or not, as signed 64-bit numbers."""
        found: list[int] = []
        for field in self.any_of(number, VARINT):
            if field.wire == VARINT:
                found.append(signed(field.start))
            else:
                found += varints(self.data, field.start, field.end).view(np.int64).tolist()
        return found

    def one(self, number: int, wire: int = BYTES) -> Field | None:
        """A field that may stand once."""
        found = self.every(number, wire)
        if len(found) > 1:
            raise MalformedRequestError(f"field {number} stands twice")
        return found[0] if found else None

    def text(self, number: int) -> str:
        """A text that may stand once; "" where it does not."""
        field = self.one(number)
        return "" if field is None else text(self.data, field)

    def inner(self, field: Field) -> Fields:
        """The message in a field."""
        return Fields(self.data, field.start, field.end, self._read)


def text(data: bytes, field: Field) -> str:
    try:
        return data[field.start : field.end].decode()
    except UnicodeDecodeError as error:
        raise MalformedRequestError("a text is not UTF-8") from error


def scan(data: bytes, start: int, end: int) -> Iterator[Field]:
    """The fields of a message, in order; see `Fields`."""
    at, count = start, 0
    while at < end:
        count += 1
        if count > MOST_FIELDS:
            raise LimitError(f"a message may have {MOST_FIELDS} fields; write lists of numbers packed")
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise MalformedRequestError("a field has no number that there is")
        if wire == VARINT:
            value, at = _varint(data, at, end)
            yield Field(number, wire, value, value)
            continue
        length = _LENGTHS.get(wire)
        if length is None:
            if wire != BYTES:
                raise MalformedRequestError(f"field {number} has a wire type that is not read")
            length, at = _varint(data, at, end)
        if length > end - at:
            raise MalformedRequestError(f"field {number} is longer than what it stands in")
        yield Field(number, wire, at, at + length)
        at += length


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for place in range(at, min(at + _MOST_VARINT_BYTES, end)):
        byte = data[place]
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= _ALL:
                break
            return value, place + 1
        shift += 7
    raise MalformedRequestError("a number does not end, or is too large")


def signed(value: int) -> int:
    """A 64-bit number as it is meant in int32 and int64 fields."""
    return value - _ALL if value >= _SIGN else value


def varints(data: bytes, start: int, end: int) -> npt.NDArray[np.uint64]:
    """Packed numbers, all at once."""
    raw = np.frombuffer(data, np.uint8, end - start, start)
    lasts = np.flatnonzero(raw < 128)
    if raw.size and (not lasts.size or lasts[-1] != raw.size - 1):
        raise MalformedRequestError("a number does not end")
    firsts = np.concatenate([[0], lasts[:-1] + 1]) if lasts.size else lasts
    lengths = lasts - firsts + 1
    longest = int(lengths.max(initial=0))
    if longest > _MOST_VARINT_BYTES or (longest == _MOST_VARINT_BYTES and (raw[lasts[lengths == longest]] > 1).any()):
        raise MalformedRequestError("a number is too large")
    found = np.zeros(lasts.size, dtype=np.uint64)
    for k in range(longest):
        there = lengths > k
        found[there] |= (raw[firsts[there] + k] & np.uint8(127)).astype(np.uint64) << np.uint64(7 * k)
    return found


def varint(value: int) -> bytes:
    """A number as it is written; a negative one in ten bytes."""
    value %= _ALL
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def field(number: int, content: bytes) -> bytes:
    """A field that holds bytes, a text or a message; written also where it is empty."""
    return b"%b%b%b" % (varint(number << 3 | BYTES), varint(len(content)), content)


def string(number: int, content: str) -> bytes:
    """A text; nothing where it is empty, as the standard has it."""
    return field(number, content.encode()) if content else b""


def flag(number: int, *, value: bool) -> bytes:
    return varint(number << 3 | VARINT) + b"\1" if value else b""


def packed(number: int, values: Sequence[int]) -> bytes:
    """A list of whole numbers."""
    return field(number, b"".join(map(varint, values))) if values else b""
