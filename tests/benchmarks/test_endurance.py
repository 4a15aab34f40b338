"""The load that proves every answer, and what is made of it: each thing that must not be is seen."""

from __future__ import annotations

import binascii
import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.endurance import Memory, Watched, judge, minutes_table
from benchmarks.proved_load import Held, ProvedLoad, Told, hold_against
from tests.models import images
from tests.serving import Bundles, Served, serve

from garrison.config import LedgerConfig
from garrison.errors import ProofError
from garrison.protocol.oip_client import encode_request

INFER = "/v2/models/mlp/infer"
BODIES = [encode_request({"image": images(1, seed=k)}) for k in range(4)]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("endurance") / "ledger"


@pytest.fixture(scope="module")
def served(bundles: Bundles, ledger: Path) -> Iterator[Served]:
    sections = {"ledger": LedgerConfig(folder=str(ledger))}
    with serve(bundles, "mlp-1", state=ledger.parent / "state", sections=sections) as running:
        yield running


def some(answers: int) -> Any:
    """Stop after so many requests."""
    begun = time.monotonic()

    def until() -> bool:
        return load[0].told.sent >= answers or time.monotonic() > begun + 60

    load: list[ProvedLoad] = []
    return load, until


def test_every_answer_is_proved_and_stands_in_the_ledger_once(served: Served, ledger: Path) -> None:
    load, until = some(60)
    load.append(ProvedLoad(served.url, INFER, BODIES, connections=3, keeps=True))
    told = load[0].run(until)
    assert told.errors == 0
    assert told.statuses[200] == len(told.answered) == len(told.good_times) == told.sent >= 60
    assert hold_against(ledger, load[0]) == Held(told.sent, 0, 0, 0, 0, 0)
    told.digests[0] ^= 1
    assert hold_against(ledger, load[0]).other == 1, "control: an answer with another digest is seen"
    told.answered.append(told.sent)
    told.digests.append(0)
    told.sent += 1
    assert hold_against(ledger, load[0]).missing == 1, "control: an answer that stands nowhere is seen"


def test_an_answer_that_is_wrong_refused_or_broken_is_counted(served: Served) -> None:
    load, until = some(10)
    wrong = [BODIES[0], (b"{", 1)]
    load.append(ProvedLoad(served.url, INFER, wrong, connections=2, check=lambda row, _: f"row {row} is wrong"))
    told = load[0].run(until)
    assert told.statuses[200] == len(told.wrong) > 0
    assert told.codes["request.malformed"] == told.statuses[400] > 0
    gone = ProvedLoad(served.url, INFER, BODIES, connections=1)
    gone._connections[0].address = "127.0.0.1", 1
    load[:] = [gone]
    assert gone.run(lambda: gone.told.sent >= 2).broken == 2


def test_a_proof_of_something_else_does_not_pass(served: Served) -> None:
    keys = ProvedLoad(served.url, INFER, BODIES).keys
    (body, _) = BODIES[0]
    answer = served.infer(images(1, seed=0), **{"garrison-nonce": "n"})
    proof, request = binascii.a2b_base64(answer.headers["garrison-proof"]), hashlib.sha256(body).hexdigest()
    keys.check(proof, request, answer.content, "n")
    for changed in (
        (request, answer.content, "m"),
        (request, answer.content + b" ", "n"),
        ("0" * 64, answer.content, "n"),
    ):
        with pytest.raises(ProofError, match="another answer"):
            keys.check(proof, *changed)
    keys._batches.clear()
    keys._known = {bytes(32): ("", "")}
    keys.refresh = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ProofError, match="no key"):
        keys.check(proof, request, answer.content, "n")


def watched(*memory: float) -> Watched:
    times = [float(k) for k in range(len(memory))]
    found = Watched(0, 0.0, times, [{"server": 1.0, "enclave": m - 1.0} for m in memory])
    found.answers, found.spent = [100 * k for k in range(len(memory))], times
    return found


def test_memory_that_grows_or_swells_after_the_warm_up_is_seen() -> None:
    flat = Memory.of(watched(*[50.0] * 20, *[100.0] * 80))
    assert (flat.growth, flat.peak) == (0.0, 0.0)
    assert Memory.of(watched(*[100.0] * 50, *[106.0] * 50)).growth == pytest.approx(0.06)
    assert Memory.of(watched(*[100.0] * 50, 150.0, *[100.0] * 49)).peak == pytest.approx(0.5)
    assert minutes_table(watched(*[100.0] * 100)).count("\n") >= 9


def test_each_figure_that_is_not_met_is_named() -> None:
    told, held = Told(), Held(1, 0, 0, 0, 0, 0)
    told.statuses[200] = told.sent = 1
    told.answered.append(0)
    memory, ledger = Memory.of(watched(*[100.0] * 100)), {"verified": True, "took": 1.0, "chains": [{"answers": 1}]}
    assert all(met for _, _, met in judge(memory, told, ledger, held).values())

    def missed(**changed: Any) -> int:
        given: dict[str, Any] = {"memory": memory, "told": told, "ledger": ledger, "held": held} | changed
        return sum(not met for _, _, met in judge(**given).values())

    assert missed(memory=Memory.of(watched(*[100.0] * 50, *[106.0] * 50))) == 1
    assert missed(ledger=ledger | {"verified": False}) == 1
    assert missed(ledger=ledger | {"chains": [{"answers": 2}]}) == 1
    assert missed(held=replace(held, doubled=1)) == 1
    told.statuses[503] += 1
    assert missed() == 1
