"""What honest users get, against answers made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.audit.worlds import World, rows

from garrison.attacks.base import Finding
from garrison.attacks.oracle import Answers
from garrison.audit.data import AuditData
from garrison.audit.served import Baseline, Served, ask_honestly, served_findings
from garrison.audit.targets import guarded, unguarded

Y = np.array([0, 1, 2, 0])
X = np.zeros((4, 2), np.float32)
DATA = AuditData(rows(X, Y, "own"), rows(X, None, "other"), rows(X, None, "other"))


def sharp(labels: list[int], top: float = 0.8) -> Any:
    rest = (1 - top) / 2
    return np.array([[top if k == label else rest for k in range(3)] for label in labels])


def answers(labels: list[int], *, soft: bool = True) -> Answers:
    nobody = np.array([label < 0 for label in labels])
    p = np.where(nobody[:, np.newaxis], np.nan, sharp(labels)) if soft else None
    return Answers(np.array(labels), p, nobody, np.zeros(len(labels), dtype=np.bool_))


def found(test: list[int], outside: list[int], **more: Any) -> dict[str, Finding]:
    served = Served(answers(test), answers(outside), answers(outside[::-1]))
    f = Baseline(sharp([0, 1, 2, 1]), sharp([0, 0, 0, 0]))
    own = Baseline(sharp([0, 1, 2, 0]), sharp([1, 1, 1, 1]))
    return {x.metric: x for x in served_findings("defended", served, DATA, 3, f, own, **more)}


def test_every_figure_by_hand() -> None:
    values = {name: x.value for name, x in found([0, 1, 1, 0], [1, 2, 0, 1]).items()}
    assert values == {
        "served_accuracy": 0.75,
        "calibration_error": pytest.approx(0.05),  # 0.8 sure, 3 of 4 right
        "benign_loss_total": 0.0,  # f is right on 3 of 4 as well
        "changed_top1_total": 0.5,
        "mean_l1_total": pytest.approx(0.5 * 1.4),  # two of four vectors differ, each by 0.7 twice
        "benign_loss_guard": 0.25,
        "changed_top1_guard": 0.25,
        "mean_l1_guard": pytest.approx(0.25 * 1.4),
        "outside_classes_used": 3.0,
        "outside_entropy": pytest.approx((0.5 * np.log(2) + 0.5 * np.log(4)) / np.log(3)),
        "repeated_alike": 1.0,
        "outside_changed_top1_total": 0.75,
        "outside_changed_top1_guard": 0.5,
    }


def test_rows_without_an_answer_count_as_wrong_and_are_named() -> None:
    values = {name: x.value for name, x in found([0, 1, 2, -1], [0, 1, 2, 0]).items()}
    assert values["served_accuracy"] == 0.75
    assert values["unanswered"] == 0.25
    assert values["benign_loss_guard"] == 0.25
    assert values["calibration_error"] == pytest.approx(0.2)


def test_an_answer_that_changes_when_asked_again_is_seen() -> None:
    served = Served(answers([0, 1, 2, 0]), answers([0, 1, 2, 0]), answers([1, 2, 1, 0]))
    by_metric = {x.metric: x for x in served_findings("defended", served, DATA, 3, None, None)}
    assert by_metric["repeated_alike"].value == 0.75
    assert "benign_loss_total" not in by_metric
    noisy = Served(
        served.test,
        served.outside,
        Answers(np.array([0, 2, 1, 0]), sharp([0, 2, 1, 0], 0.79), np.zeros(4, np.bool_), np.zeros(4, np.bool_)),
    )
    assert {x.metric: x.value for x in served_findings("d", noisy, DATA, 3, None, None)}["repeated_alike"] == 0.0


def test_labels_alone_give_no_figures_over_probabilities() -> None:
    only = answers([0, 1, 2, 0], soft=False)
    metrics = {x.metric for x in served_findings("defended", Served(only, only, only), DATA, 3, None, None)}
    assert metrics == {"served_accuracy", "outside_classes_used", "outside_entropy"} | {"repeated_alike"}


def test_misinformation_is_the_same_when_asked_again_alone(world: World) -> None:
    bundle = world.opened(world.bundle)
    served = ask_honestly(guarded(bundle, world.key), world.data)
    by_metric = {x.metric: x for x in served_findings("defended", served, world.data, 5, None, None)}
    assert by_metric["repeated_alike"].value == 1.0
    honest = ask_honestly(unguarded(bundle), world.data)
    assert {x.metric: x for x in served_findings("u", honest, world.data, 5, None, None)}[
        "served_accuracy"
    ].value == 1.0
