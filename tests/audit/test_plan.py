"""Plans are strict."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.audit.worlds import PLAN

from garrison.attacks.base import View
from garrison.attacks.extraction import ATTACKS
from garrison.attacks.tactics import TACTICS
from garrison.audit.plan import load_attack, load_plan, parse_plan, shipped_plans, within
from garrison.errors import PlanError

TRAINING = 'training = {{ rows = "t.npz", algorithm = "ridge", truth = {} }}'


def test_categories_and_what_is_known_of_the_training_are_read() -> None:
    text = PLAN.replace('name = "small"', f'name = "small"\n{TRAINING.format("{ lambda = 2.0 }")}')
    plan = parse_plan("categorical = { 3 = [0, 1, 2.5], 0 = [1] }\n" + text, "a test")
    assert plan.categorical == {3: (0.0, 1.0, 2.5), 0: (1.0,)}
    assert plan.training is not None
    assert plan.training.truth == {"lambda": 2.0}


def test_the_shipped_plans_read_and_the_demo_trains_at_most_15_clones() -> None:
    assert shipped_plans() == (
        "bench",
        "demo",
        "evasion",
        "extraction",
        "extraction-quick",
        "guards",
        "guards-quick",
        "knockoff",
    )
    demo, bench = load_plan("demo"), load_plan("bench")
    assert demo.clones(3) == 15
    assert (demo.test, demo.surrogate) == ("fashion-mnist:test", "mnist:train")
    assert len(bench.seeds) == 5
    assert bench.attacks == demo.attacks
    assert [a.budgets for a in demo.attacks if a.answers is View.SOFT] == [(500, 2000, 5000)]
    assert load_plan("knockoff").test == ""


def test_the_control_is_trained_like_the_attacks() -> None:
    """A control with other parameters would be no control. It is one of knockoffs, which it is trained like."""
    for name in shipped_plans():
        plan = load_plan(name)
        control = load_attack("random-labels", plan.control.parameters)
        for attack in (a for a in plan.attacks if a.name == "knockoff" and not a.label):
            mine = load_attack(attack.name, attack.parameters)
            assert [getattr(mine, f) for f in mine.__struct_fields__] == [
                getattr(control, f) for f in mine.__struct_fields__
            ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "small"', 'name = "small"\ncolour = "red"', "colour"),
        ("seeds = [0]", "seeds = []", "seeds must not be empty"),
        ("seeds = [0]", "seeds = [1, 1]", "not repeat"),
        ("seeds = [0]", 'seeds = ["1"]', "int"),
        ("budgets = [40, 80]", "budgets = []", "at least one budget"),
        ("budgets = [40, 80]", "budgets = [0]", "a budget must be 1 to"),
        ("budgets = [40, 80]", "budgets = [9000000000]", "a budget must be 1 to"),
        ("budgets = [40, 80]", "a_feature = [inf]", "a feature"),
        ('name = "small"', 'name = "small"\ncategorical = { 3 = [] }', "categorical"),
        ('name = "small"', 'name = "small"\ncategorical = { -1 = [0] }', "categorical"),
        ('name = "small"', 'name = "small"\ncategorical = { colour = [0] }', "categorical"),
        ('name = "small"', f'name = "small"\n{TRAINING.format("{ lambda = 0.0 }")}', "training.truth"),
        ('name = "small"', f'name = "small"\n{TRAINING.format("{ alpha = 1.0 }")}', "training.truth"),
        ("epochs = 2", "epoch = 2", "epoch"),
        ("epochs = 2", "epochs = 0", "epochs"),
        ('answers = "labels"', 'answers = "hard"', "hard"),
        ('answers = "labels"', 'answers = "soft"', "twice"),
        ('answers = "labels"', 'name = "no-such"', "unknown attack 'no-such'"),
        ('answers = "labels"', 'name = "random-labels"', "under \\[control\\]"),
        ("usd_per_1000_queries = 2.0", "usd_per_1000_queries = -1.0", "not negative"),
        ("usd_per_1000_queries = 2.0", "usd_per_1000_queries = nan", "finite"),
        ("test_rows = 300", "test_rows = 0", "test_rows"),
        ("test_rows = 300", "taus = [inf]", "taus"),
        ("test_rows = 300", "test_rows =", "a test"),
    ],
)
def test_a_bad_plan_is_refused_with_its_reason(old: str, new: str, message: str) -> None:
    assert old in PLAN
    with pytest.raises(PlanError, match=message):
        parse_plan(PLAN.replace(old, new, 1), "a test")


def test_a_file_names_rows_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('test = "t.npz"\nsurrogate = "mnist:train"' + PLAN)
    plan = load_plan(str(tmp_path / "mine.toml"))
    assert (plan.test, plan.surrogate) == (str(tmp_path / "t.npz"), "mnist:train")
    with pytest.raises(PlanError, match="neither a shipped plan"):
        load_plan(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("most", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_limit_that_would_hold_nothing_back_is_refused(most: float) -> None:
    plan = parse_plan(PLAN, "a test")
    assert within(plan, usd=3.0, minutes=2.0).most_usd == 3.0
    for name in ("usd", "minutes"):
        with pytest.raises(PlanError, match="finite"):
            within(plan, **{name: most})  # type: ignore[arg-type]


def test_counts_and_prices() -> None:
    plan = parse_plan(PLAN, "a test")
    assert (plan.clones(3), plan.usd_per_query) == (10, 0.002)


def test_the_extraction_plans_name_every_attack_that_there_is() -> None:
    named = {attack.name for attack in load_plan("extraction").attacks}
    assert set(ATTACKS) - named == {"random-labels"}
    quick = load_plan("extraction-quick")
    assert {attack.name for attack in quick.attacks} <= named
    assert 0 < quick.most_minutes < 15
    tactics = {str(table["name"]) for attack in load_plan("extraction").attacks for table in attack.tactics}
    assert tactics == set(TACTICS)
