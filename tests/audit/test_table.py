"""From findings to cells and points: what is empty says why, what is beaten is marked."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.audit.tables import TABLE

from garrison.attacks.base import Finding
from garrison.audit.plan import parse_plan
from garrison.audit.report.content import AlarmCard, LeftOut, ParetoPoint
from garrison.audit.table import ON_REQUEST, cells_of, dominates, pareto_of
from garrison.audit.trials import Looted

PLAN = parse_plan(TABLE, "a test")
ARMS = ("undefended", "rounded", "defended")


def clone(
    target: str,
    value: float,
    *,
    attack: str = "knockoff",
    tactic: str = "naive",
    budget: int = 40,
    metric: str = "clone_accuracy",
) -> Finding:
    low, high = value - 0.01, value + 0.01
    return Finding(
        attack=attack,
        target=target,
        metric=metric,
        value=value,
        low=low,
        high=high,
        interval="t over 3 seeds, 95 %",
        queries=budget,
        seeds=3,
        budget=budget,
        answers="soft",
        tactic=tactic,
        cost_usd=budget * 1e-3,
    )


def honest(target: str, **metrics: float) -> list[Finding]:
    common: dict[str, Any] = {"low": None, "high": None, "interval": "none", "queries": 200, "seeds": 1}
    return [Finding(attack="none", target=target, metric=m, value=v, **common) for m, v in metrics.items()]


def test_a_cell_shows_the_dearest_budget_and_the_fewest_queries_to_090() -> None:
    findings = [clone("defended", 0.3, budget=20), clone("defended", 0.5), clone("defended", 0.6, metric="fidelity")]
    findings.append(msgspec.structs.replace(clone("defended", 20.0, metric="queries_to_fidelity_0.90"), unit="queries"))
    alarm = AlarmCard(
        target="defended",
        attack="knockoff",
        tactic="naive",
        answers="soft",
        budget=40,
        trials=3,
        alarmed=2,
        queries=17.5,
        summed=30.0,
        detectors=("d",),
    )
    cells = cells_of(PLAN, ARMS, {}, findings, Looted(alarms=[alarm]))
    cell = next(c for c in cells if (c.arm, c.thief, c.column) == ("defended", "knockoff", "naive"))
    assert cell.clone_accuracy is not None
    assert cell.fidelity is not None
    assert (cell.clone_accuracy.value, cell.fidelity.value, cell.queries_to_090) == (0.5, 0.6, 20)
    assert (cell.budget, cell.seeds, cell.cost_usd, cell.alarm) == (40, 3, 0.04, alarm)


def test_every_cell_is_there_and_an_empty_one_says_why() -> None:
    left = LeftOut(target="defended", attack="jbda", why="it is senseless", thief="jbda", column="in-distribution")
    missing = {"labels alone": "it cannot be had"}
    cells = cells_of(PLAN, ARMS, missing, [], Looted(left_out=[left]))
    assert len(cells) == (3 + 1) * 2 * 3
    assert list(dict.fromkeys(c.arm for c in cells)) == ["undefended", "rounded", "labels alone", "defended"]
    why = {(c.arm, c.thief, c.column): c.why for c in cells}
    assert why["defended", "jbda", "in-distribution"] == "it is senseless"
    assert why["labels alone", "knockoff", "naive"] == "it cannot be had"
    assert why["rounded", "jbda", "naive"] == ON_REQUEST
    assert why["rounded", "knockoff", "naive"] == "nothing was measured"
    assert cells_of(parse_plan('name = "n"\n[[attacks]]\nbudgets = [5]\n', "a test"), ARMS, {}, [], Looted()) == ()


def point(clone: float, accuracy: float | None, change: float | None) -> ParetoPoint:
    return ParetoPoint(
        arm="a",
        thief="",
        served_accuracy=accuracy,
        mean_l1=change,
        clone_accuracy=clone,
        column="naive",
        by="jbda",
        dominated=False,
    )


def test_what_is_beaten() -> None:
    assert dominates(point(0.1, 0.9, 0.0), point(0.2, 0.9, 0.0))
    assert not dominates(point(0.1, 0.9, 0.0), point(0.1, 0.9, 0.0))
    assert not dominates(point(0.1, 0.8, 0.0), point(0.2, 0.9, 0.0)), "it costs more accuracy"
    assert not dominates(point(0.1, 0.9, 0.5), point(0.2, 0.9, 0.0)), "it changes more"
    assert dominates(point(0.1, 0.9, 0.0), point(0.1, 0.9, None)), "what was not measured is the worst"
    assert not dominates(point(0.0, None, 0.0), point(0.5, 0.9, 0.0))


def test_points_compare_the_cells_that_all_arms_filled() -> None:
    findings = [
        *(
            clone("undefended", v, tactic=t)
            for v, t in ((0.4, "naive"), (0.5, "defense-aware"), (0.9, "in-distribution"))
        ),
        *(clone("rounded", v, tactic=t) for v, t in ((0.6, "naive"), (0.45, "defense-aware"))),
        *(
            clone("defended", v, tactic=t)
            for v, t in ((0.1, "naive"), (0.2, "defense-aware"), (0.8, "in-distribution"))
        ),
        clone("undefended", 0.7, attack="jbda"),
        clone("defended", 0.6, attack="jbda"),
    ]
    served = [*honest("undefended", served_accuracy=0.9), *honest("rounded", served_accuracy=0.9, mean_l1_guard=0.1)]
    served += honest("defended", served_accuracy=0.89, mean_l1_guard=0.05)
    found = pareto_of(cells_of(PLAN, ARMS, {}, findings, Looted()), served)
    mine = {(p.thief, p.arm): p for p in found}
    assert (mine["knockoff", "rounded"].clone_accuracy, mine["knockoff", "rounded"].column) == (0.6, "naive")
    assert mine["knockoff", "undefended"].clone_accuracy == 0.5, "in-distribution is not filled for all"
    assert [mine["knockoff", arm].dominated for arm in ARMS] == [False, True, False]
    assert mine["knockoff", "undefended"].mean_l1 == 0.0
    assert ("jbda", "rounded") not in mine
    assert mine["", "defended"].clone_accuracy == 0.2, "JBDA is not filled for all"
