"""Places: one a caller, bounded, the oldest goes first, the alarmed last."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.guard.detectors.base import Column
from garrison.guard.watching.places import FIRST_CAPACITY, Places, Table


def nobody(place: int) -> bool:
    return False


def test_a_caller_keeps_its_place_and_the_oldest_goes_first() -> None:
    places = Places(3, nobody)
    (a, b, again), fresh = places.take(["a", "b", "a"])
    assert a == again
    assert fresh == [a, b]
    assert places.take(["b"]) == ([b], [])
    (c,), _ = places.take(["c"])
    (d,), fresh = places.take(["d"])
    assert (d, fresh) == (a, [a]), "a asked longest ago"
    assert places.find("a") is None
    assert places.name(d) == "d"
    assert [name for name, _ in places] == ["b", "c", "d"]
    assert places.leave("c") == c
    assert places.leave("c") is None
    assert places.name(c) == ""
    assert len(places) == 2


def test_nobody_who_asks_now_is_pushed_out_and_the_alarmed_go_last() -> None:
    alarmed: set[int] = set()
    places = Places(3, alarmed.__contains__)
    (a, b, _), _ = places.take(["a", "b", "c"])
    alarmed.add(b)
    places.take(["c"])
    places.take(["a"])
    places.take(["new"])
    assert places.find("b") == b, "c goes, who has asked later than b, and is not alarmed"
    assert places.find("c") is None
    (again, _, _), _ = places.take(["a", "x", "y"])
    assert again == a, "who asks now stays"
    assert places.find("b") is None


def test_capacity_grows_by_doubling_up_to_the_bound() -> None:
    places = Places(200, nobody)
    sizes = set()
    for i in range(300):
        places.take([f"{i}"])
        sizes.add(places.capacity)
    assert sizes == {FIRST_CAPACITY, 128, 200}
    assert len(places) == 200


def test_places_come_back_as_they_were() -> None:
    places, again = Places(300, nobody), Places(300, nobody)
    for i in range(100):
        places.take([f"{i}"])
    places.take(["3"])
    places.leave("50")
    again.restore(list(places))
    assert list(again) == list(places)
    (new,), _ = again.take(["new"])
    assert new not in {place for _, place in places}


def test_a_table_grows_empties_reads_and_writes() -> None:
    table = Table({"n": Column("int32"), "x": Column("float32", (2,), np.inf)}, 2)
    table["n"][:] = [4, 5]
    table["x"][1] = [1, 2]
    table.grow(4)
    assert table["n"].tolist() == [4, 5, 0, 0]
    assert np.isinf(table["x"][2]).all()
    other = Table(table.columns, 4)
    other.write(np.array([3, 0]), table.read(np.array([0, 1])))
    assert other["n"].tolist() == [5, 0, 0, 4]
    assert other["x"][0].tolist() == [1.0, 2.0]
    table.empty([0])
    assert table["n"].tolist() == [0, 5, 0, 0]
    assert table.bytes_a_place == 12
    with pytest.raises(ValueError, match="columns"):
        other.write(np.array([0]), [b""])
