"""How long an audit still takes: by what the plan says of each attack, corrected by what the clones so far took."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from garrison.attacks.base import NAIVE, View
from garrison.audit.plan import CONTROL, Plan, load_attack
from garrison.audit.steps import Step, seeds_of, steps_of
from garrison.audit.targets import Target

_START, _A_ROW = 2.0, 0.003
"""Seconds of a clone where the plan says nothing: so many, and so many a row."""
_MINUTE, _HOUR = 60, 3600


def expected(step: Step) -> float:
    """Processor seconds of one clone, about."""
    return step.seconds or _START + _A_ROW * step.budget


def workload(plan: Plan, targets: Mapping[str, Target]) -> list[tuple[Step, int]]:
    """Every step of a plan with its number of seeds, the control's too."""
    found = [
        (step, len(seeds_of(plan, name)))
        for name, target in targets.items()
        for step in steps_of(plan, target.facts, name)
        if not step.senseless
    ]
    if not plan.control.budgets:
        return found
    control = load_attack(CONTROL, plan.control.parameters)
    steps = [Step(CONTROL, control, (), NAIVE, View.LABELS, budget) for budget in plan.control.budgets]
    return found + [(step, len(plan.seeds)) for step in steps]


class Pace:
    """Counts what is done of a known amount of work.

    Args:
        steps: all that is to be done, each with its number of seeds.
        threads: how many are done side by side.
    """

    def __init__(self, steps: Iterable[tuple[Step, int]], threads: int) -> None:
        self.total = sum(expected(step) * seeds for step, seeds in steps)
        self._threads = max(1, threads)
        self._gone = self._took = self._foretold = 0.0
        self._lock = threading.Lock()

    def done(self, step: Step, seconds: float | None = None, *, times: int = 1) -> None:
        """So many clones of a step are done, or will not be.

        Args:
            step: which.
            seconds: wall time that the one took; None where it was kept from before or left out.
            times: how many.
        """
        with self._lock:
            self._gone += times * expected(step)
            if seconds is not None:
                self._took += seconds
                self._foretold += expected(step)

    @property
    def share(self) -> float:
        """Of all work, in [0, 1]."""
        return min(1.0, self._gone / self.total) if self.total else 1.0

    @property
    def left(self) -> float:
        """Seconds of wall time, about: what is not done, at the speed so far."""
        speed = self._took / self._foretold if self._foretold else 1.0
        return max(0.0, self.total - self._gone) * speed / self._threads


def spoken(seconds: float) -> str:
    """A time as one says it: "40 s", "12 min", "1 h 50 min"."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    minutes = round(seconds / _MINUTE)
    if seconds < _HOUR:
        return f"{minutes} min"
    return f"{minutes // _MINUTE} h {minutes % _MINUTE} min"


def clones_of(steps: Sequence[tuple[Step, int]]) -> int:
    """How many clones are trained."""
    return sum(seeds for _, seeds in steps)
