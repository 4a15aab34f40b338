"""The arms of a comparison: which models are attacked beside the service, and which one fidelity is measured against.

    undefended          the plain model, or the reference without its guard where it was trained without outlier exposure
    outlier-exposure    the reference without its guard, where it was trained with outlier exposure
    defended            the service as it is
    others              the reference behind the chains of the plan's table

Invariant: what is missing is left out and named, never replaced by something similar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from garrison.audit.grid import OWN_ARMS, ArmPlan, chain_of
from garrison.audit.targets import ServiceTarget, Target, TargetName, changed, unguarded
from garrison.bundle.manifest import guard_digest
from garrison.bundle.reader import VerifiedBundle
from garrison.errors import GuardError


@dataclass(frozen=True, slots=True, eq=False)
class Arms:
    """See the module's docstring.

    Attributes:
        defended: the service.
        undefended: the plain model.
        exposure: the reference without its guard, where that is an arm of its own.
        reference: the sealed model without its guard: what the service would answer if nothing held it back.
        key: the misinformation key, where it is at hand.
        others: the arms of the plan's table, by name.
        missing: arms of the table that cannot be had, and why.
    """

    defended: Target
    undefended: ServiceTarget | None = None
    exposure: ServiceTarget | None = None
    reference: ServiceTarget | None = None
    key: bytes | None = None
    others: Mapping[str, ServiceTarget] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def f(self) -> ServiceTarget | None:
        """The undefended f of fidelity and similarity: the plain model, else the sealed one without its guard."""
        return self.undefended or self.reference

    def targets(self) -> dict[str, Target]:
        """All arms that are there, in the order of a report."""
        found: dict[str, Target | None] = {
            TargetName.UNDEFENDED.value: self.undefended,
            TargetName.EXPOSURE.value: self.exposure,
            **self.others,
            TargetName.DEFENDED.value: self.defended,
        }
        return {name: target for name, target in found.items() if target is not None}


def choose_arms(
    defended: Target,
    *,
    reference: VerifiedBundle | None = None,
    baseline: VerifiedBundle | None = None,
    key: bytes | None = None,
    plans: Sequence[ArmPlan] = (),
) -> Arms:
    """The arms that can be had.

    Args:
        defended: the service.
        reference: the bundle that it serves.
        baseline: a bundle of the plain model, trained without any defense.
        key: the misinformation key of the reference.
        plans: arms of the plan's table; they need the reference.
    """
    plain = None if baseline is None else unguarded(baseline)
    own = None if reference is None else unguarded(reference)
    exposed = reference is not None and reference.manifest.provenance.outlier_exposure
    if plain is None and not exposed:
        plain = own
    others, missing = _others(reference, key, plans)
    if plain is None and plans:
        missing |= {TargetName.UNDEFENDED.value: "no plain model was given (--baseline BUNDLE)"}
    if plans and not exposed:
        missing |= {TargetName.EXPOSURE.value: "no reference that was trained with outlier exposure was given"}
    return Arms(defended, plain, own if exposed else None, own, key, others, missing)


def _others(
    reference: VerifiedBundle | None, key: bytes | None, plans: Sequence[ArmPlan]
) -> tuple[dict[str, ServiceTarget], dict[str, str]]:
    """The arms of a table that can be had, and why the others cannot."""
    found: dict[str, ServiceTarget] = {}
    missing: dict[str, str] = {}
    same = {} if reference is None else {guard_digest(reference.manifest.guard): TargetName.DEFENDED.value}
    for plan in plans:
        if plan.name in OWN_ARMS:
            continue
        if reference is None:
            missing[plan.name] = "no reference was given (--reference BUNDLE)"
            continue
        try:
            chain = chain_of(plan, reference.manifest.guard)
            twin = same.setdefault(guard_digest(chain), plan.name)
            if twin == plan.name:
                found[plan.name] = changed(reference, key, chain, plan.name)
            else:
                missing[plan.name] = f"the same chain as {twin!r}"
        except GuardError as error:
            missing[plan.name] = str(error)
    return found, missing


def notes(arms: Arms) -> dict[str, str]:
    """What each arm is, in a sentence."""
    plain = "the plain model, trained without outlier exposure, without a guard"
    if arms.undefended is not None and arms.undefended is arms.reference:
        plain = "the sealed model with its guard taken off; it was trained without outlier exposure"
    others = dict.fromkeys(arms.others, "the sealed model behind another chain than the signed one")
    return others | {
        TargetName.UNDEFENDED.value: plain,
        TargetName.EXPOSURE.value: "the sealed model, trained with outlier exposure, with its guard taken off",
        TargetName.DEFENDED.value: "the service as it is",
    }
