"""The table of a plan: read strictly, its chains built on the signed one, its cells chosen."""

from __future__ import annotations

import pytest
from tests.audit.tables import TABLE
from tests.audit.worlds import World

from garrison.attacks.base import View
from garrison.audit.arms import choose_arms
from garrison.audit.grid import ArmPlan, chain_of, defense_of
from garrison.audit.plan import Plan, filling, load_plan, parse_plan, shipped_plans
from garrison.audit.steps import seeds_of, steps_of
from garrison.audit.targets import guarded
from garrison.errors import GuardError, PlanError
from garrison.guard.defenses import DEFENSES
from garrison.types import DefenseSpec, Phase


def table() -> Plan:
    return parse_plan(TABLE, "a test")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "rounded"', 'name = "labels alone"', "the same name"),
        ('name = "rounded"', 'name = "defended"', "not its chain"),
        ('name = "rounded"', 'name = "a/b"', "letters"),
        ('keep = ["bounds"]', 'keep = ["walls"]', "unknown defense 'walls'"),
        ('keep = ["bounds"]', 'held = ["bounds"]', "held"),
        ("decimals = 1", "decimal = 1", "no parameter 'decimal'"),
        ('attacks = ["knockoff"]', 'attacks = ["copycat"]', "the attack 'copycat'"),
        ('columns = ["naive", "defense-aware"]', 'columns = ["clever"]', "the column 'clever'"),
        ('aware = [{ name = "top-1" }]', 'aware = [{ name = "guess" }]', "unknown tactic 'guess'"),
        ("seeds = [0]", "seeds = [0, 0]", "seeds must not repeat"),
        ('[[columns]]\nname = "naive"', '[[columns]]\nname = "plain"', "without tactics"),
        ("budgets = { knockoff = [10] }", "budgets = { copycat = [10] }", "'copycat'"),
        ("budgets = { knockoff = [10] }", "budgets = { knockoff = [0] }", "at least 1 row"),
        ('name = "jbda"', 'name = "knockoff"', "stands"),
        ("budgets = [30]", 'budgets = [30]\ntactics = [{ name = "top-1" }]', "takes the tactics from them"),
    ],
)
def test_a_bad_table_is_refused_with_its_reason(old: str, new: str, message: str) -> None:
    assert old in TABLE
    with pytest.raises(PlanError, match=message):
        parse_plan(TABLE.replace(old, new, 1), "a test")


def test_arms_need_columns() -> None:
    start, end = TABLE.index("[[columns]]"), TABLE.index("[[arms]]")
    with pytest.raises(PlanError, match="arms need columns"):
        parse_plan(TABLE[:start] + TABLE[end:].replace('columns = ["naive", "defense-aware"]', ""), "a test")


SIGNED = (
    DefenseSpec(name="bounds"),
    DefenseSpec(name="max-probability"),
    DefenseSpec(name="adaptive-misinformation", parameters={"tau": 0.4}),
    DefenseSpec(name="reverse-sigmoid", shadow=True, parameters={"beta": 0.3}),
    DefenseSpec(name="release"),
)


def names(arm: ArmPlan) -> list[str]:
    return [spec.name for spec in chain_of(arm, SIGNED)]


def test_a_chain_stands_on_the_signed_one() -> None:
    spec = DefenseSpec(name="reject-option", parameters={"tau": "$adaptive-misinformation.tau"})
    chain = chain_of(ArmPlan(name="a", drop=("adaptive-misinformation", "reverse-sigmoid"), replaces=(spec,)), SIGNED)
    assert [s.name for s in chain] == ["bounds", "max-probability", "reject-option", "release"]
    assert chain[2].parameters == {"tau": 0.4}
    assert names(ArmPlan(name="a", keep=("bounds", "energy", "release"))) == ["bounds", "release"]


def test_a_defense_in_shadow_brings_its_parameters_along() -> None:
    replaced = (DefenseSpec(name="reverse-sigmoid"),)
    armed = chain_of(ArmPlan(name="a", keep=("bounds", "release"), replaces=replaced), SIGNED)
    assert armed[1] == DefenseSpec(name="reverse-sigmoid", parameters={"beta": 0.3})
    with pytest.raises(GuardError, match="no energy with a 'temperature'"):
        chain_of(
            ArmPlan(name="a", replaces=(DefenseSpec(name="reject-option", parameters={"tau": "$energy.temperature"}),)),
            SIGNED,
        )


