"""Each tactic does what it is for, beside an arm in which it does not."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pytest
from tests.attacks.services import CLASSES, Linear, facts, rows, softmax
from tests.attacks.tactics.worlds import Accounts, knows

from garrison.attacks.base import Tactic
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.measures import total_variation
from garrison.attacks.oracle import Answers, MeteredOracle, Oracle, OracleFacts
from garrison.attacks.tactics.cover_traffic import CoverTraffic
from garrison.attacks.tactics.drop_suspicious import DropSuspicious
from garrison.attacks.tactics.in_distribution import InDistribution
from garrison.attacks.tactics.mechanisms import Mechanism, bent, imagined_answers
from garrison.attacks.tactics.repeats import Repeats
from garrison.attacks.tactics.restore_bayes import RestoreBayes
from garrison.attacks.tactics.restore_network import RestoreNetwork
from garrison.attacks.tactics.sybil import Sybil
from garrison.attacks.tactics.top_1 import Top1
from garrison.types import Array, FloatArray


def through(tactic: Tactic, service: Oracle, x: Array, budget: int = 10_000) -> tuple[Answers, MeteredOracle]:
    meter = MeteredOracle(service, budget)
    near, _ = tactic.around(meter, knows(), np.random.default_rng(0))
    return near.query(x), meter


@dataclass(slots=True)
class Noisy:
    """Adds noise to the linear service's probabilities, drawn anew for each answer."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    @property
    def facts(self) -> OracleFacts:
        return facts()

    def query(self, x: Array) -> Answers:
        found = Linear().query(x)
        p = softmax(np.log(Linear().truth(x)) + self.rng.normal(size=(len(x), CLASSES)))
        return dataclasses.replace(found, labels=p.argmax(axis=1), probabilities=p)


@dataclass(slots=True)
class Misinforming:
    """Answers rows whose first feature is above one half with a class drawn from the row's own bytes."""

    @property
    def facts(self) -> OracleFacts:
        return facts()

    def query(self, x: Array) -> Answers:
        found = Linear().query(x)
        drawn = np.array([np.random.default_rng(list(row.tobytes())).integers(CLASSES) for row in x])
        wrong = x[:, 0] > 0.5
        labels = np.where(wrong, drawn, found.labels)
        p = np.where(wrong[:, np.newaxis], np.eye(CLASSES)[drawn], Linear().truth(x))
        return dataclasses.replace(found, labels=labels, probabilities=p)


def far(found: Answers, x: Array) -> float:
    assert found.probabilities is not None
    return float(total_variation(found.probabilities, Linear().truth(x)).mean())


def test_repeats_average_noise_away() -> None:
    x = rows(200, seed=1)
    once, many = Noisy().query(x), through(Repeats(times=8), Noisy(), x)
    assert far(many[0], x) < 0.7 * far(once, x)
    assert many[1].rows == 8 * 200


def test_repeats_of_near_copies_see_through_a_keyed_draw_and_exact_ones_do_not() -> None:
    x = rows(200, seed=1)
    exact, near = (through(Repeats(times=8, jitter=j), Misinforming(), x)[0] for j in (0.0, 0.02))
    assert far(exact, x) == pytest.approx(far(Misinforming().query(x), x))
    assert far(near, x) < 0.9 * far(exact, x)


def test_dropping_finds_what_is_misinformed_by_a_near_copy() -> None:
    x = rows(300, seed=1)
    found, meter = through(DropSuspicious(), Misinforming(), x)
    wrong = x[:, 0] > 0.5
    assert meter.rows == 600
    # A drawn class is the neighbour's by chance in one of four.
    assert found.usable[wrong].mean() < 0.45
    assert found.usable[~wrong].mean() > 0.85


def test_dropping_what_is_unsure_asks_nothing_more() -> None:
    x = rows(300, seed=1)
    found, meter = through(DropSuspicious(sign="unsure", least_confidence=0.6), Linear(), x)
    assert meter.rows == 300
    assert (found.usable == (Linear().truth(x).max(axis=1) >= 0.6)).all()


def test_sybils_share_the_rows() -> None:
    service = Accounts()
    _, meter = through(Sybil(accounts=3), service, rows(90))
    assert (meter.rows, service.by_account, len(service.asked)) == (90, {1: 30, 2: 30}, 3)


