"""The sentences of a report say what was stolen, what the thief had before, and what was not tried."""

from __future__ import annotations

import numpy as np
from tests.audit.worlds import PLAN

from garrison.attacks.base import Finding
from garrison.audit import words
from garrison.audit.data import AuditData, Rows
from garrison.audit.plan import parse_plan
from garrison.audit.report.content import LeftOut
from garrison.errors import AuditSpentError

ROWS = Rows(np.zeros((1, 2)), np.zeros(1, dtype=np.int64), (), "rows", "")
DATA = AuditData(ROWS, ROWS, ROWS, own=ROWS)


def finding(attack: str, value: float, queries: int, tactic: str = "naive", metric: str = "clone_accuracy") -> Finding:
    return Finding(
        attack=attack,
        target="defended",
        metric=metric,
        value=value,
        low=None,
        high=None,
        interval="none",
        queries=queries,
        seeds=1,
        tactic=tactic,
        cost_usd=queries / 1000,
    )


def test_rows_that_the_thief_labelled_are_no_loot() -> None:
    plan = parse_plan(PLAN, "a test")
    jbda, alone, knockoff = finding("jbda", 0.79, 2400), finding("seeds-alone", 0.71, 0), finding("knockoff", 0.9, 500)
    text = words.headline(plan, DATA, [jbda, alone], [])
    assert "79.0 %" in text
    assert text.endswith("own kind (rows); the 150 that it labelled by hand give 71.0 % without a question.")
    informed = finding("knockoff", 0.9, 500, "in-distribution + top-1")
    assert words.headline(plan, DATA, [informed, alone], []).endswith("had rows of the model's own kind (rows).")
    # Control: a thief who began with nothing, and one who was not compared.
    assert "own kind" not in words.headline(plan, DATA, [jbda, alone, knockoff], [])
    assert "labelled" not in words.headline(plan, DATA, [jbda], [])


def stolen(attack: str, accuracy: float, fidelity: float, queries: int) -> list[Finding]:
    return [
        finding(attack, accuracy, queries),
        finding(attack, fidelity, queries, metric="fidelity"),
    ]


def test_the_headline_names_the_thief_with_the_whole_model_and_not_a_cheaper_one_who_is_right_by_luck() -> None:
    plan = parse_plan(PLAN, "a test")
    whole, lucky = stolen("path-finding", 0.941, 1.0, 1200), stolen("knockoff", 0.943, 0.9962, 500)
    text = words.headline(plan, DATA, [*lucky, *whole], [])
    assert "by path-finding" in text
    assert "is right on 94.1 % and answers as the undefended model on 100.0 % of rows" in text
    dearer = stolen("equation-solving", 0.941, 1.0, 5000)
    assert words.best_clone([*dearer, *whole]) == whole[1]  # of two with the whole model the cheaper one
    # Control: of trained clones half a point is luck, and the cheaper one is named.
    near, nearest = stolen("knockoff", 0.78, 0.802, 500), stolen("copycat", 0.79, 0.806, 2000)
    assert words.best_clone([*nearest, *near]) == near[1]
    assert words.best_clone([*nearest, *stolen("knockoff", 0.79, 0.795, 500)]) == nearest[1]
    # Where no reference is at hand, by accuracy.
    assert words.best_clone([lucky[0], whole[0]]) == lucky[0]


def test_an_audit_that_stopped_early_says_so() -> None:
    over = LeftOut(
        target="defended", attack="cloudleak, 430 queries, soft", why="12 minutes are gone", code=AuditSpentError.code
    )
    senseless = LeftOut(target="defended", attack="jbda", why="of its own rows none are left")
    (sentence,) = words.cut_short([over, senseless])
    assert "12 minutes" in sentence
    assert "cloudleak" in sentence
    assert "jbda" not in sentence
    assert words.cut_short([senseless]) == []
