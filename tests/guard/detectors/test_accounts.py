from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from garrison.guard.detectors.accounts import FEWEST, MOST, Accounts
from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.steps import TERMS
from garrison.guard.detectors.turns import on_grid, order_of, running
from garrison.hardening.callers import empty
from garrison.types import Array, FloatArray

WIDTH, UNIT = 8, 0.1
ODD, PLAIN_ROW = 0.2, 0.9
"""Confidence of a row that is looked at, and of one that is not."""
STREAMS = Path(__file__).parents[3] / "out" / "bench" / "streams"


def detector(**given: Any) -> Accounts:
    near = (0.5, -2.0, *[0.0] * (TERMS - 2))
    parameters: dict[str, Any] = {
        "threshold": 9.0,
        "unit": UNIT,
        "mean": (0.0,) * WIDTH,
        "whiten": tuple(map(tuple, np.eye(WIDTH).tolist())),
        "out": 10.0,
        "weights": near,
        "edges": (0.5,),
        "nats": (0.5, -1.0),
    }
    return Accounts(**parameters | given)


class Service:
    """A detector and what it remembers; row by row, so that every row's links can be seen."""

    def __init__(self, of: Accounts, callers: int) -> None:
        self.detector = of
        self.columns = {name: empty(column, callers) for name, column in of.columns(WIDTH).items()}
        self.shared = {name: empty(column) for name, column in of.shares(WIDTH).items()}

    def ask(
        self, place: Array, projection: FloatArray, confidence: float | FloatArray, batch: int = 1
    ) -> tuple[FloatArray, set[tuple[int, int]]]:
        found, pairs = [], set()
        low = np.broadcast_to(np.asarray(confidence, np.float32), len(place))
        whole = Seen(place, np.arange(len(place)), projection.astype(np.float32), low, low, place)
        for start in range(0, len(place), batch):
            part = Seen(*(getattr(whole, f)[start : start + batch] for f in Seen.__struct_fields__))
            found.append(self.detector.weigh(part, self.columns, self.shared))
            links = self.detector.links(part, self.columns, self.shared)
            if links is not None:
                pairs |= {(int(min(pair)), int(max(pair))) for pair in links}
        return np.concatenate(found), pairs


def far_rows(rows: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)) * 4 + 3


def sequence(rows: int, step: float, seed: int = 0) -> FloatArray:
    """Each row a step from one asked before."""
    rng = np.random.default_rng(seed)
    found = far_rows(rows, seed)
    for row in range(FEWEST, rows):
        found[row] = found[rng.integers(row)] + step / np.sqrt(WIDTH) * rng.normal(size=WIDTH)
    return found


class TestSybils:
    def test_accounts_that_share_a_sequence_are_linked_and_honest_ones_are_not(self) -> None:
        rows, accounts = 300, 10
        place = np.arange(rows) % accounts
        nats, pairs = Service(detector(), accounts).ask(place, sequence(rows, 0.5), ODD)
        assert {account for pair in pairs for account in pair} == set(range(accounts))
        assert nats[FEWEST + 10 :].mean() > 1
        apart, none = Service(detector(), accounts).ask(place, far_rows(rows), ODD)
        assert not none, "control: rows that are as odd, and come from nowhere"
        assert apart[FEWEST + 10 :].mean() < nats[FEWEST + 10 :].mean() - 1

    def test_rows_of_honest_confidence_link_nobody(self) -> None:
        rows, accounts = 300, 10
        nats, pairs = Service(detector(), accounts).ask(np.arange(rows) % accounts, sequence(rows, 0.5), PLAIN_ROW)
        assert not pairs
        np.testing.assert_array_equal(nats, -1.0)

    def test_one_account_alone_is_no_affair_of_this_detector(self) -> None:
        service = Service(detector(), 2)
        nats, pairs = service.ask(np.zeros(300, dtype=np.intp), sequence(300, 0.5), ODD)
        assert not pairs
        assert np.unique(nats[: FEWEST + 2]).tolist() == [0.5]
        assert (nats <= 0.5).all()

    def test_equal_pictures_of_many_callers_link_nobody(self) -> None:
        popular = far_rows(100)
        place = np.repeat(np.arange(5), 100)
        rows = np.tile(popular, (5, 1))
        nats, pairs = Service(detector(), 5).ask(place, rows, ODD)
        moved, linked = Service(detector(), 5).ask(
            place, rows + np.repeat(np.arange(5), 100)[:, np.newaxis] * UNIT, ODD
        )
        assert not pairs
        assert linked, "control: nearly equal ones would"
        assert moved[100:].mean() > nats[100:].mean()

    def test_only_accounts_under_suspicion_are_linked(self) -> None:
        """One sequence between an account that asks much else and one that does not."""
        service = Service(detector(suspect=12.0, each=6.0), 2)
        rows = sequence(200, 0.5)
        for start in range(0, 200, 2):
            _, pairs = service.ask(np.array([0, 1]), rows[start : start + 2], ODD)
            service.ask(np.array([1] * 6), far_rows(6, start), PLAIN_ROW)
            assert not pairs


