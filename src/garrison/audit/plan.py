"""What an audit does: a plan, read from TOML. Strict: an unknown key is an error.

    name = "mine"
    test = "test.npz"              # labelled rows of the model's own kind: a data set's split, or an .npz file
    surrogate = "mnist:train"      # what the thief asks
    seeds = [0, 1, 2]

    [[attacks]]
    name = "knockoff"
    answers = "soft"
    budgets = [500, 2000, 5000]

Invariant: a plan that was read can be carried out as far as it says; names of attacks and their parameters are checked.
"""

from __future__ import annotations

import importlib
import importlib.resources
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from garrison.attacks.base import NAIVE, Attack, Tactic, View
from garrison.attacks.evasion import EVASIONS
from garrison.attacks.evasion.base import Evasion
from garrison.attacks.extraction import ATTACKS
from garrison.attacks.tactics import TACTICS
from garrison.audit import grid
from garrison.audit.grid import ArmPlan, ColumnPlan
from garrison.errors import PlanError

MOST_PLAN_BYTES = 1_000_000
MOST_BUDGET, MOST_A_FEATURE = 1_000_000_000, 1_000_000
CONTROL = "random-labels"
USUAL_PRICE = 1.0
"""US dollars for 1,000 rows where neither plan nor service names a price."""


class AttackPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One attack to carry out.

    Attributes:
        name: of a registered attack.
        label: its name in the report, where one attack stands in a plan with several parameters; else its own name.
        answers: "soft" uses all that is released, "labels" the first class alone.
        budgets: rows that may be asked; one clone for each.
        a_feature: budgets counted in features of the model plus one, rounded up: 1.0 is d + 1 rows.
        tactics: what the thief does who knows the defense: tables with the name of a tactic and its parameters; the first is the
            nearest to the service.
        surrogate: rows that this attack asks, in place of the plan's.
        only: "tables" or "images": models of another kind are not attacked so by this plan; "" attacks all.
        seconds: processor seconds of one clone, about; only for telling how long the audit takes.
        parameters: the attack's own fields.
    """

    name: str = "knockoff"
    label: str = ""
    answers: View = View.SOFT
    budgets: tuple[int, ...] = ()
    a_feature: tuple[float, ...] = ()
    tactics: tuple[dict[str, Any], ...] = ()
    surrogate: str = ""
    only: Literal["", "tables", "images"] = ""
    seconds: float = 0.0
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class EvasionPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One evasion attack to carry out, on each of the plan's pictures.

    Attributes:
        name: of a registered evasion attack.
        label: its name in the report, where one attack stands in a plan with several parameters; else its own name.
        answers: "soft" uses all that is released, "labels" the first class alone.
        budget: rows that may be asked for a picture.
        accounts: "each" attacks every picture from an account of its own, where there are as many; "one" all of them from one.
        at_once: pictures that are attacked side by side.
        only: as in an attack.
        parameters: the attack's own fields.
    """

    name: str
    label: str = ""
    answers: View = View.SOFT
    budget: int = 500
    accounts: Literal["each", "one"] = "each"
    at_once: int = 50
    only: Literal["", "tables", "images"] = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class TrainingPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a thief of hyperparameters knows, and the truth it is graded by.

    Attributes:
        rows: the rows that the model was trained on, with y.
        algorithm: the learner's name.
        settings: the learner's other, public settings.
        truth: the true hyperparameters by name; the thief is not told.
    """

    rows: str
    algorithm: str
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    truth: dict[str, float]


class Control(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The control arm: clones trained on random classes, which steal nothing. Its parameters should be the attacks' own."""

    budgets: tuple[int, ...] = ()
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """See the module's docstring.

    Attributes:
        name: of the plan.
        test: labelled rows of the model's own kind; "" where the command line gives them.
        surrogate: unlabelled rows that the thief asks; "" where the command line gives them.
        outside: rows that are not the model's business, for what honest strangers see; the surrogate rows that no attack
            asks where "".
        test_rows, outside_rows: most rows of each that are used.
        seeds: one clone a seed; from three on intervals are over seeds.
        attacks, control: what is done; none of either where there are evasions.
        evasions: attacks that move pictures until they are named another class.
        pictures: test rows that each of them moves, with each seed.
        taus: thresholds of the similarity sweep; chosen by the range of the score where empty.
        usd_per_1000_queries: what the service charges; left out, what it says itself, and a dollar where it says nothing.
        in_distribution: rows of the model's own kind that the thief has; "" for none.
        in_distribution_rows: most of them that are used.
        labelled_rows: of those, the first ones whose classes the thief knows.
        uniform_rows: rows drawn evenly from the stated range that clones of tables are measured on as well; 0 for none.
        categorical: by flat feature number, the values that it takes.
        training: what a thief of hyperparameters knows.
        enough: fidelity from which on the dearer attacks on that target are left out; above 1 for never.
        settled: the same after an attack whose own check says that it has nearly all it can get, such as a tree found leaf by leaf.
        else_uniform: rows that do not fit the target are replaced by rows drawn evenly from its stated range, and the report says so.
        most_queries, most_usd, most_minutes: what the audit may ask of the service, pay it, and take; 0 for no limit. What does not
            fit is left out, and named.
        arms, columns: the table, see `garrison.audit.grid`; without columns the attacks bring their own tactics.
    """

    name: str
    test: str = ""
    surrogate: str = ""
    outside: str = ""
    test_rows: int = 10_000
    outside_rows: int = 2_000
    seeds: tuple[int, ...] = (0,)
    attacks: tuple[AttackPlan, ...] = ()
    evasions: tuple[EvasionPlan, ...] = ()
    pictures: int = 100
    control: Control = Control()
    taus: tuple[float, ...] = ()
    usd_per_1000_queries: float | None = None
    in_distribution: str = ""
    in_distribution_rows: int = 2_500
    labelled_rows: int = 150
    uniform_rows: int = 0
    categorical: dict[int, tuple[float, ...]] = msgspec.field(default_factory=dict)
    training: TrainingPlan | None = None
    enough: float = 2.0
    settled: float = 2.0
    else_uniform: bool = False
    most_queries: int = 0
    most_usd: float = 0.0
    most_minutes: float = 0.0
    arms: tuple[ArmPlan, ...] = ()
    columns: tuple[ColumnPlan, ...] = ()

    @property
    def usd_per_1000(self) -> float:
        return USUAL_PRICE if self.usd_per_1000_queries is None else self.usd_per_1000_queries

    @property
    def usd_per_query(self) -> float:
        return self.usd_per_1000 / 1000

    def clones(self, targets: int) -> int:
        """How many clones are trained against so many targets."""
        asked = sum(len(attack.budgets) + len(attack.a_feature) for attack in self.attacks)
        return len(self.seeds) * (targets * asked + len(self.control.budgets))


def within(plan: Plan, *, queries: int | None = None, usd: float | None = None, minutes: float | None = None) -> Plan:
    """The plan with other limits; None leaves the plan's own.

    Raises:
        PlanError: a limit that is not above 0 and finite.
    """
    given = {"most_queries": queries, "most_usd": usd, "most_minutes": minutes}
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise PlanError(f"{name} must be above 0 and finite, found {value}")
    return msgspec.structs.replace(plan, **{name: value for name, value in given.items() if value is not None})


def filling(plan: Plan, arms: Sequence[str]) -> Plan:
    """The plan with every cell of these arms filled, with all seeds.

    Raises:
        PlanError: an arm that the plan does not name.
    """
    named = [arm.name for arm in plan.arms]
    unknown = sorted({*arms} - {*named})
    if unknown:
        raise PlanError(f"the plan {plan.name!r} has no arm {unknown[0]!r}; its arms are {', '.join(named) or 'none'}")
    every = {"attacks": (), "columns": (), "seeds": ()}
    found = tuple(msgspec.structs.replace(a, **every) if a.name in arms else a for a in plan.arms)
    return msgspec.structs.replace(plan, arms=found)


