"""Structured fields: read as another implementation reads them, written as it writes them, and nonsense refused."""

from __future__ import annotations

from typing import Any

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.protocol.structured import (
    MOST_CHARACTERS,
    MOST_MEMBERS,
    InnerList,
    Item,
    Token,
    read_dictionary,
    write_inner_list,
    write_item,
)

GOOD = [
    "",
    "a",
    "a;b;c=1",
    "a=1, b=-7,c=?0",
    'sig1=("@status" "content-digest";req);created=1618884473;keyid="a \\"b\\" \\\\";x=:AAE=:',
    'sig=( "a"   "b" );alg="ed25519"',
    "sig=()",
    'a="x",\tb=token/1:2;c=*t, a="twice"',
    "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
]
BAD = [
    *(
        "=1",
        "A=1",
        "a=",
        "a=1,",
        "a=1 b=2",
        "a,,b",
        'a="x',
        'a="\\x"',
        "a=:AA:",
        "a=:A-_=:",
        "a=?2",
        "a=(",
        'a=("b""c")',
    ),
    *(
        'a=("b" ',
        "a;",
        "a;B=1",
        "a=1234567890123456",
        "a=1.5",
        'a="\x7f"',
        "a=\xe4",
        "a\n=1",
        "a=1;b=(1)",
        "a=((1))",
        "\0",
    ),
]


def theirs(text: str) -> dict[str, Any]:
    found: Any = http_sf.parse(text.encode("latin-1"), tltype="dictionary")
    return dict(found)


def plain(member: Item | InnerList) -> Any:
    """In the other implementation's form: a pair of value and parameters."""
    if isinstance(member, InnerList):
        return [(bare(item.value), bares(item.parameters)) for item in member.items], bares(member.parameters)
    return bare(member.value), bares(member.parameters)


def bare(value: object) -> object:
    return http_sf.Token(str(value)) if isinstance(value, Token) else value


def bares(parameters: Any) -> dict[str, object]:
    return {name: bare(value) for name, value in parameters.items()}


@pytest.mark.parametrize("text", GOOD)
def test_it_reads_what_another_implementation_reads(text: str) -> None:
    found = read_dictionary(text)
    assert {key: plain(member) for key, member in found.items()} == {
        key: (list(value), dict(parameters)) if isinstance(value, list) else (value, dict(parameters))
        for key, (value, parameters) in theirs(text).items()
    }


@pytest.mark.parametrize("text", [text for text in GOOD if text])
def test_what_is_written_reads_back_the_same(text: str) -> None:
    for key, member in read_dictionary(text).items():
        written = write_inner_list(member) if isinstance(member, InnerList) else write_item(member)
        assert read_dictionary(f"{key}={written}") == {key: member}


@pytest.mark.parametrize("text", BAD)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_dictionary(text)


@given(st.text(max_size=60))
def test_nonsense_is_a_value_error_or_reads_back(text: str) -> None:
    try:
        found = read_dictionary(text)
    except ValueError:
        return
    for key, member in found.items():
        written = write_inner_list(member) if isinstance(member, InnerList) else write_item(member)
        assert read_dictionary(f"{key}={written}") == {key: member}


def test_it_is_bounded() -> None:
    assert read_dictionary(",".join(f"a{k}" for k in range(MOST_MEMBERS)))
    for long in (",".join(f"a{k}" for k in range(MOST_MEMBERS + 1)), "a" + ";b" * 2 + "c" * MOST_CHARACTERS):
        with pytest.raises(ValueError, match=r"more than|longer"):
            read_dictionary(long)


def test_a_string_that_cannot_stand_in_a_header_is_not_written() -> None:
    with pytest.raises(ValueError, match="printable"):
        write_item(Item("a\nb"))
