"""What is wired wrongly is not graded; each check has an arm that passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.audit.worlds import World, rows, sealed
from tests.models import BOUNDS, RELEASE

from garrison.attacks.oracle import Answers, OracleFacts
from garrison.audit import preflight
from garrison.audit.arms import choose_arms
from garrison.audit.data import AuditData
from garrison.audit.run import run_audit
from garrison.audit.targets import guarded
from garrison.errors import PreflightError, ProofError
from garrison.types import Array

NOBODY = np.zeros(3, dtype=np.bool_)


def answers(p: Any) -> Answers:
    values = np.asarray(p, dtype=np.float64)
    return Answers(values.argmax(axis=1), values, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "p",
    [
        [[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]],
        [[0.33, 0.33, 0.33], [0.67, 0.17, 0.17], [1.0, 0.0, 0.0]],  # rounded to two decimals
    ],
)
def test_probabilities_pass_rounded_ones_too(p: Any) -> None:
    preflight.check_answers(answers(p), "here")


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([[0.2123457, 0.9123457], [0.51234567, 0.5], [1.0, 0.0]], "2 of 3 answers do not sum to 1"),
        ([[2.1, -1.1], [0.5, 0.5], [1.0, 0.0]], "negative"),
        ([[np.nan, 0.5], [0.5, 0.5], [1.0, 0.0]], "NaN"),
    ],
)
def test_logits_do_not_pass(p: Any, message: str) -> None:
    with pytest.raises(PreflightError, match=message):
        preflight.check_answers(answers(p), "here")


def test_what_a_thief_is_said_to_know_fits_the_target() -> None:
    table = OracleFacts((3,), np.dtype(np.float32), np.zeros(3), np.full(3, 4.0), 2, soft=True)
    kind = rows(np.zeros((5, 3)), None, "own")
    known = AuditData(kind, kind, kind, training=kind)
    preflight.check_knowledge(table, known, {2: (0.0, 4.0)})
    for categorical, message in (({3: (0.0,)}, "no feature 3"), ({0: (0.0, 5.0)}, "outside the range")):
        with pytest.raises(PreflightError, match=message):
            preflight.check_knowledge(table, known, categorical)
    with pytest.raises(PreflightError, match="training rows have the shape"):
        preflight.check_knowledge(table, replace(known, training=rows(np.zeros((5, 4)), None, "own")), {})


def test_a_target_that_answers_nothing() -> None:
    silent = Answers(np.full(3, -1), None, ~NOBODY, NOBODY)
    with pytest.raises(PreflightError, match="none of the probed rows"):
        preflight.check_answers(silent, "here")
    with pytest.raises(PreflightError, match=r"answers none of the probed rows: not signed \(service.proof\)"):
        preflight.check_answers(silent, "here", ProofError("not signed"))


def change(world: World, x: Array | None = None, y: Array | None = None, labels: tuple[str, ...] = ()) -> World:
    test = world.data.test
    new = replace(test, x=test.x if x is None else x, y=test.y if y is None else y, labels=labels)
    return replace(world, data=replace(world.data, test=new))


def audit(world: World, **bundles: Any) -> None:
    target = guarded(world.opened(world.bundle), world.key)
    bundles = bundles or {"reference": world.opened(world.bundle)}
    run_audit(world.plan, choose_arms(target, key=world.key, **bundles), world.data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((300, 1, 8, 9), np.float32)}, r"shape \[1, 8, 9\], the target takes \[1, 8, 8\]"),
        ({"x": np.zeros((300, 1, 8, 8), np.complex128)}, "without loss"),
        ({"x": np.full((300, 1, 8, 8), 200.0, np.float32)}, "300 of 300 rows hold values outside the range"),
        ({"y": np.full(300, 5)}, "0 to 4"),
        ({"labels": ("a", "b")}, "2 classes, the target 5"),
        ({"labels": ("kind 1", "kind 0", "kind 2", "kind 3", "kind 4")}, "another order"),
        ({"y": np.zeros(300, dtype=np.int64)}, "a constant answer on 100.0%"),
    ],
)
def test_rows_that_do_not_fit(world: World, changes: Any, message: str) -> None:
    with pytest.raises(PreflightError, match=message):
        audit(change(world, **changes))


def test_permuted_labels_are_no_better_than_chance(world: World) -> None:
    y = world.data.test.y
    assert y is not None
    with pytest.raises(PreflightError, match="another order, or inputs prepared in another way"):
        audit(change(world, y=(y + 1) % 5))


def test_a_model_that_does_not_depend_on_its_input() -> None:
    preflight.check_depends_on_input(np.array([[0.5, 0.5], [0.5, 0.5], [0.4, 0.6]]), "m")
    preflight.check_depends_on_input(np.array([[0.5, 0.5]]), "one row says nothing")
    with pytest.raises(PreflightError, match="same numbers to the last bit"):
        preflight.check_depends_on_input(np.full((5, 2), 0.5), "m")


def test_a_cast_that_loses_the_values() -> None:
    whole = OracleFacts((3,), np.dtype(np.float16), np.zeros(3), np.full(3, 9e9), 2, soft=True)
    fine = rows(np.full((4, 3), 0.25, dtype=np.float32), None, "fine")
    preflight.check_rows(whole, AuditData(fine, fine, fine))
    lost = rows(np.full((4, 3), 1e8, dtype=np.float32), None, "lost")
    with pytest.raises(PreflightError, match=r"lost: 100\.0% of the values change"), np.errstate(over="ignore"):
        preflight.check_rows(whole, AuditData(lost, fine, fine))


def test_another_model_is_no_reference(world: World, tmp_path: Path) -> None:
    """On rows that the guard leaves alone a reference must agree with the service; another network does not."""
    other = world.opened(sealed(tmp_path / "other", world.owner, (BOUNDS, RELEASE), seed=1))
    own = change(world, y=guarded(other, None).query(world.data.test.x).labels)
    with pytest.raises(PreflightError, match="not the model that is served"):
        audit(own, reference=other)


def test_a_reference_of_another_shape() -> None:
    class Stub:
        def __init__(self, shape: tuple[int, ...], labels: tuple[str, ...]) -> None:
            self.facts = type("F", (), {"shape": shape, "classes": 5})()
            self.identity = type("I", (), {"labels": labels, "model": "m"})()

    preflight.check_same_model(Stub((4,), ("a",)), Stub((4,), ("a",)))  # type: ignore[arg-type]
    preflight.check_same_model(Stub((4,), ()), Stub((4,), ("a",)))  # type: ignore[arg-type]
    with pytest.raises(PreflightError, match="not the same model"):
        preflight.check_same_model(Stub((4,), ()), Stub((5,), ()))  # type: ignore[arg-type]
    with pytest.raises(PreflightError, match="labels"):
        preflight.check_same_model(Stub((4,), ("a", "b")), Stub((4,), ("b", "a")))  # type: ignore[arg-type]


def test_missing_values_are_not_out_of_range(world: World) -> None:
    x = world.data.test.x.copy()
    x[0, 0, 0, 0] = np.nan
    facts = guarded(world.opened(world.bundle), world.key).facts
    data = replace(world.data, test=rows(x, world.data.test.y, "own"))
    preflight.check_rows(facts, data)  # whether they are allowed is for the service's bounds to say
