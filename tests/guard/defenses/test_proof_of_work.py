"""Who brings too little work is refused; what a proof pays for is found elsewhere (tests/enclave/test_toll.py)."""

from __future__ import annotations

import numpy as np
import pytest
from tests.guard.conftest import make_facts, make_inputs

from garrison.errors import GuardError
from garrison.guard.base import View
from garrison.guard.defenses.proof_of_work import ProofOfWork
from garrison.guard.pipeline import Pipeline
from garrison.types import Batch, Caller, DefenseSpec


class Watch:
    """Alarms by caller."""

    def __init__(self, **levels: int) -> None:
        self.levels = levels

    def level(self, caller: str) -> int:
        return self.levels.get(caller, 0)


def refused(worked: tuple[int, ...], defense: ProofOfWork, watch: Watch | None = None) -> list[bool]:
    rows = np.repeat(np.arange(3, dtype=np.intp), (1, 2, 3))
    batch = Batch({"x": make_inputs(6)}, rows, tuple(map(Caller, "abc")), (-1,) * 3, (), worked)
    view = View(batch, make_facts(), state=watch)  # type: ignore[arg-type]  # what a watch shares
    codes = defense(view).codes
    return [bool(codes[rows == i].all()) for i in range(3)]


def test_refuses_who_worked_for_fewer_rows_than_it_asks() -> None:
    assert refused((1, 1, 3), ProofOfWork()) == [False, True, False]
    assert refused((0, 0, 0), ProofOfWork()) == [True] * 3
    assert refused((9, 9, 9), ProofOfWork()) == [False] * 3


def test_where_nobody_is_asked_for_proofs_nobody_is_refused() -> None:
    assert refused((), ProofOfWork()) == [False] * 3


def test_under_alarm_only_the_alarmed_work() -> None:
    alarmed = ProofOfWork(who="alarmed")
    assert refused((0, 0, 0), alarmed, Watch(b=3, c=2)) == [False, True, False]
    assert refused((0, 2, 0), alarmed, Watch(b=3)) == [False] * 3
    assert refused((0, 0, 0), alarmed, Watch(a=4)) == [True, False, False]
    assert refused((0, 0, 0), alarmed) == [False] * 3  # nobody watches
    assert refused((0, 0, 0), ProofOfWork(), Watch()) == [True] * 3  # control


def test_alarms_need_a_watch_in_the_chain() -> None:
    chain = [DefenseSpec(name="proof-of-work", parameters={"who": "alarmed"}), DefenseSpec(name="release")]
    with pytest.raises(GuardError, match="watch"):
        Pipeline(chain, make_facts())
    Pipeline([DefenseSpec(name="proof-of-work"), DefenseSpec(name="release")], make_facts())


@pytest.mark.parametrize("wrong", [{"bits": -1}, {"bits": 41}, {"window_seconds": 0}, {"window_seconds": 90_000}])
def test_values_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="proof-of-work"):
        ProofOfWork(**wrong)  # type: ignore[arg-type]


def test_a_host_may_ask_for_more_work_and_not_for_less() -> None:
    signed = ProofOfWork(bits=12, who="alarmed")
    ProofOfWork(bits=14, window_seconds=60).check_tightened(signed)
    for looser in (ProofOfWork(bits=11, who="alarmed"), ProofOfWork(bits=12, window_seconds=301, who="alarmed")):
        with pytest.raises(GuardError):
            looser.check_tightened(signed)
    with pytest.raises(GuardError):
        ProofOfWork(who="alarmed").check_tightened(ProofOfWork())
