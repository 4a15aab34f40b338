"""The operator's quotas: rows a day and requests a second, of callers and of models; exact, told in headers, and counted before an answer leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.models import images
from tests.server.databases import postgres, redis_or_valkey
from tests.serving import Bundles, Served, serve

from garrison.config import CallerConfig, ModelConfig
from garrison.errors import ConfigError, UnavailableError
from garrison.protocol.oip_client import encode_request
from garrison.server.auth import add_key
from garrison.server.budgets import BudgetBook
from garrison.server.key_file import KeyEntry, Secret
from garrison.server.model_budget import Left, ModelBudget
from garrison.server.quotas import MOST_OF_NETWORK, Quotas, Rates
from garrison.server.rate_limits import RateLimits

NOON = 1_750_000_000.0


def test_a_second_s_worth_at_once_and_then_evenly() -> None:
    now = [100.0]
    rates = Rates(lambda: now[0])
    assert [rates.take("alice", 4.0) for _ in range(4)] == [0.0] * 4
    assert rates.take("alice", 4.0) == pytest.approx(0.25)
    assert rates.take("bob", 4.0) == 0.0
    now[0] += 0.2
    assert rates.take("alice", 4.0) == pytest.approx(0.05)
    now[0] += 0.06
    assert rates.take("alice", 4.0) == 0.0
    assert rates.take("alice", 4.0) > 0
    for _ in range(1000):  # in the long run
        now[0] += 0.01
        rates.take("alice", 4.0)
    granted = 0
    for _ in range(1000):
        now[0] += 0.01
        granted += rates.take("alice", 4.0) == 0.0
    assert 39 <= granted <= 41


def test_slower_than_one_a_second() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0])
    assert rates.take("alice", 0.1) == 0.0
    assert rates.take("alice", 0.1) == pytest.approx(10)
    now[0] += 10
    assert rates.take("alice", 0.1) == 0.0


def test_memory_for_rates_is_bounded() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0])
    for k in range(70_000):
        rates.take(str(k), 1.0)
    assert len(rates._named) <= 65_536
    assert rates.take("late", 1.0) > 0
    assert rates.take("ip:10.0.0.1", 1.0) == 0.0, "those without a name are counted apart"
    now[0] += 2
    assert rates.take("late", 1.0) == 0.0
    rates.sweep()
    assert (len(rates._named), len(rates._by_address)) == (1, 0)


def test_one_ipv6_network_cannot_fill_the_table() -> None:
    """Networks of 64 bits within one of 48, of which there are 65,536; the control fills the table from as many of 48."""
    now = [0.0]
    rates = Rates(lambda: now[0])
    held_back = sum(rates.take(f"ip:2001:db8:1:{k:x}::/64", 1.0) > 0 for k in range(3_000))
    assert len(rates._by_address) == MOST_OF_NETWORK + 1
    assert held_back == 3_000 - MOST_OF_NETWORK - 1, "the others share one place"
    assert rates.take("ip:2001:db8:2:1::/64", 1.0) == 0.0
    assert rates.take("ip:192.0.2.1", 1.0) == 0.0
    assert rates.take("ip:2001:db8:1:1::/64", 1.0) > 0, "who was counted by itself still is"
    now[0] += 2
    rates.sweep()
    assert rates.take("ip:2001:db8:1:ffff::/64", 1.0) == 0.0
    rates.sweep()
    assert len(rates._by_address) == 1
    assert rates._of_network == {"ip:2001:db8:1::/48": 1}
    for k in range(65_536):
        rates._by_address[f"ip:2001:{k:x}::/64"] = 9.0
    assert rates.take("ip:2001:db8:2:1::/64", 1.0) > 0
    assert rates.take("alice", 1.0) == 0.0, "who has a key has a place"


def test_whose_quota_counts() -> None:
    secret = Secret("0" * 64, datetime.now(UTC))
    entries = {"keyed": KeyEntry((secret,), rows_per_day=5), "plain": KeyEntry((secret,))}
    callers = {
        "*": CallerConfig(rows_per_day=100, requests_per_second=2.0),
        "named": CallerConfig(release="labels"),
        "keyed": CallerConfig(rows_per_day=9),
    }
    quotas = Quotas(callers, {"m": ModelConfig(rows_per_day=1000)}, entries.get)
    assert [quotas.rows_of(name) for name in ("keyed", "plain", "named", "anybody")] == [5, 100, 0, 100]
    assert [quotas.rate_of(name) for name in ("keyed", "plain", "named")] == [0.0, 2.0, 0.0]
    assert (quotas.rows_of_model("m"), quotas.rows_of_model("n")) == (1000, 0)


@pytest.fixture
def budget(tmp_path: Path) -> Iterator[ModelBudget]:
    book = BudgetBook(tmp_path, lambda: NOON)
    quotas = Quotas({"*": CallerConfig(rows_per_day=100)}, {"m": ModelConfig(rows_per_day=250)})
    yield ModelBudget("m", 1000, "ever", book, 0, quotas)
    book.close()


def test_all_limits_count(budget: ModelBudget) -> None:
    assert budget.left("alice") == Left(1000, -1, 100, 250)
    assert budget.left("alice").allowed == 100
    assert budget.charge([("alice", 60), ("bob", 100), ("alice", 60)]) == [True, True, False]
    assert budget.left("alice") == Left(940, -1, 40, 90)  # what was refused costs nothing
    assert budget.left("carol").allowed == 90
    assert budget.charge([("carol", 91)]) == [False]
    assert (
        budget.left("carol").day == 9
    )  # its own was charged before: the model's was known to be less, so nobody asks that
    assert budget.charge([("dora", 90)]) == [True]
    assert budget.left("erik") == Left(1000, -1, 100, 0)
    assert "share" in budget.why_used_up("erik")
    assert not ModelBudget("n", 0, "", budget.book, 0, budget.quotas).why_used_up("erik")
    assert budget.why_used_up("bob") == "the caller's quota of 100 rows a day is used up"


def test_rows_of_a_caller_count_over_all_models(budget: ModelBudget) -> None:
    other = ModelBudget("n", 0, "", budget.book, 0, budget.quotas)
    assert budget.charge([("alice", 60)]) == [True]
    assert other.left("alice") == Left(-1, -1, 40, -1)
    assert other.charge([("alice", 41)]) == [False]


def test_at_once_charges_all_or_nothing(budget: ModelBudget) -> None:
    assert budget.left_at_once(["alice"]) is None
    assert budget.charge_at_once([("alice", 1)]) is None
    assert budget.charge([("alice", 1)]) == [True]
    before = budget.left("alice")
    assert budget.left_at_once(["alice"]) == {"alice": before}
    assert budget.charge_at_once([("alice", 1)]) is None  # leases of a hundred rows are of one row
    assert budget.left("alice") == before
    many = ModelBudget("m", 10**6, "ever", budget.book, 0, Quotas({"*": CallerConfig(rows_per_day=10**6)}))
    assert many.charge([("zoe", 1)]) == [True]
    assert many.charge_at_once([("zoe", 7), ("zoe", 3)]) == [True, True]
    assert many.left("zoe") == Left(10**6 - 11, -1, 10**6 - 11, -1)


def test_a_key_that_is_given_a_quota_that_nobody_counts_is_not_answered() -> None:
    """The server was started without any, so no store is open."""
    with pytest.raises(UnavailableError, match="started anew"):
        ModelBudget("m", 0, "", None, 0, Quotas({"*": CallerConfig(rows_per_day=1)})).left("alice")


def test_what_is_left_today_is_a_header(budget: ModelBudget) -> None:
    told = RateLimits(budget, lambda: NOON - NOON % 86_400 + 54_400)
    found = dict(told.headers(Left(940, -1, 40, 7), caller="alice"))
    assert found == {
        "ratelimit-policy": '"rows";q=1000, "rows-per-day";q=100;w=86400',
        "ratelimit": '"rows";r=940, "rows-per-day";r=40;t=32000',
    }
    assert dict(told.headers(Left(940, -1, 0, 7), refused=True, caller="alice"))["retry-after"] == "32000"
    assert "retry-after" not in dict(
        told.headers(Left(0, -1, 5, 7), refused=True, caller="alice")
    )  # it never begins anew


def settings(rows: int = 0, rate: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"callers": {"*": CallerConfig(rows_per_day=rows, requests_per_second=rate)}} | more


CLIENT = httpx.Client()


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    CLIENT.close()


def ask(running: Served, rows: int = 2, model: str = "plain", **headers: str) -> httpx.Response:
    body, length = encode_request({"image": images(rows)})
    sent = {"inference-header-content-length": str(length)} | headers
    return CLIENT.post(f"{running.url}/v2/models/{model}/infer", content=body, headers=sent)


@pytest.mark.usefixtures("one_day")
def test_over_http_a_model_without_a_budget_of_its_own(bundles: Bundles, tmp_path: Path) -> None:
    with serve(bundles, "plain", state=tmp_path, sections=settings(rows=5)) as running:
        first, second, third, fourth = (ask(running) for _ in range(4))
        assert (first.status_code, second.status_code) == (200, 200)
        assert '"rows-per-day";r=3' in first.headers["ratelimit"]
        assert '"rows-per-day";q=5;w=86400' in first.headers["ratelimit-policy"]
        assert (third.status_code, third.json()["code"]) == (429, "request.budget_exhausted")
        assert 0 < int(fourth.headers["retry-after"]) <= 86_400
        assert ask(running, rows=1).status_code == 200
        assert ask(running, rows=1).json()["error"] == "the caller's quota of 5 rows a day is used up"
    with serve(bundles, "plain", state=tmp_path, sections=settings(rows=5)) as running:
        assert ask(running, rows=1).status_code == 429  # also after a restart


@pytest.mark.usefixtures("one_day")
def test_over_http_who_refuses_is_told_and_not_the_signed_budget(bundles: Bundles, tmp_path: Path) -> None:
    """The guard's own budget is far larger: it was once named in the quota's place."""
    with serve(bundles, "metered", state=tmp_path, sections=settings(rows=3)) as running:
        assert ask(running, model="metered").status_code == 200
        partly = ask(running, model="metered")
        assert partly.status_code == 429
        assert "what is left to the caller" in partly.json()["error"]
        assert ask(running, rows=1, model="metered").status_code == 200
        assert ask(running, rows=1, model="metered").json()["error"] == "the caller's quota of 3 rows a day is used up"


def test_over_http_too_many_requests_a_second(bundles: Bundles, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    slow = f"Bearer {add_key(keys, 'slow', requests_per_second=0.01)}"
    free = f"Bearer {add_key(keys, 'free')}"
    with serve(bundles, "plain", state=tmp_path, keys=str(keys)) as running:
        assert ask(running, authorization=slow).status_code == 200
        refused = ask(running, authorization=slow)
        assert (refused.status_code, refused.json()["code"]) == (429, "request.too_fast")
        assert refused.headers["ratelimit-policy"] == '"requests";q=1;w=1'
        assert 1 <= int(refused.headers["retry-after"]) <= 100
        assert running.assembly.rsgi.counted().errors["request.too_fast"] == 1
        assert all(ask(running, authorization=free).status_code == 200 for _ in range(5))  # control
        page = CLIENT.get(running.url + "/v2/models/plain", headers={"authorization": slow})
        assert page.status_code == 200  # pages cost nothing
    with serve(
        bundles, "plain", state=tmp_path, sections={"models": {"plain": ModelConfig(requests_per_second=0.01)}}
    ) as running:
        assert sorted(ask(running).status_code for _ in range(3)) == [200, 429, 429]


def test_a_model_that_is_not_served_has_no_quota(bundles: Bundles, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"models\.plian"),
        serve(bundles, "plain", state=tmp_path, sections={"models": {"plian": ModelConfig(rows_per_day=1)}}),
    ):
        pass


@pytest.mark.usefixtures("one_day")
def test_many_at_once_get_no_more_than_the_quota(bundles: Bundles, tmp_path: Path) -> None:
    with serve(bundles, "plain", state=tmp_path, sections=settings(rows=40)) as running, ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda _: ask(running, rows=3).status_code, range(40)))
    assert codes.count(200) == 13
    assert set(codes) == {200, 429}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_over_http_a_store_that_is_restarted_under_load(bundles: Bundles, tmp_path: Path, kind: str) -> None:
    """Answers or 503, nothing else; no more rows than the quota; it recovers by itself, and the loop keeps answering all the while."""
    with (
        postgres() if kind == "postgres" else redis_or_valkey() as database,
        serve(bundles, "metered", "plain", state=tmp_path, store=database.url) as running,
    ):
        stop, codes, health = threading.Event(), [], []

        def load() -> None:
            while not stop.is_set():
                codes.append((time.monotonic(), ask(running, 1, "metered").status_code))

        def look() -> None:
            while not stop.is_set():
                began = time.monotonic()
                health.append((ask(running, 1).status_code, time.monotonic() - began))
                time.sleep(0.01)

        threads = [threading.Thread(target=what) for what in (load, load, look)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            time.sleep(0.3)
            database.end()
            time.sleep(0.7)
            database.start()
            time.sleep(0.3)
        deadline = time.monotonic() + 20
        while codes[-1][1] != 429 and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        found = [code for _, code in codes]
        assert set(found) <= {200, 429, 503}
        assert found.count(200) <= 100
        assert found[-1] == 429  # it came back, and knew what was used
        assert 503 in found
        assert {code for code, _ in health} == {200}  # another model, without a budget
        assert sorted(took for _, took in health)[len(health) // 2] < 0.5
