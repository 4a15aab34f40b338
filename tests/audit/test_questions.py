"""An audit of a running service that counts rows for each key: refusals are data, honest users leave the thief its share, nothing is paid twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.attacks.tactics.worlds import Accounts
from tests.audit.test_trials import ID, data
from tests.audit.worlds import World, build
from tests.models import BOUNDS, RELEASE
from tests.serving import budget

from garrison.attacks.oracle import OracleFacts
from garrison.audit import targets
from garrison.audit.arms import choose_arms
from garrison.audit.cache import TrialCache
from garrison.audit.plan import Plan, parse_plan
from garrison.audit.questions import asking, honest_data
from garrison.audit.report.content import Report
from garrison.audit.run import run_audit
from garrison.audit.targets import HttpTarget, guarded
from garrison.client import Client
from garrison.config import Config, ServerConfig
from garrison.errors import AuditSpentError, BudgetExhaustedError, LimitError, PreflightError, TooFastError
from garrison.server.key_file import add_key
from garrison.server.root import assemble, background

ALLOWED = 240
PLAN = """
name = "counted"
seeds = [0]
test_rows = 300
outside_rows = 200
[[attacks]]
budgets = [60]
parameters = { epochs = 2, fewest_steps = 2 }
[[attacks]]
label = "knockoff, greedy"
budgets = [400]
parameters = { epochs = 2, fewest_steps = 2 }
"""


class Target(Accounts):
    """Three accounts, each with so many rows."""

    identity = dataclasses.replace(ID, budget_rows=100)


class Uncounted(Accounts):
    identity = ID


class Single(Target):
    @property
    def facts(self) -> OracleFacts:
        return dataclasses.replace(Accounts().facts, accounts=1)


def test_honest_users_take_a_quarter_of_an_only_key_and_all_of_their_own() -> None:
    rows = data()  # 60 test rows, 30 from outside, asked twice
    assert honest_data(Uncounted(), rows) is rows
    few = honest_data(Single(), rows)
    assert (len(few.test.x), len(few.outside.x)) == (12, 3)
    own = honest_data(Target(), rows)
    assert (len(own.test.x), len(own.outside.x)) == (50, 15)
    assert np.array_equal(few.test.x, rows.test.x[:12])
    assert few.test.y is not None
    assert len(few.test.y) == 12


def test_honest_users_ask_from_the_last_account_and_nothing_is_asked_again(tmp_path: Path) -> None:
    target, x = Target(), data().test.x
    found = []
    for _ in range(2):
        with asking(target, tmp_path / "kept") as oracle:
            found.append(oracle.query(x).labels)
    assert target.by_account == {2: 60}
    assert np.array_equal(found[0], found[1])


@dataclass(frozen=True, slots=True)
class Counted:
    """A service that answers each key so many rows, and the keys."""

    world: World
    url: str
    keys: tuple[str, ...]

    def audited(self, cache: Path, keys: int = 1, plan: str = PLAN) -> Report:
        with ExitStack() as stack:
            first, *others = [stack.enter_context(Client(self.url, api_key=key)) for key in self.keys[:keys]]
            target = HttpTarget(first, self.url, accounts=others)
            arms = choose_arms(target, reference=self.world.opened(self.world.bundle))
            return run_audit(parsed(plan), arms, self.world.data, cache=TrialCache(cache))

    def left(self, number: int = 0) -> int:
        """Rows that a key may still ask."""
        with Client(self.url, api_key=self.keys[number]) as client:
            try:
                client.predict(self.world.data.test.x[:1])
            except BudgetExhaustedError:
                return 0
            return client.left["rows"] + 1


def parsed(text: str) -> Plan:
    return parse_plan(text, "a test")


@contextmanager
def counted(folder: Path, allowed: int = ALLOWED) -> Iterator[Counted]:
    world = build(folder, (BOUNDS, budget(allowed), RELEASE), exposed=False)
    keys = tuple(add_key(folder / "keys.json", f"thief-{i}") for i in range(4))
    config = Config(
        server=ServerConfig(port=0, state=str(folder / "state"), isolation="none", keys=str(folder / "keys.json"))
    )
    with background(assemble(config, [world.bundle], [world.owner.public])) as url:
        yield Counted(world, url, keys)


def found_of(report: Report, attack: str) -> tuple[int, int, bool]:
    """Rows asked, rows unanswered, complete."""
    (found,) = (f for f in report.findings if (f.attack, f.target, f.metric) == (attack, "defended", "clone_accuracy"))
    return found.queries, found.unanswered, found.complete


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Counted]:
    with counted(tmp_path) as running:
        yield running


def test_a_budget_that_is_used_up_is_data(service: Counted, tmp_path: Path) -> None:
    report = service.audited(tmp_path / "cache")
    assert found_of(report, "knockoff") == (60, 0, True)
    asked, unanswered, complete = found_of(report, "knockoff, greedy")
    assert complete
    assert asked == 400
    assert 0 < unanswered < 400
    assert service.left() == 0
    (told,) = (text for text in report.limits if "with one API key" in text)
    assert f"a caller {ALLOWED} rows" in told
    served = report.find("defended", "served_accuracy")
    assert served is not None
    assert served.queries == int(0.5 * 0.25 * ALLOWED)  # all answered, though the test rows are more than the budget
    assert served.value == 1.0
    assert report.find("defended", "unanswered") is None


def test_an_audit_goes_on_though_nothing_more_is_answered(service: Counted, tmp_path: Path) -> None:
    """The same command again: no question is asked, and the report is the same."""
    first = service.audited(tmp_path / "cache")
    assert service.left() == 0
    again = service.audited(tmp_path / "cache")
    assert again.findings == first.findings


@pytest.mark.parametrize("in_process", [False, True])
def test_what_the_audit_may_spend_is_told_apart_from_what_the_service_allows(
    service: Counted, tmp_path: Path, *, in_process: bool
) -> None:
    """A thief whom the service answers no more has been tried; one for whom the audit has no rows left has not."""

    def audited(plan: str) -> Report:
        if not in_process:
            return service.audited(tmp_path / plan[:12], plan=plan)
        bundle = service.world.opened(service.world.bundle)
        return run_audit(parsed(plan), choose_arms(guarded(bundle, None), reference=bundle), service.world.data)

    limited, free = audited("most_queries = 100" + PLAN), audited(PLAN)
    over = [item for item in limited.left_out if item.target == "defended"]
    assert [(item.attack, item.code) for item in over] == [
        ("knockoff, greedy, 400 queries, soft", AuditSpentError.code)
    ]
    assert any("stopped early" in text for text in limited.limits)
    assert not free.left_out
    assert not any("stopped early" in text for text in free.limits)


def test_each_thief_has_a_key_of_its_own_where_there_are_some(service: Counted, tmp_path: Path) -> None:
    report = service.audited(tmp_path / "cache", keys=4)
    assert found_of(report, "knockoff") == (60, 0, True)
    _, unanswered, _ = found_of(report, "knockoff, greedy")
    _, shared, _ = found_of(service.audited(tmp_path / "other"), "knockoff, greedy")
    assert unanswered < shared
    assert service.left(2) == ALLOWED  # the third has no thief
    assert any("with 4 API keys in turn" in text for text in report.limits)


def test_a_service_that_takes_less_at_once_or_more_slowly_is_asked_so(
    service: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered before the service said so is not asked, and charged, again."""
    monkeypatch.setattr(targets, "_PAUSES", (0.0, 0.0))
    asked: list[int] = []
    with Client(service.url, api_key=service.keys[0]) as client:
        predict = client.predict

        def slow(x: Any, **options: Any) -> Any:
            asked.append(len(x))
            if len(x) > 10:
                raise LimitError("too large")
            if len(asked) in {5, 6}:
                raise TooFastError("slowly")
            return predict(x, **options)

        monkeypatch.setattr(client, "predict", slow)
        target, x = HttpTarget(client, service.url), service.world.data.test.x[:30]
        answers = target.query(x)
        assert asked == [30, 15, 7, 7, 7, 7, 7, 7, 2]
        monkeypatch.setattr(targets, "_PAUSES", ())
        asked[:] = [0] * 4
        with pytest.raises(TooFastError):
            target.query(x[:5])
    assert (answers.labels == service.world.data.test.y[:30]).all()  # type: ignore[index]
    assert service.left() == ALLOWED - 30


def test_an_audit_without_a_key_that_may_ask_is_refused(service: Counted, tmp_path: Path) -> None:
    """Control: it is not taken for a service that gives nothing away."""
    service.audited(tmp_path / "cache")
    with pytest.raises(PreflightError, match=rf"budget of {ALLOWED} rows .*\(request.budget_exhausted\)"):
        service.audited(tmp_path / "other")
