"""The chain of defenses that is sealed: as hardening left it, or built from calibration data, with the owner's choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import Defense
from garrison.guard.defenses.adaptive_misinformation import AdaptiveMisinformation
from garrison.guard.defenses.bounds import Bounds
from garrison.guard.defenses.max_probability import MaxProbability
from garrison.guard.defenses.reject_option import RejectOption
from garrison.guard.defenses.release import Release
from garrison.guard.pipeline import load_defense, specs_of
from garrison.hardening.calibration import Calibration, calibrate, confidence_of
from garrison.sealing.options import SealOptions
from garrison.types import Array, DefenseSpec, Task

HARDEN_NOTE = (
    "no misinformation: this model has no f', so out-of-distribution questions are answered truthfully; "
    "`garrison harden` trains one"
)


@dataclass(frozen=True, slots=True)
class Chain:
    """A calibrated chain, the figures found on the way, and what the owner should know of it."""

    specs: tuple[DefenseSpec, ...]
    metrics: dict[str, float]
    notes: tuple[str, ...]


def edit_chain(specs: Sequence[DefenseSpec], options: SealOptions) -> tuple[DefenseSpec, ...]:
    """A hardened chain with the owner's choices: budget and release are replaced, defenses put in shadow.

    Raises:
        GuardError: a defense named for shadow is not in the chain, or the chain's misinformation is to be exchanged for
            a reject option where nothing was calibrated.
    """
    chain = {spec.name: load_defense(spec) for spec in specs}
    shadow = {spec.name for spec in specs if spec.shadow}
    for choice in (options.budget, options.release, options.watch):
        if choice is not None:
            chain[choice.name] = choice
    if options.on_ood is not None:
        _exchange(chain, options.on_ood)
    return _finish(chain, frozenset(shadow) | options.shadow)


def build_chain(
    found: dict[str, Array], task: Task, y: Array | None, options: SealOptions, values_output: str
) -> Chain:
    """A chain for a model that was not hardened, calibrated on held-out benign rows.

    Args:
        found: what the model answers on these rows, by output.
        task: what the answer means.
        y: (rows,), class numbers, or None.
        values_output: name of the answer among `found`.

    Raises:
        GuardError: a choice that cannot work for such a model.
        CalibrationError: rows that nothing can be calibrated on.
    """
    chain: dict[str, Defense] = {Bounds.name: Bounds()}
    if options.budget is not None:
        chain[options.budget.name] = options.budget
    metrics: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    if task is Task.CLASSIFICATION:
        chain[MaxProbability.name] = MaxProbability()
        metrics, notes = _add_answer(chain, found, y, options, values_output)
    elif options.on_ood is not None:
        raise GuardError(
            f"--on-ood needs a model that answers probabilities; this one answers {task.value}. Leave it out, or say what "
            "the answer is with --output"
        )
    chain[Release.name] = options.release or Release()
    if options.watch is not None:
        chain[options.watch.name] = options.watch
    return Chain(_finish(chain, options.shadow), metrics, notes)


def _add_answer(
    chain: dict[str, Defense], found: dict[str, Array], y: Array | None, options: SealOptions, values_output: str
) -> tuple[dict[str, float], tuple[str, ...]]:
    """What happens to out-of-distribution rows: a reject option where asked for, else misinformation where there is f'."""
    probabilities = found[values_output]
    if options.on_ood is None and "misinformation" not in found:
        return _accuracy(probabilities, y), (HARDEN_NOTE,)
    confidence = confidence_of("max-probability", probabilities)
    c = calibrate(probabilities, confidence, y, benign_loss=options.benign_loss)
    if options.on_ood is not None:
        chain[RejectOption.name] = RejectOption(tau=c.tau, action=options.on_ood)
        rejected = {"rejected": float((confidence < c.tau).mean())}
    else:
        chain[AdaptiveMisinformation.name] = AdaptiveMisinformation(
            tau=c.tau, tail_scale=c.tail_scale, margins=c.margins
        )
        rejected = {}
    metrics = {"tau": c.tau, "benign_loss": c.loss, "calibration_rows": float(c.rows)}
    metrics |= rejected | _accuracy(probabilities, y)
    return metrics, _calibration_notes(c)


def _accuracy(probabilities: Array, y: Array | None) -> dict[str, float]:
    if y is None or y.dtype.kind not in "iu" or y.shape != (len(probabilities),):
        return {}
    return {"accuracy": float(np.mean(probabilities.argmax(axis=1) == y))}


def _calibration_notes(c: Calibration) -> tuple[str, ...]:
    if c.holds:
        return ()
    between = f"it lies between {c.loss_low:.2%} and {c.loss_high:.2%}"
    return (f"{c.rows} calibration rows are too few to promise a benign loss of {c.asked:.2%}: {between}",)


def _exchange(chain: dict[str, Defense], action: Any) -> None:
    wrong = chain.pop(AdaptiveMisinformation.name, None)
    old = chain.pop(RejectOption.name, None)
    tau = wrong.tau if isinstance(wrong, AdaptiveMisinformation) else getattr(old, "tau", None)
    if tau is None:
        raise GuardError("--on-ood: the hardened chain holds no calibrated threshold; run `garrison harden` again")
    chain[RejectOption.name] = RejectOption(tau=tau, action=action)


def _finish(chain: dict[str, Defense], shadow: frozenset[str]) -> tuple[DefenseSpec, ...]:
    unknown = sorted(shadow - set(chain))
    if unknown:
        raise GuardError(f"--shadow {unknown[0]}: the chain has no such defense, only {', '.join(chain)}")
    ordered = sorted(chain.values(), key=lambda defense: defense.phase)  # stable: the given order stays within a phase
    return specs_of(ordered, shadow)
