"""When a thief was seen, in the thief's own rows: a real chain with a detector, and the arithmetic of the trail."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.attacks.services import Linear, facts, rows

from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, LabelsOnly, MeteredOracle, OracleFacts
from garrison.attacks.tactics.cover_traffic import CoverTraffic
from garrison.attacks.tactics.sybil import Sybil
from garrison.audit.alarms import ROWS_A_CALLER, InTurn, Rang, Watched
from garrison.types import Array


@dataclass
class Bell:
    """An alarm as the service tells it."""

    caller: str
    detector: str
    row: int
    action: str = "log"


@dataclass
class Ringing:
    """A service that says who was alarmed, and forgets."""

    bells: list[Bell] = field(default_factory=list)

    @property
    def caller_state(self) -> Ringing:
        return self

    def forget(self) -> None:
        self.bells.clear()

    def armed(self, name: str) -> str | None:
        return name

    def alarms(self) -> tuple[Bell, ...]:
        return tuple(self.bells)


class Doorman(Linear):
    """The linear service; every account rings at its so-manieth row."""

    def __init__(self, rings_at: int, *, detector: str = "d", action: str = "log") -> None:
        super().__init__()
        self.service = Ringing()
        self.rows: dict[int, int] = {}
        self.rings_at, self.detector, self.action = rings_at, detector, action

    @property
    def facts(self) -> OracleFacts:
        return dataclasses.replace(facts(), accounts=100)

    def query_as(self, x: Array, account: int) -> Answers:
        before = self.rows.get(account, 0)
        self.rows[account] = before + len(x)
        if before < self.rings_at <= self.rows[account]:
            name = f"audit-{account}" if account else "local"
            self.service.bells.append(Bell(name, self.detector, self.rings_at, self.action))
        return self.query(x)


def watched(monkeypatch: pytest.MonkeyPatch, target: Doorman) -> Watched:
    monkeypatch.setattr("garrison.audit.alarms.ServiceTarget", Doorman)
    return Watched(target)  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [False, True])
def test_the_row_of_one_account(monkeypatch: pytest.MonkeyPatch, labels: bool) -> None:
    seen = watched(monkeypatch, Doorman(37))
    meter = MeteredOracle(LabelsOnly(seen) if labels else seen, 100, rows_a_request=10)
    meter.query(rows(36))
    assert seen.rang() is None
    meter.query(rows(64))
    assert seen.rang() == Rang(37, 37, "d")
    assert (seen.asked, seen.watched) == (100, True)


def test_what_a_detector_in_shadow_says_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, Doorman(5, action=""))
    MeteredOracle(seen, 100).query(rows(50))
    assert seen.rang() is None


def test_rows_of_sybils_are_counted_each_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, Doorman(7))
    meter, knowledge = MeteredOracle(seen, 100), Knowledge(rows(1))
    near, _ = Sybil(accounts=5).around(meter, knowledge, np.random.default_rng(0))
    near.query(rows(20))  # four rows of each account
    near.query(rows(20))  # and four more: the first account rings at its seventh
    assert seen.rang() == Rang(7, 20 + 3, "d")


def test_cover_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, Doorman(90))
    meter = MeteredOracle(seen, 100)
    near, _ = CoverTraffic(ratio=2.0).around(
        meter, Knowledge(rows(1), in_distribution=rows(50)), np.random.default_rng(0)
    )
    near.query(rows(20))
    near.query(rows(20))
    rang = seen.rang()
    assert rang is not None
    assert rang.queries == rang.summed
    assert 20 <= rang.queries < 40, "a third of its 90 rows, about"
    assert (meter.rows, meter.cover) == (40, 80)


def test_honest_callers_come_in_turn_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Doorman(ROWS_A_CALLER)
    monkeypatch.setattr("garrison.audit.alarms.ServiceTarget", Doorman)
    asking = InTurn(target)  # type: ignore[arg-type]
    meter = MeteredOracle(asking, 10_000)
    meter.query(rows(2 * ROWS_A_CALLER + 10))
    assert asking.alarmed(2 * ROWS_A_CALLER + 10) == (2, 3)
    assert list(target.rows.values()) == [ROWS_A_CALLER, ROWS_A_CALLER, 10]
