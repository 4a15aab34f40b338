"""The chain of defenses that is sealed: as hardening left it, or built from calibration data, with the owner's choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from garrison.errors import ConfigError, GuardError
from garrison.guard.base import Defense
from garrison.guard.defenses.adaptive_misinformation import AdaptiveMisinformation
from garrison.guard.defenses.bounds import Bounds
from garrison.guard.defenses.drift import Drift
from garrison.guard.defenses.max_probability import MaxProbability
from garrison.guard.defenses.projection import Projection
from garrison.guard.defenses.proof_of_work import ProofOfWork
from garrison.guard.defenses.reject_option import RejectOption
from garrison.guard.defenses.release import Release
from garrison.guard.defenses.sanctions import Sanctions
from garrison.guard.defenses.watch import Watch
from garrison.guard.pipeline import load_defense, specs_of
from garrison.hardening.calibration import Calibration, calibrate, confidence_of
from garrison.hardening.watching import Watched
from garrison.sealing.chosen import Answers, Choice, changes_answers, choices_of, kind_of, with_choices
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


def edit_chain(
    specs: Sequence[DefenseSpec], options: SealOptions, answers: Answers | None = None
) -> tuple[DefenseSpec, ...]:
    """A hardened chain with the owner's choices: defenses, budget and release are replaced, defenses put in shadow.

    Args:
        answers: the model's answers to held-out rows; None where there are none.

    Raises:
        ConfigError: choices that cannot stand together, or that need rows.
        GuardError: a defense named for shadow is not in the chain, or the chain's misinformation is to be exchanged for
            a reject option where nothing was calibrated.
    """
    choices = _choices(options)
    chain = with_choices({spec.name: load_defense(spec) for spec in specs}, choices, answers)
    shadow = {spec.name for spec in specs if spec.shadow and spec.name in chain}
    for choice in (options.budget, options.release, options.watermark, options.watch):
        if choice is not None:
            chain[choice.name] = choice
    if not options.drift:
        chain.pop(Drift.name, None)
    if options.on_ood is not None:
        _exchange(chain, options.on_ood)
    return _finish(chain, frozenset(shadow), options)


def build_chain(
    found: dict[str, Array],
    task: Task,
    y: Array | None,
    options: SealOptions,
    values_output: str,
    watched: Watched | None = None,
) -> Chain:
    """A chain for a model that was not hardened, calibrated on held-out benign rows.

    Args:
        found: what the model answers on these rows, by output.
        task: what the answer means.
        y: (rows,), class numbers, or None.
        values_output: name of the answer among `found`.
        watched: calibrated detectors; without any there is no `watch`.

    Raises:
        GuardError: a choice that cannot work for such a model.
        CalibrationError: rows that nothing can be calibrated on.
    """
    choices = _choices(options)
    chain: dict[str, Defense] = {Bounds.name: Bounds()}
    if options.budget is not None:
        chain[options.budget.name] = options.budget
    metrics: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    if task is Task.CLASSIFICATION:
        chain[MaxProbability.name] = MaxProbability()
        if watched is not None and watched.detectors:
            chain[Projection.name] = Projection()
            chain[Watch.name] = Watch(detectors=watched.detectors)
        metrics, notes = _add_answer(chain, found, y, options, values_output)
    elif options.on_ood is not None:
        raise GuardError(
            f"--on-ood needs a model that answers probabilities; this one answers {task.value}. Leave it out, or say what "
            "the answer is with --output"
        )
    chain = with_choices(chain, choices, lambda: found[values_output])
    if any(changes_answers(kind_of(choice.name)) for choice in choices):
        notes = tuple(note for note in notes if note != HARDEN_NOTE)
    if watched is not None:
        metrics, notes = metrics | watched.metrics, notes + watched.notes
    chain[Release.name] = options.release or Release()
    for choice in (options.watermark, options.watch):
        if choice is not None:
            chain[choice.name] = choice
    return Chain(_finish(chain, frozenset({Watch.name} & set(chain)), options), metrics, notes)


def _choices(options: SealOptions) -> tuple[Choice, ...]:
    choices = choices_of(options.defenses)
    answer = next((choice.name for choice in choices if changes_answers(kind_of(choice.name))), None)
    if answer is not None and options.on_ood is not None:
        raise ConfigError(f"--defense {answer} and --on-ood both say what is answered: give one of them")
    return choices


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
    misinforming = next((name for name, d in chain.items() if isinstance(d, AdaptiveMisinformation)), "")
    wrong = chain.pop(misinforming, None)
    old = chain.pop(RejectOption.name, None)
    tau = wrong.tau if isinstance(wrong, AdaptiveMisinformation) else getattr(old, "tau", None)
    if tau is None:
        raise GuardError("--on-ood: the hardened chain holds no calibrated threshold; run `garrison harden` again")
    chain[RejectOption.name] = RejectOption(tau=tau, action=action)


def _sanctioned(chain: dict[str, Defense], options: SealOptions) -> None:
    """What an alarm of `watch` does, as the owner chose; and `sanctions`, so that a host can choose a stricter action."""
    watch, action = chain.get(Watch.name), options.watch_action
    if not isinstance(watch, Watch):
        if action is not None:
            raise GuardError("--watch-action: the chain has no watch: no detectors were calibrated when it was made")
        return
    if action is not None:
        watch = chain[Watch.name] = msgspec.structs.replace(watch, action=action)
    acts = any(changes_answers(type(defense)) and defense.needs & watch.gives for defense in chain.values())
    if watch.action == "misinform" and not acts and (action is not None or Watch.name in options.arm):
        raise GuardError(
            "watch would do nothing by 'misinform': no defense of the chain answers otherwise where confidence is low. Choose "
            "another action (--watch-action), or an answer for what looks out of distribution (--on-ood)"
        )
    chain.setdefault(Sanctions.name, Sanctions())
    if watch.action == "work":
        chain.setdefault(ProofOfWork.name, ProofOfWork(who="alarmed"))


def _finish(chain: dict[str, Defense], shadow: frozenset[str], options: SealOptions) -> tuple[DefenseSpec, ...]:
    for option, names in (("--shadow", options.shadow), ("--arm", options.arm)):
        unknown = sorted(names - set(chain))
        if unknown:
            raise GuardError(f"{option} {unknown[0]}: the chain has no such defense, only {', '.join(chain)}")
    _sanctioned(chain, options)
    both = sorted(options.shadow & options.arm)
    if both:
        raise GuardError(f"{both[0]} is to run in shadow and to be armed: leave out --shadow or --arm")
    acting = options.arm | ({Watch.name} if options.watch_action is not None else set())
    shadow = (shadow - acting) | options.shadow
    ordered = sorted(chain.values(), key=lambda defense: defense.phase)  # stable: the given order stays within a phase
    return specs_of(ordered, shadow)
