"""A proof counts once, for one caller and one body, for a while."""

from __future__ import annotations

import pytest

from garrison.enclave import toll as module
from garrison.enclave.toll import Toll
from garrison.protocol import work

KEY, BODY, NOW, BITS = bytes(range(32)), b"a question", 1_700_000_000, 4


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def proof(caller: str = "alice", body: bytes = BODY, rows: int = 64, when: int = NOW) -> str:
    return work.solve(KEY, caller, body, rows=rows, bits=BITS, when=when)


def toll(clock: Clock | None = None) -> Toll:
    return Toll(KEY, BITS, 300, clock or Clock())


def test_a_proof_counts_once() -> None:
    one, good = toll(), proof()
    assert one.rows(good, "alice", BODY) >= 64
    assert one.rows(good, "alice", BODY) == 0
    assert one.rows(proof(), "alice", BODY) >= 64  # control: another proof of the same question


def test_it_belongs_to_caller_body_and_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "garrison.protocol.work.secrets.randbelow", lambda _: 0
    )  # else one of a thousand is good for another too
    good = proof()
    assert toll().rows(good, "bob", BODY) < 64
    assert toll().rows(good, "alice", BODY + b"!") < 64
    assert Toll(bytes(32), BITS, 300, Clock()).rows(good, "alice", BODY) < 64
    assert toll().rows(good, "alice", BODY) >= 64


def test_who_has_no_key_works_under_no_name() -> None:
    assert toll().rows(proof(caller=""), "ip:127.0.0.1", BODY) >= 64


@pytest.mark.parametrize(("seconds", "good"), [(300, True), (301, False), (-300, True), (-301, False)])
def test_it_is_good_for_a_while(seconds: int, good: bool) -> None:
    clock = Clock()
    one, made = toll(clock), proof()
    clock.now += seconds
    assert (one.rows(made, "alice", BODY) >= 64) is good


def test_what_was_used_is_remembered_as_long_as_it_is_good() -> None:
    clock = Clock()
    one, early, late = toll(clock), proof(when=NOW), proof(when=NOW + 200)
    assert one.rows(early, "alice", BODY)
    assert one.rows(late, "alice", BODY)
    clock.now += 301
    assert one.rows(proof(when=NOW + 301), "alice", BODY)
    assert len(one._used) == 2  # the early one is forgotten, and too old
    assert one.rows(early, "alice", BODY) == one.rows(late, "alice", BODY) == 0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_REMEMBERED", 8)
    one = toll()
    for k in range(50):
        one.rows(proof(body=b"%d" % k, rows=1), "alice", b"%d" % k)
        assert len(one._used) <= 8


@pytest.mark.parametrize("wrong", ["", "junk", "1.2", f"{NOW}.", f"{NOW}.{2**63}"])
def test_what_is_no_proof_pays_for_nothing(wrong: str) -> None:
    assert toll().rows(wrong, "alice", BODY) == 0


def test_a_batch_that_is_tried_again_has_its_proofs_back_and_no_other() -> None:
    one, before, again = toll(), proof(), proof()
    one.begin()
    assert one.rows(before, "alice", BODY) >= 64
    one.begin()
    assert one.rows(again, "alice", BODY) >= 64
    assert one.rows(again, "alice", BODY) == 0  # control
    one.give_back()
    one.begin()
    assert one.rows(before, "alice", BODY) == 0
    assert one.rows(again, "alice", BODY) >= 64
    assert one.rows(again, "alice", BODY) == 0
