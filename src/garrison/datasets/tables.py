"""Readers of the tabular sets: delimited text in, one float64 matrix out.

A categorical column becomes the index of its category, in sorted order and over all splits together, so that the same number means
the same category everywhere. A value that the source marks as missing becomes NaN.
"""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from garrison.datasets.content import Content, ReadFile, take
from garrison.errors import DatasetCorruptError
from garrison.types import FloatArray

Rows = Iterable[list[str]]
CHUNK = 10_000
"""Rows that are turned into columns at a time."""
MISSING = frozenset({"", "?"})


def comma_rows(data: bytes) -> Rows:
    """The rows of a file of comma-separated values; blank lines and lines that begin with "|" are no rows."""
    lines = io.StringIO(_text(data))
    return (row for row in csv.reader(lines, skipinitialspace=True) if row and not row[0].startswith("|"))


def headed_rows(data: bytes) -> Rows:
    """The same without its first line."""
    rows = iter(comma_rows(data))
    next(rows, None)
    return rows


def spaced_rows(data: bytes) -> Rows:
    """The rows of a file whose cells are separated by white space."""
    return (cells for line in _text(data).splitlines() if (cells := line.split()))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetCorruptError(f"expected a table as UTF-8 text: {error}") from error


class _Column(dict[str, float]):
    """The cells of one column as numbers. The mapping from a cell's text to its number is remembered, which makes reading fast.

    A categorical cell's number is the order in which its category was first seen, until `numbers` sorts them.
    """

    def __init__(self, name: str, *, categorical: bool) -> None:
        super().__init__()
        self.name = name
        self.categorical = categorical
        self.seen: dict[str, int] = {}
        self.cells = array("d")

    def __missing__(self, cell: str) -> float:
        text = cell.strip()
        if text in MISSING:
            number = math.nan
        elif self.categorical:
            number = self.seen.setdefault(text, len(self.seen))
        else:
            number = float(text)
        self[cell] = number
        return number

    def add(self, cells: Iterable[str]) -> None:
        self.cells.extend(map(self.__getitem__, cells))

    def categories(self) -> tuple[str, ...]:
        return tuple(sorted(self.seen))

    def numbers(self) -> FloatArray:
        raw = np.array(self.cells, dtype=np.float64)
        if not self.categorical:
            return raw
        order = {category: index for index, category in enumerate(self.categories())}
        rank = np.array([order[category] for category in self.seen], dtype=np.float64)
        known = ~np.isnan(raw)
        raw[known] = rank[raw[known].astype(np.int64)]
        return raw


@dataclass(frozen=True, slots=True)
class TableReader:
    """Reads one set.

    Attributes:
        files: the files, by split where the split is official; else one file under "".
        rows: cuts a file into rows of cells.
        columns: the names of the columns in the file, in order.
        target: the column that is to be predicted.
        classes: text of the target -> label; empty for a regression target. Rows without a target are left out.
        categorical: columns whose values are names, also where they look like numbers.
        left_out: columns that are not features.
    """

    files: Mapping[str, str]
    rows: Callable[[bytes], Rows]
    columns: tuple[str, ...]
    target: str
    classes: Mapping[str, str] = field(default_factory=dict)
    categorical: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()

    def __call__(self, read: ReadFile, split: str) -> Content:
        columns = [_Column(name, categorical=self._is_text(name)) for name in self.columns]
        target = columns[self.columns.index(self.target)]
        part: list[int] = []
        for number, file in enumerate(self.files.values()):
            self._add(columns, self.rows(read(file)), file)
            part += [number] * (len(target.cells) - len(part))
        kept = [column for column in columns if column.name not in self.left_out and column is not target]
        y, labels = self._answers(target)
        chosen = ~np.isnan(y)
        if official := split in self.files:
            chosen &= np.array(part) == list(self.files).index(split)
        whole = Content(
            x=np.stack([column.numbers() for column in kept], axis=1)[chosen],
            y=y[chosen].astype(np.int64) if labels else y[chosen],
            labels=labels,
            features=tuple(column.name for column in kept),
            categories={column.name: column.categories() for column in kept if column.categorical},
        )
        return whole if official else take(whole, split)

    def _is_text(self, name: str) -> bool:
        return name in self.categorical or (name == self.target and bool(self.classes))

    def _add(self, columns: list[_Column], rows: Rows, file: str) -> None:
        start, remaining = 1, iter(rows)
        while chunk := list(islice(remaining, CHUNK)):
            for number, row in enumerate(chunk, start):
                if len(row) != len(columns):
                    raise DatasetCorruptError(
                        f"{file}: expected {len(columns)} cells in row {number}, found {len(row)}"
                    )
            for column, cells in zip(columns, zip(*chunk, strict=True), strict=True):
                if column.name not in self.left_out:
                    try:
                        column.add(cells)
                    except ValueError as error:
                        raise DatasetCorruptError(f"{file}: column {column.name}: {error}") from error
            start += len(chunk)

    def _answers(self, target: _Column) -> tuple[FloatArray, tuple[str, ...]]:
        if not self.classes:
            return target.numbers(), ()
        labels = tuple(dict.fromkeys(self.classes.values()))
        strange = set(target.categories()) - set(self.classes)
        if strange:
            raise DatasetCorruptError(
                f"expected {self.target} to be one of {list(self.classes)}, found {sorted(strange)}"
            )
        codes = target.numbers()
        label_of = np.array([labels.index(self.classes[text]) for text in target.categories()], dtype=np.float64)
        known = ~np.isnan(codes)
        codes[known] = label_of[codes[known].astype(np.int64)]
        return codes, labels


DIABETES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")


def read_diabetes(read: ReadFile, split: str) -> Content:
    """The diabetes set in its own units (scikit-learn's loader centres and scales it); features and target are two files."""
    table, target = (
        np.array([[float(cell) for cell in row] for row in spaced_rows(read(file))])
        for file in ("diabetes_data_raw.csv", "diabetes_target.csv")
    )
    return take(Content(table, target[:, 0], (), DIABETES), split)
