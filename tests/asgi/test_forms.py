"""An endpoint's answer: the short way reads what the long way does, and leaves to it whatever is wrong."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from garrison.asgi import forms
from garrison.asgi.forms import Asked, JsonForm, Told
from garrison.errors import ServiceError
from garrison.limits import DEFAULT_LIMITS
from garrison.types import InputFacts, ModelFacts, Task

ASKED = Asked({"x": np.zeros((1, 4), np.float32)}, b"", ())
ROW = [0.25, 0.5, 0.25]
ANSWERS: dict[str, Any] = {
    "one row": {"p": [ROW]},
    "whole numbers": {"p": [[0, 1, 0]]},
    "some whole numbers": {"p": [[0, 1.0, 0]]},
    "not in a list": {"p": ROW},
    "several rows": {"p": [ROW, ROW]},
    "fields to keep": {"note": {"a": [1, None]}, "p": [ROW], "none": None},
    "fields to drop": {"p": [ROW], "raw": "\u00e9\U0001f600", "more": [[1], {}]},
    "too short": {"p": [ROW[1:]]},
    "too large": {"p": [[1e39, 0.5, 0.5]]},
    "a truth": {"p": [[True, 0.5, 0.5]]},
    "a text": {"p": [["0.5", 0.5, 0.5]]},
    "null": {"p": [[None, 0.5, 0.5]]},
    "nested": {"p": [[ROW]]},
    "nothing": {"p": []},
    "no row": {"p": [[]]},
    "no field": {"q": [ROW]},
    "no object": [ROW],
}


def form(dtype: str, output: str = "p", *keep: str) -> JsonForm:
    spec = InputFacts("x", np.dtype(np.float32), (4,), np.zeros(4), np.ones(4), np.zeros(4, np.bool_))
    facts = ModelFacts(Task.CLASSIFICATION, (spec,), (), 3, np.dtype(dtype), False, False)
    return JsonForm(facts, "x", output, "probabilities", None, frozenset(keep or {"note", "none"}), DEFAULT_LIMITS)


def told(dtype: str, body: bytes) -> Told | None:
    try:
        return form(dtype).told(ASKED, {}, body)
    except ServiceError:
        return None


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_short_way_reads_what_the_long_way_does(dtype: str, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps(answer).encode()
    short = told(dtype, body)
    monkeypatch.setattr(forms._OneRow, "__call__", lambda *_: None)
    long = told(dtype, body)
    assert (short is None) == (long is None)
    if short is not None and long is not None:
        assert short.kept == long.kept
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(short.values.astype(dtype), long.values.astype(dtype))


def test_a_field_that_stands_twice_is_read_as_its_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the long way reads it, and most readers do."""
    body = b'{"p": [[0.0, 0.0, 1.0]], "note": 1, "p": [[1.0, 0.0, 0.0]], "note": 2}'
    short = told("float32", body)
    monkeypatch.setattr(forms._OneRow, "__call__", lambda *_: None)
    for found in (short, told("float32", body)):
        assert found is not None
        assert (found.values.tolist(), found.kept) == ([[1.0, 0.0, 0.0]], {"note": 2})


@pytest.mark.parametrize(("output", "kept"), [('a"p', "note"), ("p", "a\\b"), ("p\n", "note"), ("p", '"')])
def test_names_that_msgspec_gives_no_field_are_read_the_long_way(output: str, kept: str) -> None:
    with pytest.raises(ValueError, match="must not contain"):
        msgspec.defstruct("Control", [(f"f{i}", int, msgspec.field(name=at)) for i, at in enumerate((output, kept))])
    odd = form("float32", output, kept)
    found = odd.told(ASKED, {}, json.dumps({output: [ROW], kept: 1, "more": 2}).encode())
    assert (found.values.tolist(), found.kept) == ([ROW], {kept: 1})


def test_the_usual_answers_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above compare one way with itself."""
    monkeypatch.setattr(forms, "_ANSWER", None)
    for name in ("one row", "whole numbers", "fields to keep", "fields to drop"):
        assert told("float32", json.dumps(ANSWERS[name]).encode()) is not None
    with pytest.raises(AttributeError):
        told("float32", json.dumps(ANSWERS["several rows"]).encode())