def priced(plan: Plan, price: float) -> Plan:
    """The plan with the price of the service, in US dollars for 1,000 rows, where it names none of its own."""
    told = price or USUAL_PRICE
    return plan if plan.usd_per_1000_queries is not None else msgspec.structs.replace(plan, usd_per_1000_queries=told)


def shipped_plans() -> tuple[str, ...]:
    """Names of the plans that come with Garrison."""
    folder = importlib.resources.files("garrison.audit") / "plans"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def load_plan(name: str) -> Plan:
    """A plan by the name of a shipped one, or by the path of a TOML file. Paths in a file count from its folder.

    Raises:
        PlanError: no such plan, not TOML, an unknown key, a value that makes no sense.
    """
    if name in shipped_plans():
        text = (importlib.resources.files("garrison.audit") / "plans" / f"{name}.toml").read_text(encoding="utf-8")
        return parse_plan(text, f"the shipped plan {name!r}")
    path = Path(name)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_PLAN_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        shipped = ", ".join(shipped_plans())
        raise PlanError(
            f"{name}: neither a shipped plan ({shipped}) nor a TOML file that can be read: {error}"
        ) from error
    if len(data) > MOST_PLAN_BYTES:
        raise PlanError(f"{name}: a plan may be {MOST_PLAN_BYTES} bytes long")
    return _anchored(parse_plan(text, name), path.parent)


def parse_plan(text: str, source: str) -> Plan:
    """Read and check a plan.

    Args:
        text: TOML.
        source: where it comes from, for messages.

    Raises:
        PlanError: as `load_plan`.
    """
    try:
        plan = msgspec.convert(tomllib.loads(text), Plan, strict=True, str_keys=True)  # TOML's keys are words
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise PlanError(f"{source}: {error}") from error
    problem = _problem(plan)
    if problem:
        raise PlanError(f"{source}: {problem}")
    for attack in plan.attacks:
        load_attack(attack.name, attack.parameters)
        for tactic in attack.tactics:
            load_tactic(tactic)
    for tactic in grid.tables_of(plan.arms, plan.columns):
        load_tactic(tactic)
    if plan.control.budgets:
        load_attack(CONTROL, plan.control.parameters)
    for evasion in plan.evasions:
        load_evasion(evasion.name, evasion.parameters)
    return plan


def load_attack(name: str, parameters: dict[str, Any]) -> Attack:
    """The attack of that name with its parameters checked.

    Raises:
        PlanError: an unknown name, an unknown or ill-typed parameter.
        MissingExtraError: the attack needs torch.
    """
    found: Attack = _load("attack", ATTACKS, name, parameters)
    return found


def load_evasion(name: str, parameters: dict[str, Any]) -> Evasion:
    """The evasion attack of that name with its parameters checked.

    Raises:
        PlanError: an unknown name, an unknown or ill-typed parameter.
    """
    found: Evasion = _load("evasion attack", EVASIONS, name, parameters)
    return found


def load_tactic(table: Mapping[str, Any]) -> Tactic:
    """The tactic of that table, a name and parameters.

    Raises:
        PlanError: no name, an unknown one, an unknown or ill-typed parameter.
    """
    found: Tactic = _load(
        "tactic", TACTICS, str(table.get("name", "")), {k: v for k, v in table.items() if k != "name"}
    )
    return found


def tactic_names(tables: Sequence[Mapping[str, Any]]) -> str:
    """The names of a set of tactics as a report shows them; "naive" for none."""
    return " + ".join(str(table.get("name", "")) for table in tables) or NAIVE


def _load(what: str, registry: Mapping[str, str], name: str, parameters: dict[str, Any]) -> Any:
    if name not in registry:
        raise PlanError(f"unknown {what} {name!r}; known are {', '.join(sorted(registry))}")
    module, _, attribute = registry[name].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    try:
        return msgspec.convert(parameters, kind)
    except msgspec.ValidationError as error:
        raise PlanError(f"{what} {name!r}: {error}") from error


