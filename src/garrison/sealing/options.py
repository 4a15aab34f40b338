"""What an owner may choose when a model is sealed, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from garrison.errors import ConfigError
from garrison.guard.defenses.budget import Budget
from garrison.guard.defenses.release import Release
from garrison.guard.defenses.repeat_watch import RepeatWatch
from garrison.guard.defenses.watch import Action
from garrison.guard.defenses.watermark import Watermark
from garrison.hardening.graphs import Declared
from garrison.hardening.ranges import SLACK
from garrison.sealing.chosen import choices_of

OnOod = Literal["refuse", "uncertain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealOptions:
    """Choices at sealing. What is None stays as hardening left it, or takes the default.

    Attributes:
        name: how clients ask for the model.
        version: at least 1; a client's policy may refuse older ones.
        release: what of an answer leaves.
        budget: rows a caller may ask.
        output: what the graph's answer means.
        may_be_missing: NaN stands for a missing value, in every feature; else only in those where the data hold NaN.
        labels: class labels, in the model's order.
        shadow: defenses that run and are recorded, and change nothing.
        range_margin: room beyond the values seen in a table's feature, as a share of their range; 0 to 10.
        on_ood: refuse, or mark as uncertain, what looks out of distribution, in place of misinformation.
        require_sealed: plain requests are refused; only an enclave can serve the model then.
        defenses: defenses of the owner's choice, each as NAME or NAME:key=value,key=value (see `garrison.sealing.chosen`).
        arm: defenses that hardening put in shadow, and that act from now on, such as "watch".
        watch_action: what an alarm of `watch` does at least; it acts then, unless it is named in `shadow`. None for misinformation, in shadow.
        detectors: calibrate detectors of callers who steal, for a model that was not hardened; they are put into the chain in shadow.
        drift: put a reference of the rows into the chain, that what callers ask later is compared with; False takes it out.
        watermark: a keyed share of all inputs is answered wrongly, as evidence against clones.
        watch: count callers' repeated rows, and name in the log who repeats itself.
        benign_loss: share of honest rows that the out-of-distribution threshold may cost.
    """

    name: str
    version: int = 1
    release: Release | None = None
    budget: Budget | None = None
    output: Declared = "auto"
    may_be_missing: bool = False
    labels: tuple[str, ...] = ()
    shadow: frozenset[str] = frozenset()
    range_margin: float = SLACK
    on_ood: OnOod | None = None
    benign_loss: float = 0.005
    require_sealed: bool = False
    watch: RepeatWatch | None = None
    watermark: Watermark | None = None
    defenses: tuple[str, ...] = ()
    arm: frozenset[str] = frozenset()
    watch_action: Action | None = None
    detectors: bool = True
    drift: bool = True

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or not self.name.isprintable():
            raise ConfigError(f"a model's name must be printable and hold no '/', found {self.name!r}")
        choices_of(self.defenses)
        if self.version < 1:
            raise ConfigError(f"a model's version must be at least 1, found {self.version}")
        if not 0 <= self.range_margin <= 10:
            raise ConfigError(
                f"the range margin must lie in 0 to 10 (0.5 is half the range), found {self.range_margin}"
            )
