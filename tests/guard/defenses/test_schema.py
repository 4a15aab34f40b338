from __future__ import annotations

from typing import Any

import array_api_strict
import msgspec
import numpy as np
import pytest
from tests.guard.conftest import FEATURES, make_batch, make_facts, make_inputs

from garrison.errors import GuardError
from garrison.guard.base import Code, View
from garrison.guard.defenses.schema import ANY, MOST_VALUES, Category, Schema
from garrison.guard.pipeline import load_defense
from garrison.hardening.schema import LEAST_ROWS_A_VALUE, learned
from garrison.types import Array, DefenseSpec


def codes(defense: Schema, x: Array) -> list[int]:
    found: list[int] = defense(View(make_batch(x, (1,) * len(x)), make_facts(missing=True))).codes.tolist()
    return found


def whole_rows(rows: int) -> Array:
    return np.ones((rows, FEATURES), np.float32)


@pytest.mark.parametrize("rows", [1, 2, 37])
def test_a_fraction_is_refused_at_every_position(rows: int) -> None:
    for position in range(FEATURES):
        x = whole_rows(rows)
        x[rows // 2, position] = 0.5
        found = codes(Schema(whole=tuple(range(FEATURES))), x)
        assert [i for i, code in enumerate(found) if code == Code.REFUSE] == [rows // 2]
        others = tuple(i for i in range(FEATURES) if i != position)
        assert not any(codes(Schema(whole=others), x)), "control: nothing is said of this feature"


def test_an_unknown_category_is_refused_and_known_ones_are_not() -> None:
    defense = Schema(categories=(Category(2, (0.0, 0.25, 1.0)), Category(5, (0.1,))))
    x = make_inputs(6)
    x[:, 2], x[:, 5] = [0.0, 0.25, 1.0, 0.5, np.inf, 0.0], np.float32(0.1)
    x[5, 5] = 0.2
    assert codes(defense, x) == [Code.KEEP] * 3 + [Code.REFUSE] * 3


def test_missing_is_no_fraction_and_no_category_but_counted() -> None:
    x = whole_rows(4)
    x[1, :2], x[2, :3], x[3] = np.nan, np.nan, np.nan
    every = tuple(range(FEATURES))
    assert not any(codes(Schema(whole=every, categories=(Category(0, (1.0,)),)), x))
    assert codes(Schema(most_missing=2), x) == [Code.KEEP, Code.KEEP, Code.REFUSE, Code.REFUSE]


def test_its_arithmetic_is_plain_array_api() -> None:
    xp = array_api_strict
    defense = Schema(whole=(0,), categories=(Category(1, (0.0, 1.0)),), most_missing=0)
    x = np.zeros((4, FEATURES), np.float32)
    x[1, 0], x[2, 1], x[3, 5] = 0.5, 0.5, np.nan
    batch = make_batch(x)
    strict = msgspec.structs.replace(
        View(batch, make_facts()),
        batch=type(batch)(
            {"x": xp.asarray(x)}, *[getattr(batch, n) for n in ("request_of_row", "callers", "remaining")]
        ),
    )
    assert [bool(v) for v in defense.judge(xp, strict, {}).refuse] == [False, True, True, True]


@pytest.mark.parametrize(
    "wrong",
    [
        {"whole": [1, 1]},
        {"whole": [-1]},
        {"most_missing": -2},
        {"categories": [{"feature": 1, "values": []}]},
        {"categories": [{"feature": 1, "values": [1.0, 1.0]}]},
        {"categories": [{"feature": 1, "values": list(range(MOST_VALUES + 1))}]},
    ],
)
def test_what_makes_no_sense_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(GuardError, match="schema"):
        load_defense(DefenseSpec(name="schema", parameters=wrong))


def test_a_feature_that_the_model_does_not_have() -> None:
    with pytest.raises(GuardError, match=f"takes {FEATURES}"):
        Schema(whole=(FEATURES,)).check(make_facts())


def test_it_is_learned_from_honest_rows_and_refuses_none_of_them() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((300, FEATURES)).astype(np.float32)
    x[:, 0] = rng.integers(0, 500, 300)
    x[:, 1] = rng.choice([0.0, 0.5, 2.0], 300)
    x[:, 2] = 0.25
    x[:, 3] = rng.integers(0, 2, 300)
    x[:2, 3] = 7.0  # seen twice: other rare values may be missing from the data
    x[5, 6:9] = np.nan
    found = learned({"x": x}, {})
    assert found["whole"] == (0, 3)
    assert {c["feature"]: c["values"] for c in found["categories"]} == {1: (0.0, 0.5, 2.0), 2: (0.25,)}
    assert found["most_missing"] == 3
    defense = load_defense(DefenseSpec(name="schema", parameters=found))
    assert isinstance(defense, Schema)
    assert not any(codes(defense, x))
    assert learned({"x": x}, {"most_missing": ANY})["most_missing"] == ANY
    assert LEAST_ROWS_A_VALUE > 2