def test_cells_are_chosen_by_arm(world: World) -> None:
    plan, facts = table(), guarded(world.opened(world.bundle), world.key).facts
    cells = {
        name: [(s.label, s.tactic, s.budget) for s in steps_of(plan, facts, name)] for name in ("rounded", "defended")
    }
    assert cells["rounded"] == [("knockoff", tactic, b) for tactic in ("naive", "defense-aware") for b in (20, 40)]
    assert len(cells["defended"]) == 3 + 3 + 2
    assert ("knockoff", "in-distribution", 10) in cells["defended"]
    aware = {name: next(s for s in steps_of(plan, facts, name) if s.tactic == "defense-aware") for name in cells}
    assert [type(s.tactics[0]).__name__ for s in aware.values()] == ["Top1", "Repeats"]
    assert [s.senseless for s in steps_of(plan, facts, "defended")][-1] == "it begins with such rows"
    assert (seeds_of(plan, "rounded"), seeds_of(plan, "defended")) == ((0,), (0, 1))
    every = filling(plan, ("rounded",))
    assert len(list(steps_of(every, facts, "rounded"))) == 8
    assert seeds_of(every, "rounded") == (0, 1)
    with pytest.raises(PlanError, match="no arm 'other'"):
        filling(plan, ("other",))


def test_a_service_of_labels_alone_is_read_so(world: World) -> None:
    plan = table()
    bundle = world.opened(world.bundle)
    arms = choose_arms(guarded(bundle, world.key), reference=bundle, key=world.key, plans=plan.arms)
    views = {name: {s.view for s in steps_of(plan, t.facts, name)} for name, t in arms.targets().items()}
    assert views["labels alone"] == {View.LABELS}
    assert views["rounded"] == {View.SOFT}


def test_arms_that_cannot_be_had_are_named(world: World) -> None:
    bundle = world.opened(world.bundle)
    plans = (
        ArmPlan(name="the same", keep=tuple(DEFENSES)),
        ArmPlan(
            name="no score",
            keep=("bounds", "release"),
            replaces=(DefenseSpec(name="reject-option", parameters={"tau": 0.5}),),
        ),
    )
    arms = choose_arms(guarded(bundle, world.key), reference=bundle, key=world.key, plans=plans)
    assert arms.missing["the same"] == "the same chain as 'defended'"
    assert "confidence" in arms.missing["no score"]
    assert "no plain model" in arms.missing["undefended"]
    bare = choose_arms(guarded(bundle, world.key), plans=plans)
    assert set(bare.missing) == {"the same", "no score", "undefended", "outlier-exposure"}


@pytest.mark.parametrize("name", ["guards", "guards-quick"])
def test_the_shipped_tables_fill_what_they_promise(name: str) -> None:
    assert name in shipped_plans()
    plan = load_plan(name)
    assert [attack.name for attack in plan.attacks] == ["knockoff", "jbda", "cloudleak"]
    columns = ["naive", "top-1", "repeats", "defense-aware", "in-distribution", "sybil", "cover-traffic"]
    assert [column.name for column in plan.columns] == columns
    arms = {arm.name: arm for arm in plan.arms}
    assert not arms["misinformation"].attacks
    assert not {"undefended", "defended"} & {arm for arm in arms if arms[arm].attacks}
    for arm in plan.arms:
        if arm.attacks:
            assert (arm.attacks, arm.columns) == (("knockoff", "jbda"), ("naive", "defense-aware"))
    put_in = {spec.name for arm in plan.arms for spec in arm.replaces} | {"adaptive-misinformation"}
    kinds = {name: defense_of(name) for name in DEFENSES}
    answering = {name for name, kind in kinds.items() if kind.phase is Phase.ANSWER and not kind.gives}
    assert answering <= put_in, f"no arm has {sorted(answering - put_in)}"
    assert plan.seeds == ((0, 1, 2) if name == "guards" else (0,))
