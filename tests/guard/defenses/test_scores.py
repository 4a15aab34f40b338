"""Out-of-distribution scores, the reject option and the release policy."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
from tests.guard.conftest import CLASSES, make_facts, make_scores, make_view

from garrison.errors import GuardError
from garrison.guard.base import Code
from garrison.guard.defenses import energy, max_probability
from garrison.guard.defenses.energy import Energy
from garrison.guard.defenses.reject_option import RejectOption
from garrison.guard.defenses.release import Release, rounded, top_classes
from garrison.types import Task


def test_max_probability() -> None:
    p = np.array([[0.1, 0.9], [0.5, 0.5]])
    assert max_probability.confidence(np, p).tolist() == [0.9, 0.5]
    assert np.asarray(max_probability.confidence(array_api_strict, array_api_strict.asarray(p))).tolist() == [0.9, 0.5]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_energy_is_a_stable_logsumexp(temperature: float) -> None:
    z = np.array([[1.0, 2.0, 3.0], [1000.0, 0.0, -1000.0]])
    expected = temperature * np.logaddexp.reduce(z / temperature, axis=1)
    np.testing.assert_allclose(energy.confidence(np, z, temperature), expected)
    strict = energy.confidence(array_api_strict, array_api_strict.asarray(z), temperature)
    np.testing.assert_allclose(np.asarray(strict), expected)


def test_energy_needs_logits() -> None:
    facts = make_facts()
    without = type(facts)(facts.task, facts.inputs, facts.labels, facts.outputs, facts.value_dtype, False, True)
    with pytest.raises(GuardError, match="logits"):
        Energy().check(without)


def test_reject_option_marks_or_refuses() -> None:
    view = make_view(make_facts(), 4, confidence=np.array([0.9, 0.1, np.nan, 0.5]))
    verdict = RejectOption(tau=0.5)(view)
    assert verdict.codes.tolist() == [Code.KEEP, Code.REPLACE, Code.REPLACE, Code.KEEP]
    assert verdict.uncertain is not None
    assert verdict.uncertain.tolist() == [False, True, True, False]
    assert verdict.values is not None
    np.testing.assert_allclose(verdict.values[1], 1 / CLASSES)
    refused = RejectOption(tau=0.5, action="refuse")(view)
    assert refused.codes.tolist() == [Code.KEEP, Code.REFUSE, Code.REFUSE, Code.KEEP]
    assert not RejectOption(tau=0.5, action="refuse").detail(
        view.facts
    )  # the client is not told how far it was from the border


def test_release_modes() -> None:
    facts, raw = make_facts(), make_scores(5)
    view = make_view(facts, 5)
    assert set(Release()(view).outputs) == {"probabilities"}
    np.testing.assert_array_equal(Release()(view).outputs["probabilities"], raw.values)
    two = Release(mode="rounded", decimals=2)(view).outputs["probabilities"]
    np.testing.assert_allclose(two, np.round(raw.values, 2), atol=1e-6)
    top = Release(mode="top-k", k=3, decimals=1)(view).outputs
    assert top["classes"].shape == top["probabilities"].shape == (5, 3)
    np.testing.assert_array_equal(top["classes"][:, 0], raw.values.argmax(axis=1))
    assert Release(mode="labels")(view).outputs["classes"].tolist() == raw.values.argmax(axis=1, keepdims=True).tolist()


@pytest.mark.parametrize(
    "release", [Release(), Release(mode="top-k", k=2), Release(mode="labels"), Release(mode="rounded", decimals=3)]
)
def test_release_keeps_what_it_describes(release: Release) -> None:
    view = make_view(make_facts(), 7)
    outputs = release(view).outputs
    described = {name: (dtype, shape) for name, dtype, shape in release.describe_outputs(view.facts)}
    assert {n: (x.dtype, x.shape[1:]) for n, x in outputs.items()} == described


def test_ties_are_broken_by_the_lower_class() -> None:
    assert top_classes(np, np.array([[0.25, 0.25, 0.5, 0.25]]), 3).tolist() == [[2, 0, 1]]


def test_rounding_is_half_to_even() -> None:
    assert rounded(np, np.array([0.125, 0.375, 0.5]), 100.0).tolist() == [0.12, 0.38, 0.5]


def test_release_for_a_regressor() -> None:
    facts = make_facts(Task.REGRESSION, outputs=1)
    Release(mode="rounded", decimals=1).check(facts)
    with pytest.raises(GuardError, match="classes"):
        Release(mode="labels").check(facts)


@pytest.mark.parametrize("bad", [{"k": 0}, {"decimals": -1}, {"decimals": 13}, {"mode": "rounded"}])
def test_release_parameters_are_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="release"):
        Release(**bad)  # type: ignore[arg-type]


def test_release_may_only_be_tightened() -> None:
    Release(mode="labels").check_tightened(Release(mode="top-k"))
    for looser, signed in [
        (Release(), Release(mode="labels")),
        (Release(mode="top-k", k=4), Release(mode="top-k", k=3)),
        (Release(mode="rounded", decimals=4), Release(mode="rounded", decimals=2)),
        (Release(mode="top-k", k=1), Release(mode="rounded", decimals=2)),
    ]:
        with pytest.raises(GuardError):
            looser.check_tightened(signed)
