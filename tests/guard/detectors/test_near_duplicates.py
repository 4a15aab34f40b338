from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from garrison.guard.detectors.base import Seen
from garrison.guard.detectors.near_duplicates import FEWEST, MOST_SLOTS, SLOTS, NearDuplicates, drawn
from garrison.guard.detectors.steps import TERMS, terms
from garrison.hardening.callers import empty
from garrison.hardening.near import fit_near_duplicates, logistic
from garrison.hardening.shifts import PLAIN
from garrison.types import Array, FloatArray

WIDTH, UNIT = 8, 0.1
STREAMS = Path(__file__).parents[3] / "out" / "bench" / "streams"


def detector(**given: object) -> NearDuplicates:
    weights = (1.0, -1.0, *[0.0] * (TERMS - 2))
    return NearDuplicates(**{"threshold": 9.0, "unit": UNIT, "weights": weights, **given})  # type: ignore[arg-type]


def seen_of(projection: FloatArray, place: Array | None = None) -> Seen:
    """Rows of callers, in the order asked."""
    rows = len(projection)
    where = np.zeros(rows, dtype=np.intp) if place is None else place
    asked = np.array([np.count_nonzero(where[:i] == where[i]) for i in range(rows)])
    nothing = np.zeros(rows, np.float32)
    return Seen(where, asked, projection.astype(np.float32), nothing, nothing, nothing.astype(np.intp))


def distances(of: NearDuplicates, seen: Seen, memory: Memory) -> tuple[FloatArray, FloatArray]:
    """To the nearest and the second nearest."""
    nearest, second = np.sqrt(of.apart(seen, memory.columns, memory.shared).squares) * of.unit
    return nearest, second


class Memory:
    def __init__(self, of: NearDuplicates, callers: int = 1) -> None:
        self.columns = {name: empty(column, callers) for name, column in of.columns(WIDTH).items()}
        self.shared = {name: empty(column) for name, column in of.shares(WIDTH).items()}


def whole_rows(rows: int, seed: int = 0, spread: float = 3.0) -> FloatArray:
    """Rows that are exact in the detector's whole numbers."""
    drawn_rows = np.random.default_rng(seed).normal(size=(rows, WIDTH)) * spread
    return np.rint(drawn_rows / UNIT).clip(-127, 127) * UNIT


class TestDistances:
    def test_are_those_to_the_nearest_two_rows_asked_before(self) -> None:
        x, one = whole_rows(150), detector()
        memory = Memory(one)
        nearest, second = distances(one, seen_of(x), memory)
        apart = np.sqrt(((x[:, np.newaxis] - x) ** 2).sum(axis=2))
        apart[np.triu_indices(len(x))] = np.inf
        expected = np.sort(apart, axis=1)
        np.testing.assert_allclose(nearest[2:], expected[2:, 0], rtol=1e-5)
        np.testing.assert_allclose(second[2:], expected[2:, 1], rtol=1e-5)
        assert np.isinf(nearest[0])
        assert np.isinf(second[1])

    def test_a_repeat_is_left_aside(self) -> None:
        x = whole_rows(60)
        again = np.concatenate([x, x[:1] + 1e-4])
        one = detector()
        memory, control = Memory(one), Memory(one)
        nearest, _ = distances(one, seen_of(again), memory)
        assert nearest[-1] > 1.0
        moved, _ = distances(one, seen_of(np.concatenate([x, x[:1] + UNIT])), control)
        assert moved[-1] == pytest.approx(UNIT * np.sqrt(WIDTH), rel=1e-4), "control: a step is seen"

    def test_are_to_rows_of_the_same_caller(self) -> None:
        x = whole_rows(40)
        both, place = np.repeat(x, 2, axis=0), np.tile([0, 1], len(x))
        one = detector()
        memory = Memory(one, 2)
        nearest, _ = distances(one, seen_of(both, place), memory)
        np.testing.assert_array_equal(nearest[::2], nearest[1::2])
        assert np.isfinite(nearest[2:]).all()

    def test_old_rows_are_forgotten_and_young_ones_are_not(self) -> None:
        x = whole_rows(4 * SLOTS, spread=6.0)
        one = detector()
        memory = Memory(one)
        distances(one, seen_of(x), memory)
        kept = {tuple(row) for row in memory.columns["rows"][0].T.tolist()}
        known = np.array([tuple(row) in kept for row in np.rint(x / UNIT).astype(int).tolist()])
        assert known[-40:].mean() > 0.85
        assert known[: 2 * SLOTS].mean() < 0.3
        assert np.isfinite(memory.columns["square"]).all()

    def test_long_and_short_requests_are_weighed_alike(self) -> None:
        """Whole numbers: the sums are exact, in whatever order they are made."""
        x = whole_rows(300)
        place = np.arange(300) // 100
        one = detector()
        long, short = Memory(one, 3), Memory(one, 3)
        seen = seen_of(x, place)
        found = distances(one, seen, long)
        parts = []
        for turn in range(100):
            rows = np.array([turn, 100 + turn, 200 + turn])
            part = Seen(*(getattr(seen, field)[rows] for field in Seen.__struct_fields__))
            parts.append(np.stack(distances(one, part, short)))
        np.testing.assert_array_equal(np.stack(found).reshape(2, 3, 100), np.stack(parts, axis=2))


