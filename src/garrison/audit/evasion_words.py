"""The sentences of a report about evasion: what an attacker gets the service to name wrongly, and what does not hold."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.audit.plan import Plan
from garrison.audit.report.content import EvasionCard, Share
from garrison.audit.targets import TargetName

_BLACK_BOX = (
    "Only black-box attacks were tried. An attacker who holds a copy of the model, or a clone that agrees with it, follows its gradients and needs no "
    "question."
)


def spoken(share: Share) -> str:
    """A share with its interval, in percent."""
    if share.low is None or share.high is None:
        return f"{100 * share.value:.1f} %"
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f} %)"


def headline(cards: Sequence[EvasionCard], source: str) -> str:
    """The attack that fools the service most often, beside what it does to the undefended model."""
    mine = [card for card in cards if card.target == TargetName.DEFENDED]
    if not mine:
        return "No picture was attacked: no attack of the plan could be carried out against the service."
    best = max(mine, key=lambda card: card.success_served.value)
    tried = f", the best of {len(mine)} attacks tried" if len(mine) > 1 else ""
    text = (
        f"{best.attack} changes {spoken(best.success_served)} of {best.pictures} pictures of {source} by at most {best.epsilon:.3g} ({best.norm}) so that the "
        f"service names another class, with {best.budget:,} questions for each{tried}."
    )
    plain = next((c for c in cards if (c.target, c.attack) == (TargetName.UNDEFENDED, best.attack)), None)
    if plain is not None:
        text += f" Of the undefended model it is {spoken(plain.success_served)}."
    if best.watched:
        text += f" An alarm rang for {best.alarmed} of the {best.pictures if best.accounts == 'each' else 1} accounts."
    return text


def limits(plan: Plan, cards: Sequence[EvasionCard]) -> tuple[str, ...]:
    """What does not hold of the evasion part; nothing where the plan has none."""
    if not plan.evasions:
        return ()
    found = [
        _BLACK_BOX,
        "An attacker who asks more, or allows a larger change, succeeds more often.",
    ]
    if not any(card.success_undefended for card in cards):
        found.append("No reference was given, so whether a picture fools the model itself was not measured.")
    if any(card.watched and card.accounts == "each" for card in cards):
        found.append(
            "Alarms are counted with an account for each picture; an attacker with more accounts splits one picture's questions over them."
        )
    if any(card.target == TargetName.DEFENDED and not card.watched for card in cards):
        found.append(
            "Alarms of the service could not be read off: it has no detectors that act, or runs elsewhere (`garrison alarms list` on its machine)."
        )
    return tuple(found)
