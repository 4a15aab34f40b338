from __future__ import annotations

import math

import numpy as np
import pytest

from garrison.datasets.content import rows_of
from garrison.datasets.tables import TableReader, comma_rows, headed_rows, read_diabetes, spaced_rows
from garrison.errors import DatasetCorruptError

TRAIN = b"3.5, red, 07, yes.\n\n4, ?, 12, no\n5, blue, 07, yes\n"
TEST = b"|a comment\n6, green, ?, no.\n7, red , 12, yes.\n"
READER = TableReader(
    files={"train": "a", "test": "b"},
    rows=comma_rows,
    columns=("size", "colour", "code", "answer"),
    target="answer",
    classes={"no": "no", "no.": "no", "yes": "yes", "yes.": "yes"},
    categorical=frozenset({"colour", "code"}),
)


def read(name: str) -> bytes:
    return {"a": TRAIN, "b": TEST}[name]


def test_a_table_with_official_splits() -> None:
    train, test = READER(read, "train"), READER(read, "test")
    assert train.categories == test.categories == {"colour": ("blue", "green", "red"), "code": ("07", "12")}
    assert (train.features, train.labels) == (("size", "colour", "code"), ("no", "yes"))
    np.testing.assert_array_equal(train.x, [[3.5, 2, 0], [4, math.nan, 1], [5, 0, 0]])
    np.testing.assert_array_equal(test.x, [[6, 1, math.nan], [7, 2, 1]])
    assert train.y is not None
    assert test.y is not None
    assert (train.y.tolist(), test.y.tolist()) == ([1, 0, 1], [0, 1])
    assert train.y.dtype == np.int64


def test_a_table_with_drawn_splits_leaves_unanswered_rows_and_unwanted_columns_out() -> None:
    text = "id,x,y\n" + "".join(f"name{i},{i},{'' if i % 3 == 0 else i / 2}\n" for i in range(30))
    reader = TableReader({"": "a"}, headed_rows, ("id", "x", "y"), "y", left_out=frozenset({"id"}))
    content = reader(lambda _: text.encode(), "all")
    answered = [i for i in range(30) if i % 3]
    assert content.y is not None
    assert (content.x[:, 0].tolist(), content.y.tolist()) == (answered, [i / 2 for i in answered])
    assert (content.features, content.labels) == (("x",), ())
    assert content.y.dtype == np.float64
    test = reader(lambda _: text.encode(), "test")
    assert test.x[:, 0].tolist() == [answered[row] for row in rows_of("test", 20)]


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (b"1,red,7,yes\n1,red,7\n", "expected 4 cells in row 2, found 3"),
        (b"1,red,7,yes,9\n", "expected 4 cells in row 1, found 5"),
        (b"one,red,7,yes\n", "column size"),
        (b"1,red,7,perhaps\n", r"expected answer to be one of .* found \['perhaps'\]"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_broken_table_is_corrupt(train: bytes, says: str) -> None:
    with pytest.raises(DatasetCorruptError, match=says):
        READER(lambda name: {"a": train, "b": TEST}[name], "train")


def test_rows_are_counted_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("garrison.datasets.tables.CHUNK", 2)
    np.testing.assert_array_equal(READER(read, "test").x, [[6, 1, math.nan], [7, 2, 1]])
    with pytest.raises(DatasetCorruptError, match="row 5"):
        READER(lambda _: b"1,a,b,no\n" * 4 + b"1\n", "train")


def test_cells_between_white_space() -> None:
    assert list(spaced_rows(b" 1  2\t3\n\n4 5 6")) == [["1", "2", "3"], ["4", "5", "6"]]


def test_diabetes_joins_two_files() -> None:
    files = {
        "diabetes_data_raw.csv": b"".join(b"%d 2 3 4 5 6 7 8 9 10\n" % i for i in range(5)),
        "diabetes_target.csv": b"".join(b"%d.5\n" % i for i in range(5)),
    }
    content = read_diabetes(files.__getitem__, "all")
    assert content.y is not None
    assert (content.x.shape, content.y.tolist()) == ((5, 10), [0.5, 1.5, 2.5, 3.5, 4.5])