def _problem(plan: Plan) -> str:
    budgets = [b for attack in plan.attacks for b in attack.budgets] + list(plan.control.budgets)
    shares = [b for attack in plan.attacks for b in attack.a_feature]
    arms = [
        (attack.label or attack.name, tactic_names(attack.tactics), attack.answers, budget)
        for attack in plan.attacks
        for budget in (*attack.budgets, *(f"{share} a feature" for share in attack.a_feature))
    ]
    limits = (plan.most_queries, plan.most_usd, plan.most_minutes)
    checks = {
        "attacks must not be empty, and each needs at least one budget": (plan.attacks or plan.evasions)
        and all(attack.budgets or attack.a_feature for attack in plan.attacks),
        f"a budget must be 1 to {MOST_BUDGET:,} rows, and above 0 and at most {MOST_A_FEATURE:,} a feature": all(
            1 <= budget <= MOST_BUDGET for budget in budgets
        )
        and all(0 < share <= MOST_A_FEATURE for share in shares),
        "an attack stands twice with the same tactics, answers and budget; give one of them a label": len(set(arms))
        == len(arms),
        "most_queries, most_usd and most_minutes must be finite and not negative": all(
            0 <= n < math.inf for n in limits
        ),
        "in_distribution_rows, labelled_rows and uniform_rows must not be negative": min(
            plan.in_distribution_rows, plan.labelled_rows, plan.uniform_rows
        )
        >= 0,
        "pictures, and an evasion's budget and at_once, must be at least 1": plan.pictures >= 1
        and all(min(e.budget, e.at_once) >= 1 for e in plan.evasions),
        "two evasions have the same name, answers and budget; give one of them a label": len(
            {(e.label or e.name, e.answers, e.budget) for e in plan.evasions}
        )
        == len(plan.evasions),
        "enough and settled must be above 0": min(plan.enough, plan.settled) > 0,
        "categorical must name features from 0 on, each with finite values": all(
            number >= 0 and values and all(math.isfinite(value) for value in values)
            for number, values in plan.categorical.items()
        ),
        "training.truth must name lambda, finite and above 0": plan.training is None
        or (set(plan.training.truth) == {"lambda"} and 0 < plan.training.truth["lambda"] < math.inf),
        f"the control arm is asked for under [control], not as the attack {CONTROL!r}": all(
            attack.name != CONTROL for attack in plan.attacks
        ),
        "seeds must not be empty, not repeat, and not be negative": plan.seeds
        and len(set(plan.seeds)) == len(plan.seeds)
        and min(plan.seeds) >= 0,
        "test_rows and outside_rows must be at least 1": plan.test_rows >= 1 and plan.outside_rows >= 1,
        "taus must be finite": all(math.isfinite(tau) for tau in plan.taus),
        "usd_per_1000_queries must be finite and not negative": 0 <= plan.usd_per_1000 < math.inf,
    }
    wrong = next((message for message, holds in checks.items() if not holds), "")
    if plan.columns and any(attack.tactics for attack in plan.attacks):
        wrong = wrong or "a plan with columns takes the tactics from them: leave out the attacks' own"
    return wrong or grid.problem(plan.arms, plan.columns, [attack.label or attack.name for attack in plan.attacks])


def _anchored(plan: Plan, folder: Path) -> Plan:
    def anchor(name: str) -> str:
        return str(folder / name) if name.endswith(".npz") else name

    attacks = tuple(msgspec.structs.replace(a, surrogate=anchor(a.surrogate)) for a in plan.attacks)
    training = plan.training and msgspec.structs.replace(plan.training, rows=anchor(plan.training.rows))
    own = {name: anchor(getattr(plan, name)) for name in ("test", "surrogate", "outside", "in_distribution")}
    return msgspec.structs.replace(plan, **own, attacks=attacks, training=training)
