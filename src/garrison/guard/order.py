"""Whether defenses stand in an order in which they can work."""

from __future__ import annotations

from garrison.errors import GuardError
from garrison.guard.base import Defense, ReleaseDefense
from garrison.types import DefenseSpec, ModelFacts, Phase


def check_chain(specs: tuple[DefenseSpec, ...], defenses: tuple[Defense, ...], facts: ModelFacts) -> None:
    """Check a chain before it is built.

    Raises:
        GuardError: wrong order, not exactly one RELEASE, a signal that nobody gives, a model that does not fit.
    """
    names = [d.name for d in defenses]
    if len(set(names)) != len(names):
        raise GuardError(f"a defense stands twice in the chain: {', '.join(names)}")
    if sorted(d.phase for d in defenses) != [d.phase for d in defenses]:
        order = " < ".join(phase.name for phase in Phase)
        raise GuardError(
            f"the chain must be ordered {order}, found {', '.join(f'{d.name} ({d.phase.name})' for d in defenses)}"
        )
    releases = [s for s, d in zip(specs, defenses, strict=True) if isinstance(d, ReleaseDefense)]
    if len(releases) != 1 or releases[0].shadow:
        raise GuardError(f"a chain needs exactly one RELEASE defense, not in shadow; found {len(releases)}")
    given: set[str] = set()
    for defense in defenses:
        missing = sorted(defense.needs - given)
        if missing:
            raise GuardError(
                f"{defense.name} needs the signal {missing[0]!r}, which no earlier defense of the chain gives"
            )
        if defense.shares and defense.shares not in names:
            raise GuardError(f"{defense.name} works by what {defense.shares} finds, which the chain does not hold")
        defense.check(facts)
        defense.check_chain(defenses)
        given |= defense.gives
