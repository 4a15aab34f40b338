"""What every registered defense keeps: an addition cannot skip these tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.guard.conftest import CLASSES, FEATURES, KEY, PLAIN_CODES, make_batch, make_facts, make_inputs, make_scores

from garrison.errors import GuardError
from garrison.guard.base import Code, Defense, RecordDefense, ReleaseDefense, RowDefense, View
from garrison.guard.defenses import DEFENSES
from garrison.guard.drifting.state import DriftState
from garrison.guard.keyed import KeyedTable
from garrison.guard.parts import narrow
from garrison.guard.pipeline import load_defense
from garrison.guard.relabelling import RelabelDefense, exchange
from garrison.guard.state import SECRET_BYTES, Callers
from garrison.types import Array, DefenseSpec, Phase, Released

STRANGERS = {"threshold": 10.0, "edges": [0.9], "nats": [1.0, -0.25]}
DRIFT = {
    "columns": [
        {"name": name, "edges": [0.2, 0.5, 0.8], "shares": [0.25, 0.25, 0.25, 0.25, 0.0], "answer": k >= FEATURES}
        for k, name in enumerate([*(f"x[{k}]" for k in range(FEATURES)), "predicted class", "largest probability"])
    ],
    "thresholds": {"psi": 0.1, "ks": 0.1, "ewma": 9.0, "predictions": 0.1},
}
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "bounds": [{}],
    "schema": [{"most_missing": 0}, {"most_missing": 2}],
    "budget": [{"rows": 10}, {"rows": 10, "distinct": 5, "price_per_1000_rows": 2.5}],
    "proof-of-work": [{}, {"bits": 20, "window_seconds": 60, "who": "alarmed"}],
    "sanctions": [{}, {"rows_a_minute": 5}],
    "projection": [{}, {"width": 4, "seed": 7}],
    "max-probability": [{}],
    "energy": [{}, {"temperature": 2.0}],
    "mahalanobis": [{}],
    "knn": [{}],
    "feature-squeezing": [
        {"threshold": 0.5},
        {"threshold": 1.5, "action": "uncertain"},
        {"threshold": 0.5, "action": "refuse", "bits": 0, "window": 3},
    ],
    "watch": [{"detectors": {}}, {"detectors": {"ood-rate": STRANGERS}, "action": "refuse", "remembered": 0}],
    "adaptive-misinformation": [{"tau": 0.7}, {"tau": 0.7, "constant_time": True}, {"tau": 2.0, "nu": 5.0}],
    "deceptive-misinformation": [
        {"tau": 0.7},
        {"tau": 0.7, "spread": 0.0, "constant_time": True},
        {"tau": 2.0, "nu": 5.0},
    ],
    "label-preserving-misinformation": [{"tau": 0.7}, {"tau": 2.0, "nu": 5.0}],
    "reject-option": [{"tau": 0.7}, {"tau": 0.7, "action": "refuse"}],
    "randomized-smoothing": [{"copies": 30, "choosing": 5}],
    "reverse-sigmoid": [{}],
    "prediction-poisoning": [{"seed": 1}],
    "gradient-redirection": [{"seed": 1}],
    "modelguard-w": [{}],
    "modelguard-s": [{"codes": PLAIN_CODES}],
    "watermark": [{}, {"share": 0.2, "cell": 0.3}],
    "drift": [DRIFT, DRIFT | {"half_life": 500.0, "callers": 40, "rows": 2_000}],
    "repeat-watch": [{}, {"callers": 64, "rows": 10, "share": 0.9}],
    "release": [{}, {"mode": "rounded", "decimals": 2}, {"mode": "top-k", "k": 3}, {"mode": "labels"}],
}
CASES = [(name, parameters) for name in DEFENSES for parameters in EXAMPLES[name]]
ids = [f"{name}-{i}" for i, (name, _) in enumerate(CASES)]


def view_of(defense: Defense, rows: int, seed: int = 0) -> View:
    facts, raw, x = make_facts(), make_scores(rows, seed), make_inputs(rows, seed)
    drawer = defense.noise_drawer(facts)
    table = None if drawer is None else KeyedTable(KEY, defense.name, drawer)
    signals = {"confidence": raw.values.max(axis=1), "projection": seen(x)}
    noise = None if table is None else lambda index: table({"x": x}, index)
    view = View(make_batch(x, (1,) * rows), facts, raw, raw.values, np.zeros(rows, dtype=np.bool_), signals, noise)
    return msgspec.structs.replace(view, state=None if defense.shares else defense.fresh_state(facts))


def seen(x: Array) -> Array:
    """Any picture of the inputs, 32 numbers a row."""
    return (x @ np.random.default_rng(9).normal(size=(x.shape[1], 32))).astype(np.float32)


def outcome(defense: Defense, view: View) -> list[Array]:
    if isinstance(defense, ReleaseDefense):
        released = defense(view)
        return [*released.outputs.values(), released.uncertain]
    if isinstance(defense, RecordDefense):
        return remembered(defense, view)
    if isinstance(defense, RelabelDefense):
        return relabelled(defense, view)
    assert isinstance(defense, RowDefense)
    verdict = defense(view)
    values = np.zeros((0, CLASSES)) if verdict.values is None else verdict.values[verdict.codes == Code.REPLACE]
    return [verdict.codes, values, *verdict.signals.values()]


def relabelled(defense: RelabelDefense, view: View) -> list[Array]:
    assert view.answer is not None
    outputs = {"probabilities": view.answer}
    numbers = defense.marks(view.facts, KEY)(view.batch.inputs)
    exchange(outputs, numbers, view.facts)
    return [numbers, outputs["probabilities"]]


def remembered(defense: RecordDefense, view: View) -> list[Array]:
    """The numbers that a fresh table holds of each request's caller, but for times."""
    state = defense.fresh_state(view.facts)
    if isinstance(state, DriftState):
        defense(msgspec.structs.replace(view, state=state), Released({}))
        return [np.array([state.shares_of(caller.id) for caller in view.batch.callers])]
    assert isinstance(state, Callers)
    state.secret = bytes(SECRET_BYTES)
    defense(msgspec.structs.replace(view, state=state), Released({}))
    records = [msgspec.structs.asdict(state.of(caller.id)) for caller in view.batch.callers]
    names = [name for name in records[0] if name not in {"first", "last"}]
    return [
        np.array([np.atleast_1d(list(r[n]) if isinstance(r[n], bytearray) else r[n]) for r in records]) for n in names
    ]


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=ids)
class TestEveryDefense:
    def load(self, name: str, parameters: dict[str, Any]) -> Defense:
        return load_defense(DefenseSpec(name=name, parameters=parameters))

    def test_is_what_the_registry_says(self, name: str, parameters: dict[str, Any]) -> None:
        defense = self.load(name, parameters)
        assert defense.name == name
        assert isinstance(defense, RowDefense | ReleaseDefense | RecordDefense | RelabelDefense)
        assert isinstance(defense.phase, Phase)
        assert load_defense(DefenseSpec(name=name, parameters=msgspec.to_builtins(defense))) == defense

    def test_refuses_unknown_parameters(self, name: str, parameters: dict[str, Any]) -> None:
        with pytest.raises(GuardError, match="unknown field `tua`"):
            self.load(name, parameters | {"tua": 0.5})

    def test_is_frozen(self, name: str, parameters: dict[str, Any]) -> None:
        with pytest.raises(AttributeError):
            self.load(name, parameters).anything = 1  # type: ignore[attr-defined]

    @pytest.mark.parametrize("rows", [1, 2, 37])
    def test_judges_a_row_alone_as_in_a_batch(self, name: str, parameters: dict[str, Any], rows: int) -> None:
        defense = self.load(name, parameters)
        whole = view_of(defense, rows)
        together = outcome(defense, whole)
        alone = [outcome(defense, narrow(whole, np.array([i]), (i,))) for i in range(rows)]
        for part, joined in zip(zip(*alone, strict=True), together, strict=True):
            np.testing.assert_allclose(np.concatenate(part), joined, rtol=1e-6, atol=1e-9)

    def test_gives_equal_input_an_equal_verdict(self, name: str, parameters: dict[str, Any]) -> None:
        for first, second in zip(
            outcome(d := self.load(name, parameters), view_of(d, 8)), outcome(d, view_of(d, 8)), strict=True
        ):
            np.testing.assert_array_equal(first, second)

    def test_leaves_its_input_alone(self, name: str, parameters: dict[str, Any]) -> None:
        defense = self.load(name, parameters)
        view = view_of(defense, 8)
        assert view.answer is not None
        x, answer = view.batch.inputs["x"].copy(), view.answer.copy()
        outcome(defense, view)
        np.testing.assert_array_equal(view.batch.inputs["x"], x)
        np.testing.assert_array_equal(view.answer, answer)

    def test_a_host_may_keep_what_was_signed(self, name: str, parameters: dict[str, Any]) -> None:
        defense = self.load(name, parameters)
        defense.check_tightened(defense)

    def test_has_a_page(self, name: str, parameters: dict[str, Any]) -> None:
        page = Path(__file__).parents[2] / "docs" / "defenses" / f"{name}.md"
        text = page.read_text()
        for heading in ("What it stops", "What it does not stop", "Cost", "Source"):
            assert f"## {heading}" in text, f"{page} lacks the section {heading!r}"


def test_every_defense_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(DEFENSES)


def test_classes_of_the_examples() -> None:
    assert make_scores(3).values.shape == (3, CLASSES)
