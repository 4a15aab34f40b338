"""The cells of a plan's table, and what each of its arms costs honest users and gives a thief. Pure functions of what was measured."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from garrison.attacks.base import Finding
from garrison.audit.grid import arm_named, filled
from garrison.audit.plan import Plan
from garrison.audit.report.content import AlarmCard, LeftOut, ParetoPoint, Share, TableCell
from garrison.audit.targets import TargetName
from garrison.audit.trials import Looted

ON_REQUEST = "on request: --fill"
_CLONE, _FIDELITY, _REACHED = "clone_accuracy", "fidelity", "queries_to_fidelity_0.90"
ALL_THIEVES = ""
_AS_GOOD = 1e-9
_MOST = 0.75


def cells_of(
    plan: Plan, arms: Sequence[str], missing: Mapping[str, str], findings: Sequence[Finding], looted: Looted
) -> tuple[TableCell, ...]:
    """Every cell of the table, arm by arm, thief by thief; those that were not filled say why. None without columns.

    Args:
        plan: whose table.
        arms: those that were attacked, in the order of the report.
        missing: those that could not be had, and why.
        findings: what was measured.
        looted: alarms, and what was left out.
    """
    thieves = [attack.label or attack.name for attack in plan.attacks]
    # The service itself stands last.
    rows = [*arms[:-1], *missing, *arms[-1:]]
    places = itertools.product(rows, thieves, [column.name for column in plan.columns])
    return tuple(_cell(plan, place, missing, findings, looted) for place in places)


def _cell(
    plan: Plan, place: tuple[str, str, str], missing: Mapping[str, str], findings: Sequence[Finding], looted: Looted
) -> TableCell:
    arm, thief, column = place
    empty = TableCell(arm=arm, thief=thief, column=column)
    mine = [f for f in findings if (f.target, f.attack, f.tactic) == place]
    clones = [f for f in mine if f.metric in {_CLONE, _FIDELITY}]
    if not clones:
        why = missing.get(arm, "") or _why(looted.left_out, place)
        asked = filled(arm_named(plan.arms, arm), thief, column)
        return msgspec.structs.replace(empty, why=why or ("nothing was measured" if asked else ON_REQUEST))
    largest = max(f.budget for f in clones)
    by = {f.metric: f for f in clones if f.budget == largest}
    one = next(iter(by.values()))
    reached = next((f.value for f in mine if f.metric == _REACHED), None)
    return msgspec.structs.replace(
        empty,
        budget=largest,
        queries=one.queries,
        cover=one.cover,
        seeds=one.seeds,
        clone_accuracy=_share(by.get(_CLONE)),
        fidelity=_share(by.get(_FIDELITY)),
        queries_to_090=None if reached is None else int(reached),
        cost_usd=one.cost_usd,
        alarm=_alarm(looted.alarms, place, largest),
    )


def _why(left_out: Sequence[LeftOut], place: tuple[str, str, str]) -> str:
    return next((item.why for item in left_out if (item.target, item.thief, item.column) == place), "")


def _alarm(alarms: Sequence[AlarmCard], place: tuple[str, str, str], budget: int) -> AlarmCard | None:
    return next((a for a in alarms if ((a.target, a.attack, a.tactic), a.budget) == (place, budget)), None)


def _share(finding: Finding | None) -> Share | None:
    if finding is None or finding.value is None:
        return None
    return Share(finding.value, finding.low, finding.high)


def pareto_of(cells: Sequence[TableCell], findings: Sequence[Finding]) -> tuple[ParetoPoint, ...]:
    """One point an arm, for each thief and for the best of all.

    Only cells that are filled for nearly all arms that this thief attacked count, or an arm would look worse for having been tried more; an arm that
    lacks one of them (the audit is not done yet) has no point.
    """
    known = [cell for cell in cells if cell.clone_accuracy is not None]
    arms = list(dict.fromkeys(cell.arm for cell in known))
    found: list[ParetoPoint] = []
    for thief in (*dict.fromkeys(cell.thief for cell in known), ALL_THIEVES):
        mine = [cell for cell in known if thief in {cell.thief, ALL_THIEVES}]
        attacked = {cell.arm for cell in mine} if thief else {*arms}
        often = Counter((c.thief, c.column) for c in mine)
        common = {place for place, count in often.items() if count >= _MOST * len(attacked)}
        whole = [arm for arm in arms if common <= {(c.thief, c.column) for c in mine if c.arm == arm}]
        points = [_point(arm, thief, [c for c in mine if (c.thief, c.column) in common], findings) for arm in whole]
        found += _marked([point for point in points if point is not None])
    return tuple(found)


def _point(arm: str, thief: str, cells: Sequence[TableCell], findings: Sequence[Finding]) -> ParetoPoint | None:
    mine = [cell for cell in cells if cell.arm == arm]
    if not mine:
        return None
    best = max(mine, key=_stolen)
    served = {f.metric: f.value for f in findings if f.target == arm}
    bare = arm in {TargetName.UNDEFENDED, TargetName.EXPOSURE}
    return ParetoPoint(
        arm=arm,
        thief=thief,
        served_accuracy=served.get("served_accuracy"),
        mean_l1=0.0 if bare else served.get("mean_l1_guard"),
        clone_accuracy=_stolen(best),
        column=best.column,
        by=best.thief,
        dominated=False,
    )


def _stolen(cell: TableCell) -> float:
    return 0.0 if cell.clone_accuracy is None else cell.clone_accuracy.value


def _marked(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    return [msgspec.structs.replace(p, dominated=any(dominates(q, p) for q in points)) for p in points]


def dominates(a: ParetoPoint, b: ParetoPoint) -> bool:
    """Whether a gives away no more than b and costs no more, in accuracy and in change of the answer, and is better in one of the three.

    What was not measured counts as the worst.
    """
    mine, other = _costs(a), _costs(b)
    return all(x <= y + _AS_GOOD for x, y in zip(mine, other, strict=True)) and any(
        x < y - _AS_GOOD for x, y in zip(mine, other, strict=True)
    )


def _costs(point: ParetoPoint) -> tuple[float, float, float]:
    accuracy = -math.inf if point.served_accuracy is None else point.served_accuracy
    return point.clone_accuracy, -accuracy, math.inf if point.mean_l1 is None else point.mean_l1