class TestFraming:
    """Somebody asks odd rows beside those that an honest caller asked before, who is under some suspicion already."""

    def links(self, steps: int, rounds: int = 40) -> set[tuple[int, int]]:
        weights = (0.5, -2.0, 5.0, *[0.0] * (TERMS - 3))
        service = Service(detector(steps=steps, each=1.0, suspect=2.0, weights=weights), 3)
        service.ask(np.full(FEWEST, 2), far_rows(FEWEST, 7), ODD)
        honest, rng, found = far_rows(rounds, 8), np.random.default_rng(9), set()
        for row in honest:
            service.columns["suspicion"][0] = 5.0
            service.ask(np.array([0]), row[np.newaxis], ODD)
            beside = row + 0.3 / np.sqrt(WIDTH) * rng.normal(size=WIDTH)
            found |= service.ask(np.array([1]), beside[np.newaxis], ODD)[1]
        return found

    def test_whose_rows_others_ask_beside_is_not_linked_for_that(self) -> None:
        assert not self.links(steps=2)

    def test_control_without_that_rule_it_would_be(self) -> None:
        assert self.links(steps=0) == {(0, 1)}

    def framed(self, own: float) -> tuple[FloatArray, bool]:
        """Nats of an honest caller's odd rows, one row in seven, and whether it was linked, where somebody knows each of them before and asks beside it."""
        service = Service(detector(own=own, each=1.0, suspect=2.0, weights=(2.0, -2.0, 5.0, *[0.0] * 7)), 3)
        service.ask(np.full(FEWEST, 2), far_rows(FEWEST, 7), ODD)
        rng, nats, pairs = np.random.default_rng(9), [], set()
        for number, row in enumerate(far_rows(60, 8)):
            for _ in range(2):
                beside = row + 0.3 / np.sqrt(WIDTH) * rng.normal(size=WIDTH)
                pairs |= service.ask(np.array([1]), beside[np.newaxis], ODD)[1]
            said, with_it = service.ask(np.array([0]), row[np.newaxis], ODD)
            nats.append(said)
            pairs |= with_it
            service.ask(np.zeros(6, dtype=np.intp), far_rows(6, 100 + number), PLAIN_ROW)
        return np.concatenate(nats), any(0 in pair for pair in pairs)

    def test_who_asks_few_odd_rows_is_neither_suspected_nor_linked_for_those_of_others(self) -> None:
        nats, linked = self.framed(own=4.0)
        assert not linked
        np.testing.assert_array_equal(nats[1:], 0.5)  # the very first row may count: a thief's accounts may be as new

    def test_control_if_others_rows_counted_against_everybody_it_would_be_both(self) -> None:
        nats, linked = self.framed(own=0.0)
        assert linked
        assert nats[1:].mean() > 1

    @pytest.mark.parametrize(("plain", "seen"), [(1, True), (9, False)])
    def test_a_few_honest_rows_from_each_account_hide_no_thief(self, plain: int, *, seen: bool) -> None:
        """As many as `plain` to two rows of the thief's; many do."""
        accounts, rows = 5, sequence(400, 0.5)
        service = Service(detector(), accounts)
        found: set[tuple[int, int]] = set()
        for start in range(0, 400, 2 * accounts):
            place = np.repeat(np.arange(accounts), 2)
            found |= service.ask(place, rows[start : start + 2 * accounts], ODD)[1]
            others = np.repeat(np.arange(accounts), plain)
            service.ask(others, far_rows(len(others), start + 1), PLAIN_ROW)
        assert bool(found) is seen


