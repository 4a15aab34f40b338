"""The arms of a comparison: which models are attacked beside the service, and which one fidelity is measured against.

    undefended          the plain model, or the reference without its guard where it was trained without outlier exposure
    outlier-exposure    the reference without its guard, where it was trained with outlier exposure
    defended            the service as it is

Invariant: what is missing is left out and named, never replaced by something similar.
"""

from __future__ import annotations

from dataclasses import dataclass

from garrison.audit.targets import ServiceTarget, Target, TargetName, unguarded
from garrison.bundle.reader import VerifiedBundle


@dataclass(frozen=True, slots=True, eq=False)
class Arms:
    """See the module's docstring.

    Attributes:
        defended: the service.
        undefended: the plain model.
        exposure: the reference without its guard, where that is an arm of its own.
        reference: the sealed model without its guard: what the service would answer if nothing held it back.
        key: the misinformation key, where it is at hand.
    """

    defended: Target
    undefended: ServiceTarget | None = None
    exposure: ServiceTarget | None = None
    reference: ServiceTarget | None = None
    key: bytes | None = None

    @property
    def f(self) -> ServiceTarget | None:
        """The undefended f of fidelity and similarity: the plain model, else the sealed one without its guard."""
        return self.undefended or self.reference

    def targets(self) -> dict[TargetName, Target]:
        """All arms that are there, in the order of a report."""
        found: dict[TargetName, Target | None] = {
            TargetName.UNDEFENDED: self.undefended,
            TargetName.EXPOSURE: self.exposure,
            TargetName.DEFENDED: self.defended,
        }
        return {name: target for name, target in found.items() if target is not None}


def choose_arms(
    defended: Target,
    *,
    reference: VerifiedBundle | None = None,
    baseline: VerifiedBundle | None = None,
    key: bytes | None = None,
) -> Arms:
    """The arms that can be had.

    Args:
        defended: the service.
        reference: the bundle that it serves.
        baseline: a bundle of the plain model, trained without any defense.
        key: the misinformation key of the reference.
    """
    plain = None if baseline is None else unguarded(baseline)
    own = None if reference is None else unguarded(reference)
    exposed = reference is not None and reference.manifest.provenance.outlier_exposure
    if plain is None and not exposed:
        plain = own
    return Arms(defended, plain, own if exposed else None, own, key)


def notes(arms: Arms) -> dict[TargetName, str]:
    """What each arm is, in a sentence."""
    plain = "the plain model, trained without outlier exposure, without a guard"
    if arms.undefended is not None and arms.undefended is arms.reference:
        plain = "the sealed model with its guard taken off; it was trained without outlier exposure"
    return {
        TargetName.UNDEFENDED: plain,
        TargetName.EXPOSURE: "the sealed model, trained with outlier exposure, with its guard taken off",
        TargetName.DEFENDED: "the service as it is",
    }
