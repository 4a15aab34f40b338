"""The table of a plan: arms (chains of defenses) by columns (what the thief does who knows them) by thieves (the plan's attacks).

    [[arms]]
    name = "reverse-sigmoid"
    keep = ["bounds", "release"]                    # of the signed chain; all of it where left out
    replaces = [{ name = "reverse-sigmoid" }]       # in the place of the same name, else after its phase
    attacks = ["knockoff"]                          # the cells that are filled; all where left out
    columns = ["naive", "defense-aware"]
    seeds = [0]
    aware = [{ name = "restore-bayes", mechanism = "reverse-sigmoid" }]

    [[columns]]
    name = "defense-aware"
    tactics = [{ name = "drop-suspicious" }]        # of arms that say nothing of their own

What only calibration knows comes from the signed chain: a defense that stands there, also in shadow, brings its parameters along, and
"$adaptive-misinformation.tau" is that parameter's signed value.

Invariant: a chain of an arm runs in this process only, under an `UnsafeGuardOverride`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from garrison.attacks.base import NAIVE
from garrison.errors import GuardError
from garrison.guard.base import Defense
from garrison.guard.defenses import DEFENSES
from garrison.types import DefenseSpec

SIGNED = "$"
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9 ,.:+_-]*")
OWN_ARMS = ("undefended", "outlier-exposure", "defended")
"""Arms that every audit has: a plan may say which of their cells are filled, and nothing of their chains."""


class ArmPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One arm of the table.

    Attributes:
        name: in the report.
        keep: names of the signed chain's defenses that stay, where it has them; None for all.
        drop: names of those that go.
        replaces: defenses that are put in.
        aware: the tactics of a thief who knows this arm; the column's own where empty.
        attacks, columns: the cells that are filled, by their names in the plan; all where empty.
        seeds: the plan's where empty.
    """

    name: str
    keep: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    replaces: tuple[DefenseSpec, ...] = ()
    aware: tuple[dict[str, Any], ...] = ()
    attacks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether it says anything of the chain."""
        return self.keep is not None or bool(self.drop or self.replaces)


class ColumnPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One column of the table.

    Attributes:
        name: in the report; "naive" for a thief without tactics.
        tactics: as in an attack.
        by_arm: whether an arm's own `aware` takes their place.
        budgets: by attack, in place of its own.
        senseless: by attack, why this cell says nothing; it is not filled.
    """

    name: str
    tactics: tuple[dict[str, Any], ...] = ()
    by_arm: bool = False
    budgets: dict[str, tuple[int, ...]] = msgspec.field(default_factory=dict)
    senseless: dict[str, str] = msgspec.field(default_factory=dict)

    def tactics_on(self, arm: ArmPlan) -> tuple[dict[str, Any], ...]:
        """The tactics against an arm."""
        return arm.aware if self.by_arm and arm.aware else self.tactics


def arm_named(arms: Sequence[ArmPlan], name: str) -> ArmPlan:
    """The plan's arm of that name; one that fills all cells where it says nothing of it."""
    return next((arm for arm in arms if arm.name == name), ArmPlan(name=name))


def filled(arm: ArmPlan, attack: str, column: str) -> bool:
    """Whether the plan fills a cell of an arm; the others are filled on request."""
    return (not arm.attacks or attack in arm.attacks) and (not arm.columns or column in arm.columns)


def chain_of(arm: ArmPlan, signed: Sequence[DefenseSpec]) -> tuple[DefenseSpec, ...]:
    """The arm's chain on top of the signed one.

    Raises:
        GuardError: a value that the signed chain does not have, or a defense with parameters that it refuses.
    """
    there = {spec.name: spec for spec in signed}
    chain = [s for s in signed if (arm.keep is None or s.name in arm.keep) and s.name not in arm.drop]
    for spec in arm.replaces:
        known = there[spec.name].parameters if spec.name in there else {}
        given = {name: _value(value, there) for name, value in spec.parameters.items()}
        new = DefenseSpec(name=spec.name, shadow=spec.shadow, parameters={**known, **given})
        chain = _placed(chain, new)
    return tuple(chain)


def _value(value: Any, signed: Mapping[str, DefenseSpec]) -> Any:
    if not (isinstance(value, str) and value.startswith(SIGNED)):
        return value
    defense, _, parameter = value.removeprefix(SIGNED).partition(".")
    if defense not in signed or parameter not in signed[defense].parameters:
        raise GuardError(f"the signed chain has no {defense} with a {parameter!r} to take")
    return signed[defense].parameters[parameter]


