from __future__ import annotations

import sys

import pytest

from garrison.datasets import convert
from garrison.datasets.archives import WrongBytesError
from garrison.errors import MissingExtraError


def test_line_ends() -> None:
    assert convert.plain_line_ends(b"1,2\r\n3,4\r\n") == b"1,2\n3,4\n"


def test_what_is_no_xz_file() -> None:
    with pytest.raises(WrongBytesError, match="does not decompress"):
        convert.frame(b"plain")


def test_what_is_no_r_data() -> None:
    pytest.importorskip("rdata")
    with pytest.raises(WrongBytesError, match="R data cannot be read"):
        convert.letters(b"RDX3\nnothing")


def test_without_rdata_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(MissingExtraError, match=r"garrison\[data\]"):
        convert.spam(b"")