class TestMemory:
    def test_is_cut_alike_in_any_batches(self) -> None:
        place, rows = np.arange(400) % 7, sequence(400, 0.5)
        confidence = np.where(np.random.default_rng(1).random(400) < 0.35, ODD, PLAIN_ROW)  # so that some are liable
        one, other = Service(detector(), 7), Service(detector(), 7)
        nats, _ = one.ask(place, rows, confidence, batch=1)
        liable = nats[confidence < 0.5] != 0.5
        assert 0.2 < liable.mean() < 0.8
        np.testing.assert_allclose(other.ask(place, rows, confidence, batch=100)[0], nats, atol=1e-6)
        np.testing.assert_array_equal(one.columns["odd"], other.columns["odd"])
        np.testing.assert_allclose(one.columns["suspicion"], other.columns["suspicion"], rtol=1e-5)
        for name in ("rows", "owner", "count", "square"):
            np.testing.assert_array_equal(one.shared[name], other.shared[name])

    def test_forgets_callers(self) -> None:
        service = Service(detector(), 4)
        service.ask(np.arange(200) % 4, sequence(200, 0.5), ODD)
        service.detector.forget(np.array([1, 2]), service.shared)
        assert set(service.shared["owner"].tolist()) == {-1, 0, 3}
        kept = service.shared["owner"] >= 0
        assert np.isinf(service.shared["square"][~kept]).all()

    def test_the_oldest_rows_go_first(self) -> None:
        service = Service(detector(), 2)
        rows = far_rows(MOST + 100)
        service.ask(np.zeros(MOST + 100, dtype=np.intp), rows, ODD, batch=64)
        looked_at = rows[(rows**2).sum(axis=1) >= 10]
        np.testing.assert_allclose(
            service.shared["rows"][(len(looked_at) - 1) % MOST] * UNIT, looked_at[-1].clip(-12.7, 12.7), atol=UNIT
        )


@pytest.mark.parametrize("batch", [1, 30, 200])
def test_rows_are_remembered_for_others_also_where_nobody_is_liable(batch: int) -> None:
    place, rows = np.arange(300) % 10, sequence(300, 0.5)
    never, always = Service(detector(own=1e6), 10), Service(detector(own=0.0), 10)
    said, _ = never.ask(place, rows, ODD, batch)
    looked, _ = always.ask(place, rows, ODD, batch)
    assert (said == 0.5).all(), "the row's own confidence"
    assert (looked != 0.5).any(), "control"
    for name in ("rows", "square", "owner", "count"):
        np.testing.assert_array_equal(never.shared[name], always.shared[name])


def run_in_parts(place: Array, more: Array, cut: int, begin: float) -> tuple[Array, list[float]]:
    sums = np.full(5, begin)
    parts = [slice(start, start + cut) for start in range(0, len(place), cut)]
    return sums, np.concatenate([running(sums, order_of(place[part]), more[part]) for part in parts]).tolist()


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_running_sums_are_told_row_by_row_to_the_bit(cut: int) -> None:
    rng = np.random.default_rng(0)
    place, more = rng.integers(0, 5, 200), np.where(rng.random(200) < 0.4, on_grid(0.7), on_grid(-0.3))
    by_hand, expected = np.full(5, 3.5), []
    for where, value in zip(place, more, strict=True):
        by_hand[where] = max(0.0, by_hand[where] + value)
        expected.append(by_hand[where])
    sums, told = run_in_parts(place, more, cut, 3.5)
    assert told == expected
    np.testing.assert_array_equal(sums, by_hand)
    rough = np.where(more > 0, 0.7, -0.3)
    assert run_in_parts(place, rough, 200, 3.5)[1] != run_in_parts(place, rough, 1, 3.5)[1], "control: off the grid"


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit": 0.0},
        {"weights": (1.0,)},
        {"out": -1.0},
        {"each": 0.0},
        {"suspect": 1.0},
        {"whiten": ()},
        {"nats": (1.0,)},
        {"share": 1.0},
        {"own": -1.0},
        {"begin": float("inf")},
    ],
)
def test_refuses_parameters_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="accounts"):
        detector(**wrong)


@pytest.mark.slow
@pytest.mark.skipif(
    not (STREAMS / "jbda-undefended-0.npz").exists(), reason="python -m benchmarks.streams was not run here"
)
class TestOnRecordedStreams:
    @pytest.mark.parametrize("spread", ["20 accounts in turn", "accounts of 30 rows, one after the other"])
    def test_sybils_are_summed_and_alarmed_before_1500_rows(self, spread: str) -> None:
        from benchmarks import accounts, streams

        found = accounts.sybils(accounts.calibrated(), streams.load("jbda-undefended-0"), spread, 2.0, 0)
        assert found["first group"] is not None
        assert found["first group"] < 1_500
        assert found["accounts alarmed"] >= 5
        assert found["honest alarmed"] <= 3, "control: 100 honest callers beside them"

    def test_who_knows_what_honest_callers_ask_frames_hardly_any(self) -> None:
        from benchmarks import accounts, streams

        detectors, thief = accounts.calibrated(), streams.load("jbda-undefended-0")
        assert accounts.framing(detectors, thief, "before", 3.0, 0)["framed"] <= 4
        trusting = detectors | {"accounts": msgspec.structs.replace(detectors["accounts"], own=0.0)}
        assert accounts.framing(trusting, thief, "before", 3.0, 0)["framed"] >= 15, "control: others' rows count"
