"""What an appraisal found: one status a step, in a fixed order, so that a refusal can be read and not only obeyed."""

from __future__ import annotations

from typing import Literal

import msgspec

from garrison.attest.evidence import Technology
from garrison.errors import AttestationError

Status = Literal["passed", "failed", "skipped"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One question that the appraisal asked.

    Attributes:
        name: one of `garrison.attest.appraise.STEPS`.
        status: "skipped" where the technology has no such thing, the policy does not ask, or an earlier step failed.
        expected, found: in words, for a reader; digests and keys in hex.
    """

    name: str
    status: Status
    expected: str = ""
    found: str = ""


_STEPS = "`garrison attest URL` shows every step"
_TRIALS = "a simulation proves nothing; for trials it is taken by --allow-simulated (allow_simulated=True)"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All steps.

    Attributes:
        technology: who signed, as the evidence says.
        measurement: what the quote says runs, in hex; "" where the quote did not hold.
        steps: in the order of `garrison.attest.appraise.STEPS`, each name once.
        required: names of the steps that must have passed; a skipped one is not good enough there.
    """

    technology: Technology
    measurement: str = ""
    steps: tuple[Step, ...]
    required: tuple[str, ...]

    @property
    def passed(self) -> bool:
        good = {step.name for step in self.steps if step.status == "passed"}
        return not self.failures and good.issuperset(self.required)

    @property
    def failures(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.status == "failed")

    def require(self) -> Report:
        """The report itself, where the evidence is good enough.

        Raises:
            AttestationError: it is not; the error carries the report as `.report`.
        """
        if self.passed:
            return self
        reasons = "; ".join(f"{s.name}: expected {s.expected}, found {s.found}" for s in self.failures)
        simulated = self.technology == "sim" and any(step.name == "technology" for step in self.failures)
        raise AttestationError(
            f"the evidence ({self.technology}) is not good enough: {reasons or 'a step that must pass was skipped'}; "
            f"{_TRIALS if simulated else _STEPS}",
            self,
        )