def test_slots_are_taken_in_turn_and_then_at_random() -> None:
    asked = np.arange(20 * SLOTS)
    slots = drawn(asked, 1, SLOTS)
    np.testing.assert_array_equal(slots[:SLOTS], asked[:SLOTS])
    counts = np.bincount(slots[SLOTS:], minlength=SLOTS)
    assert counts.max() < 50
    assert (slots[SLOTS:] != drawn(asked, 2, SLOTS)[SLOTS:]).mean() > 0.9, (
        "who does not know the salt does not know the slots"
    )


def test_says_nothing_of_the_first_rows() -> None:
    x, one = whole_rows(FEWEST + 10), detector()
    memory = Memory(one)
    nats = one.weigh(seen_of(x), memory.columns, memory.shared)
    assert not nats[:FEWEST].any()
    assert nats[FEWEST:].all()


def test_fewer_stepped_rows_say_less() -> None:
    x = whole_rows(200)
    strong, weak = (
        d.weigh(seen_of(x), (m := Memory(d)).columns, m.shared) for d in (detector(stepped=1.0), detector(stepped=0.1))
    )
    assert (np.abs(weak) <= np.abs(strong) + 1e-9).all()
    assert (np.sign(weak) == np.sign(strong)).all()


@pytest.mark.parametrize(
    "wrong",
    [{"unit": 0.0}, {"weights": (1.0,)}, {"weights": (np.nan,) * TERMS}, {"stepped": 0.0}, {"slots": MOST_SLOTS + 1}],
)
def test_refuses_parameters_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="near-duplicates"):
        detector(**wrong)


class TestFit:
    def test_names_steps_and_no_honest_caller(self) -> None:
        """On rows of no model: a mixture of lumps. Control arms: an honest caller, and a thief whose rows come in random order from nowhere."""
        rng = np.random.default_rng(5)
        middles = rng.normal(size=(60, 32)) * 4

        def some(rows: int) -> FloatArray:
            found: FloatArray = middles[rng.integers(0, 60, rows)] + rng.normal(size=(rows, 32))
            return found

        pool = seen_of(some(1500))
        fitted = fit_near_duplicates({PLAIN: pool}, seed=0)
        assert fitted is not None
        stepped = some(400)
        for row in range(100, 400):
            stepped[row] = stepped[rng.integers(row)] + 2.0 / np.sqrt(32) * rng.normal(size=32)
        found = {}
        for name, x in {"thief": stepped, "honest": some(400), "other": rng.permutation(some(400))}.items():
            columns = {n: empty(c, 1) for n, c in fitted.columns(32).items()}
            shared = {n: empty(c) for n, c in fitted.shares(32).items()}
            found[name] = fitted.weigh(seen_of(x), columns, shared)[100:].mean()
        assert found["thief"] > 0.1
        assert found["honest"] < 0
        assert found["other"] < 0

    def test_needs_rows(self) -> None:
        assert fit_near_duplicates({PLAIN: seen_of(whole_rows(100))}, seed=0) is None

    def test_odds_of_honest_rows_are_at_most_one_in_the_mean(self) -> None:
        rng = np.random.default_rng(0)
        nearest, second = np.exp(rng.normal(size=(2, 4000)))
        honest = terms(nearest, nearest + second, np.arange(4000), SLOTS)
        thieves = terms(nearest / 4, nearest + second, np.arange(4000), SLOTS)
        weights = np.array(logistic([honest[:2000], honest[2000:]], [thieves]))
        for part in (honest[:2000], honest[2000:]):
            assert np.exp(np.clip(part @ weights, -4, 4)).mean() <= 1.001
        assert (thieves @ weights).mean() > 0.5, "control: thieves' are above"


@pytest.mark.slow
@pytest.mark.skipif(
    not (STREAMS / "jbda-undefended-0.npz").exists(), reason="python -m benchmarks.streams was not run here"
)
class TestOnRecordedStreams:
    def test_names_jbda_before_220_rows_and_no_honest_caller(self) -> None:
        from benchmarks.detection import seen_of as seen_of_stream

        from benchmarks import streams
        from garrison.hardening.watching import sums

        fitted = fit_near_duplicates(
            {kind: seen_of_stream(streams.load(f"calibration-{kind}")) for kind in streams.SHIFTS}, seed=0
        )
        assert fitted is not None
        honest = sums(fitted, [seen_of_stream(s) for s in streams.honest(50, seed=3)])
        threshold = 9.5
        assert (honest.max(axis=1) >= threshold).sum() <= 1
        for name in ("jbda-undefended-0", "jbda-defended-0", "jbda-tr-undefended-0"):
            stream = streams.load(name)
            path = sums(fitted, [seen_of_stream(stream)])[0]
            assert 150 < int(np.argmax(path >= threshold)) < 220, name
            shuffled = stream[np.random.default_rng(0).permutation(150)]
            assert sums(fitted, [seen_of_stream(shuffled)])[0].max() < threshold, "control: the seeds alone"
