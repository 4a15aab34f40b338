"""Budgets in rows and in distinct rows, their headers, and proofs of work, on a real server at a real port."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.guard.detectors.chains import PROJECTION, watch_for_strangers
from tests.models import BOUNDS, RELEASE, SCORE, images, misinform, seal_mlp
from tests.serving import Bundles, command, serve

from garrison.client import Client
from garrison.crypto.owner import OwnerKey
from garrison.errors import BudgetExhaustedError, WorkRequiredError
from garrison.protocol import work
from garrison.protocol.oip_client import encode_request
from garrison.server.auth import add_key
from garrison.types import Array, DefenseSpec

BITS = 6


@pytest.fixture(scope="module")
def sold(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder, owner = tmp_path_factory.mktemp("sold"), OwnerKey.generate()

    def chain(**budget: Any) -> tuple[DefenseSpec, ...]:
        return (BOUNDS, DefenseSpec(name="budget", parameters=budget), RELEASE)

    chains = {
        "daily": chain(rows=60, distinct=20, period="day", price_per_1000_rows=2.5),
        "ever": chain(rows=60, distinct=20),
        "worked": (BOUNDS, DefenseSpec(name="proof-of-work", parameters={"bits": BITS}), RELEASE),
        "watched": (
            BOUNDS,
            DefenseSpec(name="proof-of-work", parameters={"bits": BITS, "who": "alarmed"}),
            PROJECTION,
            SCORE,
            watch_for_strangers(action="work"),
            misinform(0.6),
            RELEASE,
        ),
    }
    sealed = {name: seal_mlp(folder / name, owner=owner, name=name, chain=c) for name, c in chains.items()}
    (folder / "owner.pub").write_bytes(owner.public.pem)
    return Bundles(folder, owner, sealed)


def rows(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((count, *images(1).shape[1:]), dtype=np.float32)


@contextmanager
def asked(sold: Bundles, name: str, state: Path, **more: Any) -> Iterator[Client]:
    sealed = more.pop("sealed", False)
    with (
        serve(sold, name, state=state, **more) as served,
        Client(served.url, sealed=sealed, allow_simulated=sealed) as client,
    ):
        yield client


def test_what_is_left_stands_in_every_answer_and_repeats_cost_no_distinct_rows(sold: Bundles, tmp_path: Path) -> None:
    with asked(sold, "ever", tmp_path) as client:
        x = rows(12)
        client.predict(x)
        assert client.left == {"rows": 48, "distinct-rows": 8}
        client.predict(x)
        assert client.left == {"rows": 36, "distinct-rows": 8}
        with pytest.raises(BudgetExhaustedError, match="60 rows, 20 of them different"):
            client.predict(rows(9, seed=1))
        client.predict(rows(8, seed=2))
        assert client.left == {"rows": 28, "distinct-rows": 0}
        client.predict(x)  # at the limit, repeats are answered still
        with pytest.raises(BudgetExhaustedError):
            client.predict(rows(1, seed=3))
        with pytest.raises(BudgetExhaustedError):
            client.predict(np.repeat(x[:1], 17, axis=0))  # 16 rows are left


@pytest.mark.usefixtures("one_day")
def test_a_refusal_says_when_to_come_again(sold: Bundles, tmp_path: Path) -> None:
    with serve(sold, "daily", "ever", state=tmp_path) as served:

        def post(name: str, count: int) -> httpx.Response:
            body, length = encode_request({"image": rows(count)})
            headers = {"inference-header-content-length": str(length)}
            return httpx.post(f"{served.url}/v2/models/{name}/infer", content=body, headers=headers)

        found = post("daily", 21)
        assert found.status_code == 429
        assert found.headers["ratelimit-policy"] == '"rows";q=60;w=86400, "distinct-rows";q=20;w=86400'
        seconds = int(found.headers["retry-after"])
        assert 0 < seconds <= 86_400
        assert found.headers["ratelimit"] == f'"rows";r=60;t={seconds}, "distinct-rows";r=20;t={seconds}'
        assert "retry-after" not in post("ever", 21).headers  # it never begins anew
        assert post("daily", 20).status_code == 200
        extras = httpx.get(f"{served.url}/v2/models/daily").json()["garrison"]
        assert (extras["budget_rows"], extras["budget_distinct"], extras["price_per_1000_rows"]) == (60, 20, 2.5)


def test_a_model_without_a_budget_says_nothing_of_one(sold: Bundles, tmp_path: Path) -> None:
    with serve(sold, "worked", state=tmp_path) as served:
        found = served.infer(path="/v2/models/worked/infer")
        assert not {"ratelimit", "ratelimit-policy"} & set(found.headers)


@pytest.mark.slow
def test_a_killed_server_gives_nothing_back(sold: Bundles, tmp_path: Path) -> None:
    with command(sold, "ever", tmp_path, "--isolation", "process") as (server, said), Client(said["url"]) as client:
        client.predict(rows(12))
        client.predict(rows(12))
        assert client.left == {"rows": 36, "distinct-rows": 8}
        server.send_signal(signal.SIGKILL)
        server.wait()
    with command(sold, "ever", tmp_path, "--isolation", "process") as (_, said), Client(said["url"]) as client:
        with pytest.raises(BudgetExhaustedError):  # a fresh enclave knows no row: each counts as new again
            client.predict(rows(12))
        client.predict(rows(5))
        assert client.left["rows"] <= 31
        assert client.left["distinct-rows"] <= 3


def test_of_sealed_requests_every_row_counts_as_new(sold: Bundles, tmp_path: Path) -> None:
    """A host that learned of repeats could ask in a caller's name what it guesses, and see whether that was asked before."""
    with asked(sold, "ever", tmp_path, isolation="process", sealed=True) as client:
        x = rows(8)
        client.predict(x)
        assert client.left == {"rows": 52, "distinct-rows": 12}
        client.predict(x)
        assert client.left == {"rows": 44, "distinct-rows": 4}
        with pytest.raises(BudgetExhaustedError):
            client.predict(x)


