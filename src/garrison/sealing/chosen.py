"""An owner's choice of defenses, as it is typed, put into a chain: `--defense NAME[:key=value,...]`.

A choice of the phase ANSWER that changes answers takes the place of those that stand there; several choices stand together, in their order. A
choice that gives a signal takes the place of the one that gave it. What a choice needs and the chain lacks is added.

Invariant: a threshold that was calibrated on one score is never used with another.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from garrison.errors import ConfigError, GuardError
from garrison.guard.base import Defense, RowDefense
from garrison.guard.defenses import DEFENSES
from garrison.guard.pipeline import load_defense
from garrison.types import Array, DefenseSpec, Phase

Answers = Callable[[], Array]
"""The model's answers to held-out rows, shape (rows, classes)."""
Calibrate = Callable[[dict[str, Any], Array], dict[str, Any]]
CALIBRATED: dict[str, str] = {"modelguard-s": "garrison.hardening.codebook:calibrated"}
"""Defenses whose parameters are found on held-out answers, and by what: (parameters given, answers) -> parameters."""
GIVERS = {"projection": "projection", "confidence": "max-probability"}
"""What is added where a signal is needed and nobody gives it."""
OWN_OPTIONS = {"budget": "--budget", "release": "--release"}
_SEED, _SEED_BITS = "seed", 48
_THRESHOLD = "tau"


@dataclass(frozen=True, slots=True)
class Choice:
    """One defense and the parameters given for it."""

    name: str
    parameters: dict[str, Any]


def choice_of(text: str) -> Choice:
    """NAME, or NAME:key=value,key=value; values as in JSON, and texts without quotation marks too.

    Raises:
        ConfigError: not such a text, or no such defense.
    """
    name, colon, rest = text.strip().partition(":")
    if name not in DEFENSES:
        raise ConfigError(f"--defense: unknown defense {name!r}; known are {', '.join(sorted(DEFENSES))}")
    if name in OWN_OPTIONS:
        raise ConfigError(f"--defense {name}: it is chosen by {OWN_OPTIONS[name]}")
    parameters: dict[str, Any] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals or not value:
            raise ConfigError(f"--defense {name}: expected key=value, such as epsilon=0.5, found {part!r}")
        if key in parameters:
            raise ConfigError(f"--defense {name}: {key} is given twice")
        parameters[key] = _value(value)
    return Choice(name, parameters)


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def choices_of(texts: Sequence[str]) -> tuple[Choice, ...]:
    """All of them, each defense once.

    Raises:
        ConfigError: see `choice_of`; or one defense stands twice.
    """
    if isinstance(texts, str):
        raise ConfigError(f"defenses must be several texts, one a defense, found {texts!r}")
    found = tuple(choice_of(text) for text in texts)
    names = [choice.name for choice in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--defense {twice} is given twice; put its parameters together: NAME:key=value,key=value")
    return found


def kind_of(name: str) -> type[Defense]:
    """The class of a registered defense."""
    module, _, attribute = DEFENSES[name].partition(":")
    kind: type[Defense] = getattr(importlib.import_module(module), attribute)
    return kind


def changes_answers(kind: type[Defense]) -> bool:
    """Whether it is one of the answer defenses, and no score."""
    return issubclass(kind, RowDefense) and kind.phase is Phase.ANSWER and not kind.gives


def with_choices(
    chain: dict[str, Defense], choices: Sequence[Choice], answers: Answers | None = None
) -> dict[str, Defense]:
    """The chain with the owner's choices; the order within a phase is that of the values.

    Args:
        chain: defenses by name.
        answers: None where there are no held-out rows.

    Raises:
        GuardError: a parameter that is unknown, missing or out of range, or a threshold that belongs to another score.
        ConfigError: a defense that must be calibrated, and there are no rows to do it on.
    """
    chosen = [_built(choice, chain, answers) for choice in choices]
    anew = any(changes_answers(type(defense)) for defense in chosen)
    found = {name: one for name, one in chain.items() if not (anew and changes_answers(type(one)))}
    for defense in chosen:
        found = {name: one for name, one in found.items() if name != defense.name and not _made(one) & _made(defense)}
        found[defense.name] = defense
    found = _needed_first(found) if choices else chain
    _check_scores(chain, found, {choice.name for choice in choices if _THRESHOLD in choice.parameters})
    return found


def _built(choice: Choice, chain: dict[str, Defense], answers: Answers | None) -> Defense:
    """The defense with what the owner gave; the rest as it stands in the chain, is calibrated, or is the default."""
    kind = kind_of(choice.name)
    parameters = _kept(kind, chain) | choice.parameters
    if choice.name in CALIBRATED:
        if answers is None:
            raise ConfigError(
                f"--defense {choice.name}: --data is needed: held-out rows, on whose answers it is calibrated"
            )
        module, _, function = CALIBRATED[choice.name].partition(":")
        calibrate: Calibrate = getattr(importlib.import_module(module), function)
        parameters = calibrate(choice.parameters, answers())
    if _SEED in _required(kind) and _SEED not in parameters:
        parameters |= {_SEED: secrets.randbits(_SEED_BITS)}
    return load_defense(DefenseSpec(name=choice.name, parameters=parameters))


def _kept(kind: type[Defense], chain: dict[str, Defense]) -> dict[str, Any]:
    """What the chain already holds for such a defense: its own parameters, or those that it shares with one whose threshold it takes over."""
    own = next((one for one in chain.values() if type(one) is kind), None)
    if own is None and _THRESHOLD in _required(kind):
        own = next(
            (one for one in chain.values() if changes_answers(type(one)) and _THRESHOLD in _required(type(one))), None
        )
    if own is None:
        return {}
    return {name: value for name, value in msgspec.to_builtins(own).items() if name in kind.__struct_fields__}


def _required(kind: type[Defense]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind) if field.required}


def _check_scores(before: dict[str, Defense], after: dict[str, Defense], given: set[str]) -> None:
    """A threshold is a number on the scale of its score.

    Args:
        given: defenses whose threshold the owner has typed.
    """
    old, new = (_givers(chain, "confidence") for chain in (before, after))
    for defense in after.values():
        if "confidence" in defense.needs and defense.name not in given and old != new:
            raise GuardError(
                f"the threshold of {defense.name} was calibrated on {', '.join(old) or 'nothing'}, and would now be compared with "
                f"{', '.join(new) or 'nothing'}: choose the score when hardening (garrison harden --score)"
            )


def _givers(chain: dict[str, Defense], signal: str) -> list[str]:
    return [name for name, defense in chain.items() if signal in _made(defense)]


def _made(defense: Defense) -> frozenset[str]:
    """Signals that it gives, and does not only change."""
    return defense.gives - defense.needs


def _needed_first(chain: dict[str, Defense]) -> dict[str, Defense]:
    """The chain with the givers of what is needed, and all givers before the others."""
    given = {signal for defense in chain.values() for signal in defense.gives}
    needed = {signal for defense in chain.values() for signal in defense.needs}
    added = {GIVERS[s]: load_defense(DefenseSpec(name=GIVERS[s])) for s in sorted(needed - given) if s in GIVERS}
    everyone = added | chain
    return dict(sorted(everyone.items(), key=lambda item: _rank(item[1])))


def _rank(defense: Defense) -> int:
    """Who makes a signal comes before who makes one of another's, then who only changes one, then all others."""
    if not defense.gives:
        return 3
    return 2 if not _made(defense) else int(bool(defense.needs))
