"""Reads UBJSON (draft 12), the binary form of JSON in which XGBoost saves models.

The format's own numbers are big-endian; XGBoost's typed arrays too. Bounded by the file's length: no count is believed that the bytes
left could not hold. Not read: high-precision numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from garrison.errors import ModelFileError

DEEPEST = 64
_NUMBERS = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_WORDS: dict[bytes, Any] = {b"Z": None, b"T": True, b"F": False}
_INTEGERS = frozenset(b"iUIlL")
_EMPTY = frozenset({b"Z", b"T", b"F"})
"""Values that take no bytes: typed containers of them could be as large as their count says, and are not read."""


def decode(data: bytes) -> Any:
    """The value that the bytes hold: dictionaries, lists, texts and numbers.

    Raises:
        ModelFileError: not UBJSON.
    """
    reader = _Reader(data)
    try:
        value = reader.value(reader.marker(), 0)
    except (IndexError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise ModelFileError(f"not UBJSON at byte {reader.at}") from error
    if reader.at != len(data):
        raise ModelFileError(f"{len(data) - reader.at} bytes follow the model")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, length: int) -> bytes:
        if not 0 <= length <= len(self._data) - self.at:
            raise ValueError("too short")
        self.at += length
        return self._data[self.at - length : self.at]

    def marker(self) -> bytes:
        found = self.take(1)
        while found == b"N":  # no-op
            found = self.take(1)
        return found

    def value(self, marker: bytes, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        if marker in _NUMBERS:
            dtype = np.dtype(_NUMBERS[marker])
            return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        if marker in _WORDS:
            return _WORDS[marker]
        if marker == b"S":
            return self.text()
        if marker == b"C":
            return self.take(1).decode("ascii")
        if marker == b"[":
            return self.array(depth)
        if marker == b"{":
            return self.object(depth)
        raise ValueError("unknown marker")

    def length(self) -> int:
        marker = self.take(1)
        if marker[0] not in _INTEGERS:
            raise ValueError("a length must be a whole number")
        found: int = self.value(marker, 0)
        if not 0 <= found <= len(self._data):
            raise ValueError("impossible length")
        return found

    def text(self) -> str:
        return self.take(self.length()).decode()

    def head(self) -> tuple[bytes | None, int | None]:
        """What stands before a container's content: the type of all values, and their count."""
        kind = None
        if self._data[self.at : self.at + 1] == b"$":
            self.take(1)
            kind = self.take(1)
            if kind in _EMPTY:
                raise ValueError("a container of values without bytes")
            if self._data[self.at : self.at + 1] != b"#":
                raise ValueError("a type needs a count")
        if self._data[self.at : self.at + 1] != b"#":
            return kind, None
        self.take(1)
        return kind, self.length()

    def array(self, depth: int) -> list[Any]:
        kind, count = self.head()
        if kind in _NUMBERS and count is not None:
            dtype = np.dtype(_NUMBERS[kind])
            numbers: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
            return numbers
        if count is not None:
            return [self.value(kind or self.marker(), depth + 1) for _ in range(count)]
        found: list[Any] = []
        while (marker := self.marker()) != b"]":
            found.append(self.value(marker, depth + 1))
        return found

    def object(self, depth: int) -> dict[str, Any]:
        kind, count = self.head()
        found: dict[str, Any] = {}
        left = count
        while left is None or left > 0:
            if left is None and self._data[self.at : self.at + 1] == b"}":
                self.take(1)
                break
            key = self.text()
            if key in found:
                raise ValueError("a key stands twice")
            found[key] = self.value(kind or self.marker(), depth + 1)
            left = None if left is None else left - 1
        return found
