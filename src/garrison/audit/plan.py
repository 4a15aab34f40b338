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
from pathlib import Path
from typing import Any

import msgspec

from garrison.attacks.base import Attack, View
from garrison.attacks.extraction import ATTACKS
from garrison.errors import PlanError

MOST_PLAN_BYTES = 1_000_000
CONTROL = "random-labels"


class AttackPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One attack to carry out.

    Attributes:
        name: of a registered attack.
        answers: "soft" uses the released probabilities, "labels" the first class alone.
        budgets: rows that may be asked; one clone for each.
        parameters: the attack's own fields.
    """

    name: str = "knockoff"
    answers: View = View.SOFT
    budgets: tuple[int, ...]
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


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
        attacks, control: what is done.
        taus: thresholds of the similarity sweep; chosen by the range of the score where empty.
        usd_per_1000_queries: what the service charges.
    """

    name: str
    test: str = ""
    surrogate: str = ""
    outside: str = ""
    test_rows: int = 10_000
    outside_rows: int = 2_000
    seeds: tuple[int, ...] = (0,)
    attacks: tuple[AttackPlan, ...]
    control: Control = Control()
    taus: tuple[float, ...] = ()
    usd_per_1000_queries: float = 1.0

    @property
    def usd_per_query(self) -> float:
        return self.usd_per_1000_queries / 1000

    def clones(self, targets: int) -> int:
        """How many clones are trained against so many targets."""
        asked = sum(len(attack.budgets) for attack in self.attacks)
        return len(self.seeds) * (targets * asked + len(self.control.budgets))

    def training_rows(self, targets: int) -> int:
        """How many rows all those clones are trained on."""
        asked = sum(sum(attack.budgets) for attack in self.attacks)
        return len(self.seeds) * (targets * asked + sum(self.control.budgets))


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
        plan = msgspec.convert(tomllib.loads(text), Plan, strict=True)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise PlanError(f"{source}: {error}") from error
    problem = _problem(plan)
    if problem:
        raise PlanError(f"{source}: {problem}")
    for attack in plan.attacks:
        load_attack(attack.name, attack.parameters)
    if plan.control.budgets:
        load_attack(CONTROL, plan.control.parameters)
    return plan


def load_attack(name: str, parameters: dict[str, Any]) -> Attack:
    """The attack of that name with its parameters checked.

    Raises:
        PlanError: an unknown name, an unknown or ill-typed parameter.
        MissingExtraError: the attack needs torch.
    """
    if name not in ATTACKS:
        raise PlanError(f"unknown attack {name!r}; known are {', '.join(sorted(ATTACKS))}")
    module, _, attribute = ATTACKS[name].partition(":")
    kind: type[Attack] = getattr(importlib.import_module(module), attribute)
    try:
        return msgspec.convert(parameters, kind)
    except msgspec.ValidationError as error:
        raise PlanError(f"attack {name!r}: {error}") from error


def _problem(plan: Plan) -> str:
    budgets = [b for attack in plan.attacks for b in attack.budgets] + list(plan.control.budgets)
    arms = [(attack.name, attack.answers, budget) for attack in plan.attacks for budget in attack.budgets]
    checks = {
        "attacks must not be empty, and each needs at least one budget": plan.attacks
        and all(attack.budgets for attack in plan.attacks),
        "a budget must be at least 1 row": all(budget >= 1 for budget in budgets),
        "an attack stands twice with the same answers and budget": len(set(arms)) == len(arms),
        f"the control arm is asked for under [control], not as the attack {CONTROL!r}": all(
            attack.name != CONTROL for attack in plan.attacks
        ),
        "seeds must not be empty, not repeat, and not be negative": plan.seeds
        and len(set(plan.seeds)) == len(plan.seeds)
        and min(plan.seeds) >= 0,
        "test_rows and outside_rows must be at least 1": plan.test_rows >= 1 and plan.outside_rows >= 1,
        "taus must be finite": all(math.isfinite(tau) for tau in plan.taus),
        "usd_per_1000_queries must be finite and not negative": 0 <= plan.usd_per_1000_queries < math.inf,
    }
    return next((message for message, holds in checks.items() if not holds), "")


def _anchored(plan: Plan, folder: Path) -> Plan:
    def anchor(name: str) -> str:
        return str(folder / name) if name.endswith(".npz") else name

    return msgspec.structs.replace(
        plan, test=anchor(plan.test), surrogate=anchor(plan.surrogate), outside=anchor(plan.outside)
    )
