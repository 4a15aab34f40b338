"""Letters: what stands inside a sealed message, in one form each, padded so that its length tells little. Pure functions over bytes.

    letter    length of head, 4 bytes | length of body, 4 bytes | head (MessagePack) | body | zeros up to the bucket

All lengths are big endian.

**What the length tells.** A letter is padded to the next bucket: 1 KiB at least, then eight steps between a power of two and the next
(1152, 1280, ... 2048, 2304, ...), which costs at most 1/8. So a length tells the size of the content to within 1/8, and whoever
knows the model learns about how many rows were asked, and whether the answer was longer than a refusal. Everything up to 1 KiB
looks the same.

Invariant: decoding is strict. Each letter has one form: lengths that fill its bucket, zeros after the body, exactly the known fields.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

LEAST_BUCKET = 1024
_STEPS_BITS = 3
_LENGTHS = struct.Struct(">II")

Head = TypeVar("Head", bound=msgspec.Struct)
_ENCODER = msgspec.msgpack.Encoder()


def bucket(length: int) -> int:
    """The padded length: the next of 1024, and eight steps between a power of two and the next one from there."""
    if length <= LEAST_BUCKET:
        return LEAST_BUCKET
    step = 1 << ((length - 1).bit_length() - 1 - _STEPS_BITS)
    return -(-length // step) * step


def write_letter(head: msgspec.Struct, body: bytes) -> bytes:
    """Head and body as a letter."""
    encoded = _ENCODER.encode(head)
    length = _LENGTHS.size + len(encoded) + len(body)
    return b"".join((_LENGTHS.pack(len(encoded), len(body)), encoded, body, bytes(bucket(length) - length)))


def read_letter(letter: bytes, decoder: msgspec.msgpack.Decoder[Head]) -> tuple[Head, bytes]:
    """Head and body of a letter.

    Raises:
        ValueError: it is not in its one form.
    """
    if len(letter) < _LENGTHS.size:
        raise ValueError("it is too short")
    head_bytes, body_bytes = _LENGTHS.unpack_from(letter)
    body_at = _LENGTHS.size + head_bytes
    end = body_at + body_bytes
    if end > len(letter) or bucket(end) != len(letter):
        raise ValueError(f"its lengths do not fill {len(letter)} bytes")
    if letter.count(b"\0", end) != len(letter) - end:
        raise ValueError("its padding is not zero")
    encoded = letter[_LENGTHS.size : body_at]
    try:
        head = decoder.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError("its head is not what it should be") from error
    if _ENCODER.encode(head) != encoded:
        raise ValueError("its head is not in its one form")
    return head, letter[body_at:end]
