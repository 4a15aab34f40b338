"""Structured field values for HTTP (RFC 8941), as far as message signatures need them: dictionaries of items and of inner lists.

Strict and bounded: what is not in the grammar is a `ValueError`. Decimals are not read, because nothing here has any.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

MOST_CHARACTERS = 8_192
MOST_MEMBERS = 64
_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_STRING = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_INTEGER = re.compile(r"-?[0-9]{1,15}(?![0-9.])")
_BYTES = re.compile(r":([A-Za-z0-9+/=]*):")
_BOOLEAN = re.compile(r"\?([01])")
_TOKEN = re.compile(r"[A-Za-z*][A-Za-z0-9:/!#$%&'*+\-.^_`|~]*")
_COMMA = re.compile(r"[ \t]*,[ \t]*")
_SPACES = re.compile(r" *")


class Token(str):
    """A word that is no string: written without quotes."""

    __slots__ = ()


Bare = str | int | bool | bytes | Token
Parameters = Mapping[str, Bare]
_NONE: Parameters = MappingProxyType({})


class Item(NamedTuple):
    """A value with parameters."""

    value: Bare
    parameters: Parameters = _NONE


class InnerList(NamedTuple):
    """Items in parentheses, with parameters of their own."""

    items: tuple[Item, ...]
    parameters: Parameters = _NONE


Dictionary = dict[str, Item | InnerList]


def read_dictionary(text: str) -> Dictionary:
    """A dictionary. Of members with the same key the last one counts, as the RFC has it.

    Raises:
        ValueError: it is none, or too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"longer than {MOST_CHARACTERS} characters")
    reader = _Reader(text.strip(" "))
    found: Dictionary = {}
    while not reader.done:
        if found:
            reader.take(_COMMA)
        key = reader.take(_KEY)[0]
        found[key] = reader.member()
        if len(found) > MOST_MEMBERS:
            raise ValueError(f"more than {MOST_MEMBERS} members")
    return found


def write_item(item: Item) -> str:
    """An item as it stands in a header."""
    return _write_bare(item.value) + write_parameters(item.parameters)


def write_inner_list(found: InnerList) -> str:
    """An inner list as it stands in a header."""
    return f"({' '.join(map(write_item, found.items))}){write_parameters(found.parameters)}"


def write_parameters(parameters: Parameters) -> str:
    """Parameters, each behind a semicolon."""
    return "".join(f";{key}" if value is True else f";{key}={_write_bare(value)}" for key, value in parameters.items())


def _write_bare(value: Bare) -> str:
    match value:
        case bool():
            return f"?{int(value)}"
        case int():
            return str(value)
        case bytes():
            return f":{binascii.b2a_base64(value, newline=False).decode()}:"
        case Token():
            return str(value)
    if not (value.isascii() and value.isprintable()):
        raise ValueError("a string must be printable ASCII")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at >= len(self._text)

    def take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise ValueError(f"nothing that can be read at character {self._at}")
        self._at = found.end()
        return found

    def member(self) -> Item | InnerList:
        """What stands behind a key."""
        if not self._next("="):
            return Item(value=True, parameters=self._parameters())
        if not self._next("("):
            return self._item()
        items: list[Item] = []
        while True:
            spaces = self.take(_SPACES)[0]
            if self._next(")"):
                return InnerList(tuple(items), self._parameters())
            if items and not spaces:
                raise ValueError("items of a list are apart by a space")
            items.append(self._item())

    def _item(self) -> Item:
        return Item(self._bare(), self._parameters())

    def _parameters(self) -> dict[str, Bare]:
        found: dict[str, Bare] = {}
        while self._next(";"):
            self.take(_SPACES)
            key = self.take(_KEY)[0]
            found[key] = self._bare() if self._next("=") else True
            if len(found) > MOST_MEMBERS:
                raise ValueError(f"more than {MOST_MEMBERS} parameters")
        return found

    def _bare(self) -> Bare:
        match self._text[self._at : self._at + 1]:
            case '"':
                return re.sub(r"\\(.)", r"\1", self.take(_STRING)[1])
            case ":":
                return binascii.a2b_base64(self.take(_BYTES)[1], strict_mode=True)
            case "?":
                return self.take(_BOOLEAN)[1] == "1"
            case first if first.isdigit() or first == "-":
                return int(self.take(_INTEGER)[0])
        return Token(self.take(_TOKEN)[0])

    def _next(self, character: str) -> bool:
        if self._text.startswith(character, self._at):
            self._at += 1
            return True
        return False