@pytest.mark.slow
def test_front_workers_side_by_side_never_let_more_different_rows_through(sold: Bundles, tmp_path: Path) -> None:
    """Each worker sees what is left before the others have charged, and the enclave calls a row new once."""
    body, length = zip(*(encode_request({"image": rows(3, seed=k)}) for k in range(40)), strict=True)

    async def storm(url: str) -> list[bool]:
        async with httpx.AsyncClient(timeout=60) as http:

            async def ask(k: int) -> bool:
                headers = {"inference-header-content-length": str(length[k])}
                found = await http.post(f"{url}/v2/models/ever/infer", content=body[k], headers=headers)
                return found.status_code == 200

            return await asyncio.gather(*map(ask, range(len(body))))

    with command(sold, "ever", tmp_path, "--isolation", "process", "--workers", "3") as (_, said):
        answered = [asyncio.run(storm(said["url"])) for _ in range(3)]  # the second time all of them are repeats
    different = {k for time in answered for k, good in enumerate(time) if good}
    assert 0 < 3 * len(different) <= 20


# --- proof of work ---------------------------------------------------------------------------------------------------


def test_a_client_works_by_itself_and_a_proof_is_good_once(sold: Bundles, tmp_path: Path) -> None:
    with serve(sold, "worked", state=tmp_path) as served:
        x = rows(3)
        body, length = encode_request({"image": x})
        key = bytes.fromhex(httpx.get(f"{served.url}/.well-known/garrison/keys").json()["keys"][0]["public_key"])

        def post(proof: str | None) -> httpx.Response:
            headers = {"inference-header-content-length": str(length)}
            headers |= {} if proof is None else {"garrison-work": proof}
            return httpx.post(f"{served.url}/v2/models/worked/infer", content=body, headers=headers)

        without = post(None)
        assert (without.status_code, without.json()["code"]) == (428, "request.work_required")
        now = int(time.time())
        good = work.solve(key, "", body, rows=3, bits=BITS, when=now)
        assert post(good).status_code == 200
        assert post(good).status_code == 428  # replayed
        assert post(work.solve(key, "", body, rows=3, bits=BITS, when=now - 400)).status_code == 428
        assert post(work.solve(key, "", body + b" ", rows=300, bits=BITS, when=now)).status_code == 428
        assert post("9" * 100).status_code == 413
        with Client(served.url) as client:
            assert client.metadata().garrison.work.bits == BITS  # type: ignore[union-attr]
            assert client.predict(x).rows == client.predict(x).rows == 3


def test_work_goes_inside_a_sealed_request_and_is_bound_to_the_key(sold: Bundles, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "alice")
    with serve(sold, "worked", state=tmp_path, isolation="process", keys=str(keys)) as served:
        told: list[int] = []
        with Client(served.url, api_key=key, sealed=True, allow_simulated=True) as client:
            assert client.predict(rows(5)).attested
        with Client(served.url, api_key=key, on_work=lambda made, of: told.append(made)) as client:  # noqa: ARG005
            assert client.predict(rows(5)).rows == 5
            client._core._caller = "bob"  # works under another name
            with pytest.raises(WorkRequiredError):
                client.predict(rows(40))


def test_under_an_alarm_a_caller_works_and_before_it_does_not(sold: Bundles, tmp_path: Path) -> None:
    with serve(sold, "watched", state=tmp_path) as served:
        found = served.infer(images(4), "/v2/models/watched/infer")
        assert found.status_code == 200  # control: no alarm, no work
        with Client(served.url) as client:
            for k in range(16):
                client.predict(images(4, seed=k))  # rows that are not the model's business: the alarm rings on the way
            assert client._core._works
        refused = served.infer(images(4, seed=99), "/v2/models/watched/infer")
        assert (refused.status_code, refused.json()["code"]) == (428, "request.work_required")
