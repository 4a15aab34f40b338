"""The questions of an appraisal, in their order, and the pad on which the answers are noted."""

from __future__ import annotations

from typing import NoReturn

from garrison.attest.report import Status, Step

STEPS = (
    "technology",
    "format",
    "certificates",
    "signature",
    "platform",
    "tcb",
    "debug",
    "measurement",
    "report-data",
    "nonce",
    "age",
    "keys",
    "manifest",
    "owner",
    "version",
    "guard",
)
COMMON = frozenset({"technology", "format", "signature", "report-data", "nonce", "keys", "manifest", "version"})
"""Steps that must have passed, whatever the technology and the policy."""


class Stop(Exception):  # noqa: N818  ends an appraisal early; never leaves this room
    """Nothing further can be said of this evidence; why has been noted."""


class Checks:
    """Notes the outcome of each step; every name of `STEPS` comes out once."""

    def __init__(self) -> None:
        self._steps: dict[str, Step] = {}

    def note(self, name: str, ok: bool, expected: str, found: str) -> bool:  # noqa: FBT001  reads as a sentence at every call
        """Note an answer. Where a step asks several things the first is kept, but for the first failure, which counts."""
        if name not in self._steps or (not ok and self._steps[name].status != "failed"):
            self._put(name, "passed" if ok else "failed", expected, found)
        return ok

    def demand(self, name: str, ok: bool, expected: str, found: str) -> None:  # noqa: FBT001  the same
        """Note a failure, and nothing after it. Where it holds, nothing is noted: only a `note` can make a step pass."""
        if not ok:
            self.stop(name, expected, found)

    def stop(self, name: str, expected: str, found: str) -> NoReturn:
        self.note(name, ok=False, expected=expected, found=found)
        raise Stop

    def skip(self, name: str, why: str) -> None:
        if name not in self._steps:
            self._put(name, "skipped", "", why)

    def steps(self) -> tuple[Step, ...]:
        """All steps; what was never asked is skipped."""
        rest = Step(name="", status="skipped", found="not asked, because an earlier step failed")
        return tuple(self._steps.get(name, Step(name=name, status=rest.status, found=rest.found)) for name in STEPS)

    def _put(self, name: str, status: Status, expected: str, found: str) -> None:
        if name not in STEPS:
            raise ValueError(f"unknown step {name!r}")
        self._steps[name] = Step(name=name, status=status, expected=expected, found=found)