def test_cover_is_sent_and_counted_apart() -> None:
    service, x = Linear(), rows(50, seed=1)
    found, meter = through(CoverTraffic(ratio=2.0), service, x, budget=50)
    assert (meter.rows, meter.cover) == (50, 100)
    assert np.concatenate(service.asked).shape[0] == 150
    assert (found.labels == Linear().query(x).labels).all()
    # The questions are not all at one end of the stream.
    mine = np.flatnonzero((np.concatenate(service.asked)[:, np.newaxis] == x).all(axis=2).any(axis=1))
    assert mine.min() < 30
    assert mine.max() > 120


def test_in_distribution_rows_take_the_place_of_surrogate_rows() -> None:
    _, known = InDistribution().around(MeteredOracle(Linear(), 5), knows(), np.random.default_rng(0))
    own = knows().in_distribution
    assert own is not None
    assert np.array_equal(known.surrogate, own)


def test_top_1_throws_probabilities_away() -> None:
    found, _ = through(Top1(), Linear(), rows(5))
    assert found.probabilities is None
    assert (found.labels == Linear().query(rows(5)).labels).all()


@dataclass(slots=True)
class ReverseSigmoid:
    """The linear service behind a reverse sigmoid."""

    @property
    def facts(self) -> OracleFacts:
        return facts()

    def query(self, x: Array) -> Answers:
        p = bent(Linear().truth(x).astype(np.float64), "reverse-sigmoid", np.random.default_rng(1))
        return dataclasses.replace(Linear().query(x), probabilities=p)


@pytest.mark.parametrize(
    "tactic", [RestoreBayes(mechanism="reverse-sigmoid"), RestoreNetwork(mechanism="reverse-sigmoid")]
)
def test_restorers_bring_a_bent_vector_nearer_to_the_clean_one(tactic: Tactic) -> None:
    x = rows(300, seed=1)
    seen, restored = ReverseSigmoid().query(x), through(tactic, ReverseSigmoid(), x)[0]
    assert far(restored, x) < 0.7 * far(seen, x)


@pytest.mark.parametrize("tactic", [RestoreBayes(), RestoreNetwork()])
def test_restorers_cannot_restore_what_the_answer_does_not_hold(tactic: Tactic) -> None:
    x = rows(300, seed=1)
    wrong = x[:, 0] > 0.5
    seen, restored = Misinforming().query(x), through(tactic, Misinforming(), x)[0]
    truth = Linear().query(x).labels
    assert (restored.labels == truth)[wrong].mean() < (seen.labels == truth)[wrong].mean() + 0.1


def test_imagined_answers_run_from_flat_to_sure() -> None:
    p = imagined_answers(np.random.default_rng(0), 2000, 10)
    first: FloatArray = p.max(axis=1)
    assert p.sum(axis=1) == pytest.approx(np.ones(2000))
    assert (first < 0.3).mean() > 0.1
    assert (first > 0.9).mean() > 0.1


def test_imagined_misinformation_names_another_class() -> None:
    rng = np.random.default_rng(0)
    p = imagined_answers(rng, 4000, 10)
    seen = bent(p, "misinformation", rng)
    unsure = p.max(axis=1) < 0.3
    assert (seen.argmax(axis=1) != p.argmax(axis=1))[unsure].mean() > 0.95
    assert (seen.argmax(axis=1) == p.argmax(axis=1))[p.max(axis=1) > 0.95].all()


@pytest.mark.parametrize("mechanism", ["poisoning", "quantised"])
def test_an_imagined_defense_that_keeps_the_first_class_keeps_it(mechanism: Mechanism) -> None:
    rng = np.random.default_rng(0)
    p = imagined_answers(rng, 3000, 10)
    seen = bent(p, mechanism, rng)
    clear = np.sort(p, axis=1)[:, -1] - np.sort(p, axis=1)[:, -2] > 1e-3
    assert (seen.argmax(axis=1) == p.argmax(axis=1))[clear].mean() > 0.99
    assert np.abs(seen - p).sum(axis=1).mean() > 0.1
    assert seen.sum(axis=1) == pytest.approx(np.ones(3000))


def test_knowledge_is_not_changed_by_asking() -> None:
    before = knows()
    Repeats().around(MeteredOracle(Linear(), 5), before, np.random.default_rng(0))
    assert isinstance(before, Knowledge)
