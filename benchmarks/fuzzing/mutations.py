"""Seeded mutations: of bytes, of numbers in text, and of whole HTTP requests. The same seed gives the same requests."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

_NUMBERS = re.compile(rb"-?\d+(?:\.\d+)?")
_ODD_NUMBERS = (
    *(b"0", b"-1", b"1", b"255", b"256", b"65536", b"2147483648", b"4294967296", b"9223372036854775808", b"-9223372036854775809"),
    *(b"18446744073709551616", b"1e999", b"-1e999", b"1e-400", b"NaN", b"Infinity", b"0.1", b"00", b"null", b'"1"', b"[]", b"{}", b"9" * 400),
)  # fmt: skip
_ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\x80",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"{",
    b"}",
    b"[",
    b"]" * 50,
    b'"',
    b"\\",
    b"\\u0000",
    b":",
    b",",
    b"\x0a" * 20,
    b"A" * 300,
)
_ODD_FLOATS = (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\xff\xff", b"\x01\x00\x00\x00", b"\xff\xff\x7f\x7f")  # fmt: skip
_ODD_VALUES = (
    *(b"", b"0", b"-5", b"ten", b"999999999999999999999", b"1, 1", b"1;q=0.5", b"\x7f", b"\xc3\xa9", b"%00", b"a" * 5000, b"()[]{}", b"=?utf-8?q?x?="),
    *(b"identity", b"gzip", b"gzip, deflate", b"application/json", b"application/vnd.garrison.sealed", b"Bearer x", b"sig1=()", b"sha-256=:AAAA:"),
    *(b"text/plain; charset=utf-7", b"0.0000001", b"1e3", b"-1", b"nan"),
)  # fmt: skip
_NAMES = (
    *(b"Inference-Header-Content-Length", b"Garrison-Nonce", b"Request-Timeout", b"Authorization", b"Content-Encoding", b"Content-Type"),
    *(b"Accept-Signature", b"Content-Digest", b"Garrison-Work", b"traceparent", b"Accept", b"X-Forwarded-For", b"Cookie"),
)  # fmt: skip
_METHODS = (b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"BREW", b"get", b"PROPFIND")
_SEGMENTS = (
    b"..",
    b"%2e%2e",
    b"%00",
    b"versions",
    b"1",
    b"-1",
    b"99999999999999999999",
    b"infer",
    b"mlp",
    b"MLP",
    b"%ff",
    b"a" * 2000,
    b"models",
    b"ready",
    b"?x=1",
    b";x",
)
_UNSENDABLE = bytes(range(33)) + b"\x7f"
"""Bytes that no target of a request may hold: it would be another request."""


class Mutator:
    """Mutates bytes.

    Args:
        corpus: what is spliced in.
    """

    def __init__(self, rng: random.Random, corpus: Sequence[bytes]) -> None:
        self._rng, self._corpus = rng, corpus
        self._ways: tuple[Callable[[bytearray], None], ...] = (
            *(self._flip, self._overwrite, self._insert, self._delete, self._double, self._cut),
            *(self._splice, self._number, self._number, self._float),
        )

    def mutate(self, data: bytes) -> bytes:
        """One to four changes; never what came in."""
        found = bytearray(data)
        for _ in range(self._rng.choice((1, 1, 1, 2, 4))):
            self._rng.choice(self._ways)(found)
        if found == data:
            self._insert(found)
        return bytes(found)

    def _at(self, data: bytearray) -> int:
        return int(self._rng.random() * len(data))

    def _length(self) -> int:
        return 1 << int(self._rng.random() * 8)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._at(data)] ^= 1 << int(self._rng.random() * 8)

    def _overwrite(self, data: bytearray) -> None:
        at, odd = self._at(data), self._rng.choice(_ODD_BYTES)
        data[at : at + len(odd)] = odd

    def _insert(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._rng.choice(_ODD_BYTES)

    def _delete(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self._length()]

    def _double(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = data[at : at + self._length()]

    def _cut(self, data: bytearray) -> None:
        del data[self._at(data) :]

    def _splice(self, data: bytearray) -> None:
        other = self._rng.choice(self._corpus)
        at, start = self._at(data), int(self._rng.random() * (len(other) + 1))
        data[at : at + self._length()] = other[start : start + self._length()]

    def _number(self, data: bytearray) -> None:
        found = _NUMBERS.search(data, self._at(data))
        if found is not None:
            data[found.start() : found.end()] = self._rng.choice(_ODD_NUMBERS)

    def _float(self, data: bytearray) -> None:
        at = self._at(data)
        data[at : at + 4] = self._rng.choice(_ODD_FLOATS)


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request whose framing is right, whatever the rest is."""

    method: bytes
    path: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def wire(self) -> bytes:
        lines = [b"%b %b HTTP/1.1\r\nHost: x\r\n" % (self.method, self.path)]
        lines += [b"%b: %b\r\n" % header for header in self.headers]
        return b"".join((*lines, b"Content-Length: %d\r\n\r\n" % len(self.body), self.body))


class RequestMutator:
    """Mutates requests: most often the body, which reaches the code that reads strangers' tensors. The framing stays right, so that requests can be
    sent one after the other without waiting."""

    def __init__(self, rng: random.Random, corpus: Sequence[Request]) -> None:
        self._rng, self._corpus = rng, corpus
        self._bytes = Mutator(rng, [request.body for request in corpus])

    def next(self) -> Request:
        request, way = self._rng.choice(self._corpus), self._rng.random()
        if way < 0.7:
            return replace(request, body=self._bytes.mutate(request.body))
        if way < 0.85:
            return replace(request, headers=self._headers(request.headers))
        if way < 0.95:
            return replace(request, path=self._path(request.path))
        return replace(request, method=self._rng.choice(_METHODS), body=self._bytes.mutate(request.body))

    def _headers(self, headers: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
        found = list(headers)
        name, value = self._rng.choice(_NAMES), self._rng.choice(_ODD_VALUES)
        if found and self._rng.random() < 0.5:
            k = self._rng.randrange(len(found))
            found[k] = found[k][0], value
        else:
            found.insert(self._rng.randrange(len(found) + 1), (name, value))
        if self._rng.random() < 0.1:
            found.append(self._rng.choice(found))
        return tuple(found)

    def _path(self, path: bytes) -> bytes:
        parts = path.split(b"/")
        k = self._rng.randrange(1, len(parts))
        if self._rng.random() < 0.5:
            parts[k : k + 1] = [self._rng.choice(_SEGMENTS)]
        else:
            parts[k] = self._bytes.mutate(parts[k]).translate(None, _UNSENDABLE)
        return b"/".join(parts)
