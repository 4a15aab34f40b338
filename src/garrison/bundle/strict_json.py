"""JSON that has exactly one reading: no duplicate keys, no unknown fields, no constants outside the standard.

A key given twice is read differently by different parsers, so that what one checks is not what another uses.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

import msgspec

T = TypeVar("T")


def decode_strict(data: bytes, kind: type[T]) -> T:
    """Read JSON into a struct.

    Args:
        data: UTF-8 text; its length must already be limited.
        kind: a msgspec type; its own strictness (unknown fields) applies.

    Raises:
        ValueError: not UTF-8, not JSON, a duplicate key, nested too deeply, or not of that type. The message is safe to show.
    """
    refuse_ambiguous(data)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def refuse_ambiguous(data: bytes) -> None:
    """Raise `ValueError` unless the data is one JSON text in which no object has the same key twice."""
    try:
        json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} is given twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