def _placed(chain: list[DefenseSpec], new: DefenseSpec) -> list[DefenseSpec]:
    """In the place of the same name, else behind the last defense of its phase or an earlier one."""
    names = [spec.name for spec in chain]
    if new.name in names:
        place = names.index(new.name)
        return [*chain[:place], new, *chain[place + 1 :]]
    phase = defense_of(new.name).phase
    place = sum(defense_of(name).phase <= phase for name in names)
    return [*chain[:place], new, *chain[place:]]


def defense_of(name: str) -> type[Defense]:
    """The class of a registered defense."""
    module, _, attribute = DEFENSES[name].partition(":")
    kind: type[Defense] = getattr(importlib.import_module(module), attribute)
    return kind


def tables_of(arms: Sequence[ArmPlan], columns: Sequence[ColumnPlan]) -> Iterator[dict[str, Any]]:
    """Every table of a tactic."""
    for arm in arms:
        yield from arm.aware
    for column in columns:
        yield from column.tactics


def problem(arms: Sequence[ArmPlan], columns: Sequence[ColumnPlan], attacks: Sequence[str]) -> str:
    """What is wrong with the table of a plan whose attacks have these names; "" for nothing."""
    arm_names, column_names = [arm.name for arm in arms], [column.name for column in columns]
    if len(set(arm_names)) != len(arm_names) or len(set(column_names)) != len(column_names):
        return "two arms or two columns have the same name"
    if not all(_NAME.fullmatch(name) and name != "none" for name in (*arm_names, *column_names)):
        return "every arm and column needs a name of letters, digits, spaces and , . : + _ -"
    if arms and attacks and not columns:
        return 'arms need columns: [[columns]] name = "naive" at least'
    if columns and len(set(attacks)) != len(attacks):
        return "with columns each attack stands once; give one of them a label"
    return next((p for p in (*_of_columns(columns, attacks), *_of_arms(arms, column_names, attacks)) if p), "")


def _of_columns(columns: Sequence[ColumnPlan], attacks: Sequence[str]) -> Iterator[str]:
    for column in columns:
        if (column.name == NAIVE) == bool(column.tactics):
            yield f"column {column.name!r}: {NAIVE!r} is the column without tactics, and the only one"
        unknown = sorted({*column.budgets, *column.senseless} - {*attacks})
        if unknown:
            yield f"column {column.name!r} names the attack {unknown[0]!r}, which the plan does not have"
        if any(budget < 1 for budgets in column.budgets.values() for budget in budgets) or not all(
            column.budgets.values()
        ):
            yield f"column {column.name!r}: a budget must be at least 1 row"


def _of_arms(arms: Sequence[ArmPlan], columns: Sequence[str], attacks: Sequence[str]) -> Iterator[str]:
    for arm in arms:
        if arm.name in OWN_ARMS and arm.changes:
            yield f"arm {arm.name!r} is what it is: only its cells can be chosen, not its chain"
        if arm.name not in OWN_ARMS and not arm.changes:
            yield f"arm {arm.name!r} changes nothing of the signed chain: give it keep, drop or replaces"
        if len(set(arm.seeds)) != len(arm.seeds) or min(arm.seeds, default=0) < 0:
            yield f"arm {arm.name!r}: seeds must not repeat and not be negative"
        for what, named, known in (("attack", arm.attacks, attacks), ("column", arm.columns, columns)):
            unknown = sorted({*named} - {*known})
            if unknown:
                yield f"arm {arm.name!r} names the {what} {unknown[0]!r}, which the plan does not have"
        yield from _of_chain(arm)


def _of_chain(arm: ArmPlan) -> Iterator[str]:
    for name in (*(arm.keep or ()), *arm.drop, *(spec.name for spec in arm.replaces)):
        if name not in DEFENSES:
            yield f"arm {arm.name!r}: unknown defense {name!r}; known are {', '.join(sorted(DEFENSES))}"
    for spec in arm.replaces:
        strange = (
            sorted({*spec.parameters} - {*defense_of(spec.name).__struct_fields__}) if spec.name in DEFENSES else []
        )
        if strange:
            yield f"arm {arm.name!r}: {spec.name} has no parameter {strange[0]!r}"
