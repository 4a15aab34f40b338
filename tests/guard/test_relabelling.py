"""Classes that change places in released answers: whatever the release policy, in both forms, and failing closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.guard.conftest import CLASSES, KEY, make_batch, make_facts, make_inputs, make_scores
from tests.models import BOUNDS, RELEASE, SCORE, images, misinform, seal_mlp

from garrison.enclave.service import Service
from garrison.errors import GuardError, InputError
from garrison.guard.defenses.release import Release
from garrison.guard.defenses.watermark import Watermark
from garrison.guard.override import UnsafeGuardOverride
from garrison.guard.pipeline import Pipeline, Progress
from garrison.guard.relabelling import exchange, relabel
from garrison.types import Array, DefenseSpec, Task

MARK = DefenseSpec(name="watermark", parameters={"share": 0.2})
MODES: list[dict[str, Any]] = [
    {},
    {"mode": "rounded", "decimals": 2},
    {"mode": "top-k", "k": 3},
    {"mode": "labels"},
]


@pytest.mark.parametrize("parameters", MODES, ids=lambda p: p.get("mode", "full"))
def test_to_exchange_what_is_released_is_to_release_what_is_exchanged(parameters: dict[str, Any]) -> None:
    policy, facts = Release(**parameters), make_facts()
    answer = make_scores(60).values
    numbers = np.random.default_rng(0).integers(0, CLASSES, 60)
    outputs = policy.say(np, answer, facts, policy.settings(facts))
    before = {name: values.copy() for name, values in outputs.items()}
    released = dict(outputs)
    exchange(released, numbers, facts)
    swapped = answer.copy()
    for row, number in enumerate(numbers):
        a = answer[row].argmax()
        b = (a + number) % CLASSES
        swapped[row, [a, b]] = answer[row, [b, a]]
    for name, values in policy.say(np, swapped, facts, policy.settings(facts)).items():
        np.testing.assert_array_equal(released[name], values)
        np.testing.assert_array_equal(outputs[name], before[name])  # what the model computed is never written to


@pytest.mark.parametrize("parameters", MODES, ids=lambda p: p.get("mode", "full"))
def test_both_forms_mark_the_same_rows_in_the_same_way(parameters: dict[str, Any], tmp_path: Path) -> None:
    release = DefenseSpec(name="release", parameters=parameters)
    chain = (BOUNDS, SCORE, misinform(0.6), release, MARK)
    sealed = seal_mlp(tmp_path / "bundle", chain)
    bundle, x = sealed.verified(), {"image": images(200)}

    def service(*specs: DefenseSpec) -> Service:
        return Service(bundle, key=sealed.key, override=UnsafeGuardOverride(specs, "test") if specs else None)

    traced = service()
    assert traced.guard_form == "graph"
    found, same, plain = (s.predict(x).outputs for s in (traced, service(*chain), service(*chain[:-1])))
    name = next(iter(found))
    for n, values in found.items():
        np.testing.assert_allclose(values, same[n], rtol=1e-5, atol=1e-5)
    changed = (found[name] != plain[name]).any(axis=1)
    numbers = Watermark(share=0.2).marks(bundle.manifest.facts(), sealed.key)(x)
    if parameters.get("mode") != "rounded":  # where both numbers round to the same nothing is seen
        np.testing.assert_array_equal(changed, numbers != 0)
    assert 20 < changed.sum() < 65
    alone = np.concatenate([traced.predict({"image": x["image"][i : i + 1]}).outputs[name] for i in range(40)])
    np.testing.assert_allclose(alone, found[name][:40], rtol=1e-5, atol=1e-5)


def test_a_refused_row_is_not_looked_at(tmp_path: Path) -> None:
    sealed = seal_mlp(tmp_path / "bundle", (BOUNDS, RELEASE, MARK))
    service, bad = Service(sealed.verified(), key=sealed.key), images(3)
    bad[1, 0, 0, 0] = np.inf
    with pytest.raises(InputError):
        service.predict({"image": bad})
    assert service.predict({"image": images(3)}).outputs["probabilities"].shape == (3, 5)


def run(chain: tuple[DefenseSpec, ...], rows: int = 300) -> tuple[Progress, dict[str, Array]]:
    pipeline = Pipeline(chain, make_facts(), KEY)
    progress = Progress.begin(make_batch(make_inputs(rows), (rows // 3,) * 3))
    pipeline.answer(progress, make_scores(rows))
    return progress, pipeline.release(progress).outputs


def test_marked_rows_count_as_replaced() -> None:
    progress, found = run((RELEASE, MARK))
    changed = (found["probabilities"] != make_scores(300).values).any(axis=1)
    np.testing.assert_array_equal(progress.replaced, changed)
    assert 30 < changed.sum() < 95


def test_in_shadow_rows_are_counted_and_nothing_changes() -> None:
    progress, found = run((RELEASE, DefenseSpec(name="watermark", shadow=True, parameters={"share": 0.2})))
    np.testing.assert_array_equal(found["probabilities"], make_scores(300).values)
    armed, _ = run((RELEASE, MARK))
    counts = [armed.replaced[i : i + 100].sum() for i in (0, 100, 200)]
    assert progress.shadow["watermark"].tolist() == counts


def test_a_rule_that_raises_lets_nothing_leave() -> None:
    def broken(inputs: dict[str, Array]) -> Array:
        raise ArithmeticError

    batch = make_batch(make_inputs(4))
    assert relabel(broken, batch, [None], {}, make_facts(), shadow=False) is None


def test_the_key_is_needed() -> None:
    with pytest.raises(GuardError, match="misinformation key"):
        Pipeline((RELEASE, MARK), make_facts())


def test_a_model_without_classes_is_refused() -> None:
    with pytest.raises(GuardError, match="regression"):
        Pipeline((RELEASE, MARK), make_facts(Task.REGRESSION), KEY)


@pytest.mark.parametrize("parameters", [{"share": 0.0}, {"share": 0.5}, {"cell": 0.0}, {"cell": 2.0}])
def test_parameters_out_of_range_are_told(parameters: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="watermark"):
        Watermark(**parameters)
