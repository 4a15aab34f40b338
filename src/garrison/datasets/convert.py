"""Turns what a package holds into the plain text that the registry pins: R data and pickled tables to comma-separated values.

The text is the set's own published form where it has one, so that every road ends at the same bytes.
"""

from __future__ import annotations

import csv
import io
import lzma
import math
from collections.abc import Iterable, Sequence
from typing import Any

from garrison.datasets.archives import MEMBER_BYTES, WrongBytesError
from garrison.datasets.inert import read_frame
from garrison.errors import MissingExtraError


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _rda_columns(data: bytes, name: str) -> list[list[Any]]:
    """The columns of one data frame of an R data file."""
    try:
        import rdata
    except ImportError as error:
        raise MissingExtraError("rdata", "data") from error
    try:
        frame = rdata.conversion.convert(rdata.parser.parse_data(data), default_encoding="ASCII")[name]
        return [frame[column].tolist() for column in frame.columns]
    except (ValueError, KeyError, TypeError, NotImplementedError, OSError, EOFError) as error:
        raise WrongBytesError(f"the R data cannot be read: {error}") from error


def letters(data: bytes) -> bytes:
    """The R package mlbench's LetterRecognition as the file that UCI publishes."""
    columns = _rda_columns(data, "LetterRecognition")
    return _csv([str(letter), *(f"{value:g}" for value in rest)] for letter, *rest in zip(*columns, strict=True))


def spam(data: bytes) -> bytes:
    """The R package kernlab's spam as the file that UCI publishes, with plain line ends."""
    columns = _rda_columns(data, "spam")
    return _csv(
        [*(f"{value:g}" for value in rest), "1" if kind == "spam" else "0"]
        for *rest, kind in zip(*columns, strict=True)
    )


def plain_line_ends(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n")


def frame(data: bytes) -> bytes:
    """A pickled, xz-compressed pandas DataFrame of numbers and strings; read without unpickling. A missing value is an empty cell."""
    try:
        with lzma.open(io.BytesIO(data)) as stream:
            columns = read_frame(stream.read(MEMBER_BYTES))
    except (lzma.LZMAError, EOFError) as error:
        raise WrongBytesError(f"it does not decompress: {error}") from error
    cells = ([_cell(value) for value in column] for column in columns.values())
    return _csv([list(columns), *(list(row) for row in zip(*cells, strict=True))])


def _cell(value: float | str | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else repr(value)
