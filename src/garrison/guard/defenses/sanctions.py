"""Sanctions: what `watch` has found against a caller is done before the model runs: a limit of rows a minute, or nothing at all (OWASP ML05)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from garrison.guard.base import REFUSE, CodeArray, Marks, RowDefense, Settings, Verdict, View, raise_not_tighter
from garrison.guard.watching.book import REFUSE as REFUSED
from garrison.guard.watching.book import THROTTLE
from garrison.guard.watching.state import WatchState
from garrison.types import FloatArray, Phase

THROTTLED = "request.throttled"
ALARMED = "guard.alarmed"


class Sanctions(RowDefense, frozen=True):
    """Refuse requests of alarmed callers, as far as the action of their alarm says so.

    Does not hide itself: who is throttled or refused knows that an alarm rings.

    Attributes:
        rows_a_minute: what an alarmed caller may ask, where the action is "throttle" or "work".
    """

    name: ClassVar[str] = "sanctions"
    phase: ClassVar[Phase] = Phase.ADMIT
    in_graph: ClassVar[bool] = False
    shares: ClassVar[str] = "watch"

    rows_a_minute: int = 60

    def __post_init__(self) -> None:
        if self.rows_a_minute < 1:
            raise ValueError(f"sanctions.rows_a_minute must be at least 1, found {self.rows_a_minute}")

    def judge(self, xp: Any, view: View, settings: Settings) -> Marks:  # noqa: ARG002
        codes = self(view).codes
        return Marks(refuse=codes == REFUSE)

    def glance(self, view: View, settings: Settings) -> Mapping[str, FloatArray] | None:  # noqa: ARG002
        state = view.state
        return {} if not isinstance(state, WatchState) or state.quiet else None

    def __call__(self, view: View) -> Verdict:
        batch, state = view.batch, view.state
        codes: CodeArray = np.zeros(batch.rows, dtype=np.uint8)
        if not isinstance(state, WatchState) or state.quiet:  # None where watch runs in shadow
            return Verdict(codes)
        refused: dict[int, tuple[str, str]] = {}
        used: dict[str, int] = {}
        for request, caller in enumerate(batch.callers):
            level = state.level(caller.id)
            if level < THROTTLE or (view.refused and view.refused[request]):
                continue
            if level == REFUSED:
                refused[request] = (ALARMED, "")
                continue
            asked, left = state.this_minute(caller.id)
            rows = int(np.count_nonzero(batch.request_of_row == request))
            before = used.get(caller.id, 0)
            if asked + before + rows > self.rows_a_minute:
                refused[request] = (THROTTLED, self._told(left))
            else:
                used[caller.id] = before + rows
        if refused:
            codes[np.isin(batch.request_of_row, list(refused))] = REFUSE
        return Verdict(codes, reasons=refused)

    def _told(self, left: float) -> str:
        when = f"; try again in {math.ceil(left)} s" if left > 0 else ""
        return f"this caller may ask {self.rows_a_minute} rows a minute{when}"

    def check_tightened(self, signed: Self) -> None:
        if self.rows_a_minute > signed.rows_a_minute:
            raise_not_tighter(self.name, f"rows_a_minute must be at most {signed.rows_a_minute}")
