"""`--defense NAME:key=value,...`: what an owner types, and what becomes of the chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bundle.conftest import make_network
from tests.sealing.test_sources import hardened as hardened  # noqa: PLC0414  a fixture
from tests.sealing.test_sources import names, options, parameters, rows, source, two_headed

from garrison.errors import ConfigError, GuardError
from garrison.sealing.chain import HARDEN_NOTE
from garrison.sealing.chosen import changes_answers, choice_of, choices_of, kind_of
from garrison.sealing.draft import Draft
from garrison.sealing.sources import draft_from_hardened, draft_from_source


def drafted(*defenses: str, **given: Any) -> Draft:
    return draft_from_source(source(), rows(), options(defenses=defenses, **given))


def answering(draft: Draft) -> list[str]:
    """The defenses that say what is answered."""
    return [spec.name for spec in draft.guard if changes_answers(kind_of(spec.name))]


@pytest.mark.parametrize(
    ("text", "name", "given"),
    [
        ("modelguard-w", "modelguard-w", {}),
        (" modelguard-w : epsilon = 0.5 , keep_first=false ", "modelguard-w", {"epsilon": 0.5, "keep_first": False}),
        (
            "gradient-redirection:direction=opposite,seed=7",
            "gradient-redirection",
            {"direction": "opposite", "seed": 7},
        ),
    ],
)
def test_what_is_typed(text: str, name: str, given: dict[str, Any]) -> None:
    if text.startswith(" "):
        text = text.replace(" : ", ":")
    found = choice_of(text)
    assert (found.name, found.parameters) == (name, given)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("modelgard", "unknown defense 'modelgard'; known are"),
        ("", "unknown defense"),
        ("modelguard-w:", "expected key=value"),
        ("modelguard-w:epsilon", "expected key=value"),
        ("modelguard-w:epsilon=", "expected key=value"),
        ("modelguard-w:=1", "expected key=value"),
        ("modelguard-w:epsilon=1,epsilon=2", "given twice"),
        ("release:mode=labels", "chosen by --release"),
        ("budget:rows=5", "chosen by --budget"),
    ],
)
def test_what_cannot_be_typed_is_told(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        choice_of(text)


def test_a_defense_is_given_once() -> None:
    with pytest.raises(ConfigError, match="put its parameters together"):
        choices_of(["modelguard-w:epsilon=1", "modelguard-w:keep_first=true"])


@pytest.mark.parametrize("text", ["modelguard-w:eps=1", "modelguard-w:epsilon=9", "modelguard-w:epsilon=much"])
def test_a_parameter_that_cannot_be_is_told(text: str) -> None:
    with pytest.raises(GuardError, match="defense 'modelguard-w'"):
        drafted(text)


def test_one_text_is_not_several() -> None:
    with pytest.raises(ConfigError, match="several texts"):
        options(defenses="modelguard-w")


def test_it_stands_in_the_chain_with_what_it_needs() -> None:
    draft = drafted("gradient-redirection:epsilon=0.5")
    found = [name for name in names(draft) if name != "watch"]
    assert found == ["bounds", "projection", "max-probability", "gradient-redirection", "release"]
    assert parameters(draft, "gradient-redirection")["epsilon"] == 0.5
    assert HARDEN_NOTE not in draft.notes, "the owner has chosen what is answered"


def test_a_seed_that_is_not_given_is_drawn_and_stays_secret_by_chance() -> None:
    drawn = {parameters(drafted("prediction-poisoning"), "prediction-poisoning")["seed"] for _ in range(3)}
    assert len(drawn) == 3
    assert parameters(drafted("prediction-poisoning:seed=5"), "prediction-poisoning")["seed"] == 5


def test_a_codebook_is_calibrated_on_the_rows() -> None:
    codes = np.array(parameters(drafted("modelguard-s:epsilon=0.3"), "modelguard-s")["codes"])
    assert codes.shape[1] == 3
    assert len(codes) > len(parameters(drafted("modelguard-s:epsilon=2"), "modelguard-s")["codes"])


def test_it_takes_the_place_of_misinformation(hardened: Path) -> None:
    draft = draft_from_hardened(hardened, options(defenses=("modelguard-w",)))
    assert answering(draft) == ["modelguard-w"]
    assert draft.misinformation is None, "what the chain does not use is not sealed"


def test_several_stand_together_and_keep_what_was_calibrated(hardened: Path) -> None:
    both = ("adaptive-misinformation", "modelguard-s")
    draft = draft_from_hardened(hardened, options(defenses=both), rows())
    assert answering(draft) == list(both)
    assert parameters(draft, "adaptive-misinformation")["tau"] == 0.5
    assert draft.misinformation is not None
    raised = draft_from_hardened(hardened, options(defenses=("adaptive-misinformation:tau=0.6",)))
    assert parameters(raised, "adaptive-misinformation")["tau"] == 0.6


def test_a_threshold_is_taken_over_by_another_defense_of_the_same_score(hardened: Path) -> None:
    draft = draft_from_hardened(hardened, options(defenses=("reject-option:action=refuse",)))
    assert parameters(draft, "reject-option") == {"tau": 0.5, "action": "refuse"}


def test_a_threshold_of_another_score_is_not(hardened: Path) -> None:
    with pytest.raises(GuardError, match="was calibrated on max-probability, and would now be compared with energy"):
        draft_from_hardened(hardened, options(defenses=("energy",)))
    with pytest.raises(GuardError, match="tau"):
        drafted("reject-option")


def test_other_defenses_leave_the_answer_alone(hardened: Path) -> None:
    draft = draft_from_hardened(hardened, options(defenses=("projection:width=8", "repeat-watch:rows=9")))
    assert answering(draft) == ["adaptive-misinformation"]
    assert {"projection", "repeat-watch"} <= set(names(draft))
    assert parameters(draft, "projection")["width"] == 8


def test_a_codebook_needs_rows(hardened: Path) -> None:
    with pytest.raises(ConfigError, match="--data is needed"):
        draft_from_hardened(hardened, options(defenses=("modelguard-s",)))
    draft = draft_from_hardened(hardened, options(defenses=("modelguard-s",)), rows())
    assert parameters(draft, "modelguard-s")["codes"]


def test_two_answers_to_one_question_are_told(hardened: Path) -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        draft_from_hardened(hardened, options(defenses=("modelguard-w",), on_ood="refuse"))
    draft_from_hardened(hardened, options(defenses=("projection",), on_ood="refuse"))


def test_a_chosen_defense_can_run_in_shadow() -> None:
    draft = drafted("modelguard-w", shadow=frozenset({"modelguard-w"}))
    assert [spec.name for spec in draft.guard if spec.shadow] == ["modelguard-w"]


def test_a_model_with_a_misinformation_head_and_another_choice() -> None:
    draft = draft_from_source(source(two_headed()), rows(), options(defenses=("modelguard-w",)))
    assert answering(draft) == ["modelguard-w"]
    assert HARDEN_NOTE in draft_from_source(source(make_network()), rows(), options()).notes
