"""Inputs in an app's own JSON: the short way reads what the long way does, and leaves to it whatever is wrong."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from garrison.asgi import fields
from garrison.asgi.fields import Found, reader_of
from garrison.errors import RequestError
from garrison.types import InputFacts, ModelFacts, Task

TOO_LARGE = 1e39
"""For single precision."""


def facts(shape: tuple[int, ...], dtype: str = "float32", *, missing: bool = False) -> ModelFacts:
    low, high, may = np.zeros(shape), np.ones(shape), np.full(shape, missing)
    spec = InputFacts("x", np.dtype(dtype), shape, low, high, may)
    return ModelFacts(Task.CLASSIFICATION, (spec,), (), 3, np.dtype(np.float32), False, False)


def read(known: ModelFacts, value: Any) -> Found | str:
    """What is found in a body, or the code of its error."""
    try:
        return reader_of(known, "x")(json.dumps({"x": value}).encode())
    except RequestError as error:
        return error.code


ROW = [0.5, 1, 0.25, -3.0]
VALUES: dict[str, Any] = {
    "a flat row": ROW,
    "one flat row in a list": [ROW],
    "several": [ROW, [0.0, 0.1, 1e-40, 1e-46], ROW],
    "nested": [[[0.5, 1], [0.25, -3.0]]],
    "a row too short": [ROW, ROW[:3]],
    "a row too long": [ROW, [*ROW, 0.0]],
    "a list in a row": [ROW, [0.5, 1, 0.25, [0.0]]],
    "a row among numbers": [0.5, 1, 0.25, ROW],
    "rows of too many numbers together": [ROW[:3], [*ROW, 0.0]],
    "too large": [ROW, [0.5, 1, TOO_LARGE, 0.0]],
    "too large alone": [0.5, -TOO_LARGE, 0.5, 0.5],
    "too large for any": [0.5, 1, 10**400, 0.0],
    "missing": [ROW, [0.5, None, 0.25, 0.0]],
    "a truth": [0.5, True, 0.25, 0.0],
    "a text": [0.5, "1", 0.25, 0.0],
    "nothing": [],
    "no row": [[]],
    "a number": 0.5,
}
SHAPES = ((4,), (2, 2), (1, 4), (4, 1), (1, 2, 2), (5,))


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_short_way_reads_what_the_long_way_does(
    value: Any, missing: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shape in SHAPES:
        short = read(facts(shape, dtype, missing=missing), value)
        with monkeypatch.context() as patch:
            patch.setattr(fields._Flat, "__call__", lambda *_: None)
            long = read(facts(shape, dtype, missing=missing), value)
        assert isinstance(short, str) == isinstance(long, str), shape
        if isinstance(short, Found) and isinstance(long, Found):
            x, y = short.inputs["x"], long.inputs["x"]
            assert (x.dtype, x.shape, short.single, short.body) == (y.dtype, y.shape, long.single, long.body)
            np.testing.assert_array_equal(x, y)
            assert not x.flags.writeable
        else:
            assert short == long


LONG = 64
"""So many numbers are read as flat rows of just this length first."""
LINE = [*np.random.default_rng(0).normal(size=LONG - 2).tolist(), 1, 0]
LONG_VALUES: dict[str, Any] = {
    "a row": [LINE],
    "several": [LINE, LINE[::-1], LINE],
    "one that is not in a list": LINE,
    "nested": np.reshape(LINE, (1, 8, 8)).tolist(),
    "too short": [LINE, LINE[1:]],
    "too long": [[*LINE, 0.5]],
    "a list at its end": [[*LINE[1:], [0.5]]],
    "too large": [[*LINE[1:], TOO_LARGE]],
    "missing": [[*LINE[1:], None]],
    "a truth": [[*LINE[1:], True]],
    "a text": [[*LINE[1:], "1"]],
    "nothing": [],
}


@pytest.mark.parametrize("value", LONG_VALUES.values(), ids=LONG_VALUES)
@pytest.mark.parametrize("missing", [False, True])
def test_long_rows_of_the_usual_form_are_read_as_any(
    value: Any, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shape in ((LONG,), (8, 8), (1, LONG)):
        usual = read(facts(shape, missing=missing), value)
        with monkeypatch.context() as patch:
            patch.setattr(fields, "_flat_rows", lambda _: None)
            patch.setattr(fields._Flat, "__call__", lambda *_: None)
            any_form = read(facts(shape, missing=missing), value)
        if isinstance(usual, Found) and isinstance(any_form, Found):
            assert (usual.single, usual.body) == (any_form.single, any_form.body)
            np.testing.assert_array_equal(usual.inputs["x"], any_form.inputs["x"], strict=True)
        else:
            assert usual == any_form


def test_long_rows_of_the_usual_form_are_read_by_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above compares one way with itself."""
    known, made = facts((LONG,)), fields._fields_decoder
    kinds: list[Any] = []

    def seen(given: Any) -> Any:
        kinds.append(given["x"])
        return made(given)

    monkeypatch.setattr(fields, "_fields_decoder", seen)
    assert isinstance(read(known, [LINE]), Found)
    assert kinds[0] == list[tuple[(float,) * LONG]]  # type: ignore[misc]
    assert kinds[1:] == [fields._nested(known.inputs[0], 2)]


@pytest.mark.parametrize(
    "body",
    [b'{"x": [[%s]]}', b' { "x" :[[%s]] } ', b'{"x": [[%s]], "y": 1}', b'{"y": [1], "x": [[%s]]}', b'{"x": [[%s]], "y": "x"}'],
)  # fmt: skip
def test_fields_beside_it_are_handed_on(body: bytes) -> None:
    body %= b"0.5, 1, 0.25, 3"
    found = reader_of(facts((4,)), "x")(body)
    assert found.inputs["x"].tolist() == [[0.5, 1, 0.25, 3]]
    assert json.loads(found.body) == json.loads(body)


@pytest.mark.parametrize(
    "body",
    [b'{"x": [[%s]], "x": [[9, 9, 9, 9]]}', b'{"x": [[9, 9, 9, 9]], "\\u0078": [[%s]]}', b'{"\\u0078": [[%s]]}'],
)  # fmt: skip
def test_a_field_that_could_be_read_twice_has_one_reading(body: bytes) -> None:
    """What the guard read is what the endpoint gets, whichever of the two it was."""
    body %= b"0.5, 1, 0.25, 3"
    found = reader_of(facts((4,)), "x")(body)
    told = json.loads(found.body, object_pairs_hook=list)
    assert told == [("x", found.inputs["x"].tolist())]


@pytest.mark.parametrize(("dtype", "refused"), [("float32", True), ("float64", False)])
def test_numbers_beyond_the_datatype_never_become_infinite(dtype: str, refused: bool) -> None:
    """At each position, of one row and of several; what holds them is read."""
    for place in range(4):
        row = [0.5] * 4
        row[place] = TOO_LARGE
        for value in (row, [row], [ROW, row]):
            found = read(facts((4,), dtype), value)
            assert (found == "request.input") is refused
            assert refused or (isinstance(found, Found) and TOO_LARGE in found.inputs["x"])


def test_the_usual_bodies_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above compare one way with itself."""

    def fail(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(fields, "_rows", fail)
    for name in ("a flat row", "one flat row in a list", "several"):
        assert isinstance(read(facts((4,)), VALUES[name]), Found)
    with pytest.raises(AssertionError):
        read(facts((2, 2)), VALUES["nested"])
