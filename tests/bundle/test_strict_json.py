from __future__ import annotations

import msgspec
import pytest

from garrison.bundle.strict_json import decode_strict, refuse_ambiguous


class Point(msgspec.Struct, forbid_unknown_fields=True):
    x: int
    y: int = 0


def test_one_reading_is_read() -> None:
    assert decode_strict(b'{"x": 1, "y": 2}', Point) == Point(1, 2)
    refuse_ambiguous(b'{"a": {"x": 1}, "b": {"x": 1}, "c": [1e5, "\\ud83d\\ude00"]}')


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{} {}",
        b'{"x": 1, "x": 1}',
        b'{"x": 1, "\\u0078": 2}',
        b'{"y": [{"k": 1, "k": 2}]}',
        b'{"x": NaN}',
        b'{"x": -Infinity}',
        b"\xef\xbb\xbf{}",
        b"\xff{}",
        "{}".encode("utf-16"),
        b"[" * 200_000,
        b"1" * 10_000,
    ],
)
def test_two_readings_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        refuse_ambiguous(data)


@pytest.mark.parametrize(
    "data", [b'{"x": 1, "z": 1}', b'{"x": "1"}', b'{"y": 1}', b"[]", b'{"x": 1.5}', b'{"x": "\\ud800"}']
)
def test_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_strict(data, Point)
