from __future__ import annotations

import contextlib
import io
import lzma
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from garrison.datasets.convert import frame
from garrison.datasets.inert import read_frame
from garrison.errors import DatasetCorruptError

pandas = pytest.importorskip("pandas")


def pickled(table: Any) -> bytes:
    """As pandas itself pickles it, which is how the packages hold it."""
    stream = io.BytesIO()
    table.to_pickle(stream)
    return stream.getvalue()


def made_table() -> Any:
    """Numbers, names and gaps, in the block layout of a frame that was read from R."""
    return pandas.DataFrame(
        {
            "number": np.array([1, 2, 3]),
            "share": np.array([0.5, math.nan, 1e-7]),
            "name": pandas.Series(["a", "b, c", None], dtype=object),
            "other": np.array([7, 8, 9]),
        },
        columns=pandas.Index(["number", "share", "name", "other"], dtype=object),
    )


def test_a_pickled_table_is_read_without_unpickling() -> None:
    columns = read_frame(pickled(made_table()))
    assert list(columns) == ["number", "share", "name", "other"]
    assert columns["number"] == [1, 2, 3]
    assert columns["other"] == [7, 8, 9]
    assert columns["name"] == ["a", "b, c", None]
    assert columns["share"][::2] == [0.5, 1e-7]
    assert math.isnan(columns["share"][1])


def test_it_becomes_text_with_empty_cells_for_gaps() -> None:
    text = frame(lzma.compress(pickled(made_table())))
    assert text == b'number,share,name,other\n1,0.5,a,7\n2,,"b, c",8\n3,1e-07,,9\n'


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_payload_does_not_run(tmp_path: Path) -> None:
    data = pickle.dumps(Payload(tmp_path / "ran"))
    with pytest.raises(DatasetCorruptError):
        read_frame(data)
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)  # noqa: S301 - the control: loading it does run it
    assert (tmp_path / "ran").exists()


def test_a_payload_inside_a_table_does_not_run(tmp_path: Path) -> None:
    table = pandas.DataFrame({"x": np.array([Payload(tmp_path / "ran"), 1], dtype=object)}).astype(object)
    data = pickled(table)
    with contextlib.suppress(DatasetCorruptError):
        read_frame(data)
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)  # noqa: S301 - the control
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("thing", [{}, [1, 2], "text", 3, (1,), np.zeros(3), {"_mgr": 1}, 1 << 4000, {1, 2}])
def test_what_is_no_table_is_refused(thing: Any) -> None:
    with pytest.raises(DatasetCorruptError):
        read_frame(pickle.dumps(thing))


def test_a_damaged_table_is_refused_or_read_but_never_crashes() -> None:
    whole = pickled(made_table())
    refused = 0
    for at in range(len(whole)):
        try:
            read_frame(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        except DatasetCorruptError:
            refused += 1
    assert refused > len(whole) // 4
    for at in range(0, len(whole), 7):
        with pytest.raises(DatasetCorruptError):
            read_frame(whole[:at])
