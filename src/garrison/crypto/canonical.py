"""Canonical JSON: equal values give equal bytes, so that they can be hashed and signed.

Keys sorted, no white space, UTF-8, floats in the shortest form that reads back. This is the subset of RFC 8785 that our own
structures need: numbers are Python ints and finite floats.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

_ENCODER = msgspec.json.Encoder(order="deterministic")


def canonical_json(value: Any) -> bytes:
    """The canonical bytes of a value made of msgspec structs, dicts, lists, strings and numbers."""
    return _ENCODER.encode(value)


def sha256_hex(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
