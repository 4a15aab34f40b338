from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.guard.conftest import CLASSES, KEY, make_batch, make_facts, make_inputs, make_scores

from garrison.guard.base import Code, Noise, View
from garrison.guard.defenses.adaptive_misinformation import (
    AdaptiveMisinformation,
    alpha,
    between,
    chosen_class,
    chosen_classes,
    mix,
    shares,
)
from garrison.guard.keyed import KeyedTable
from garrison.types import Array, FloatArray, RawScores


def gumbel(rows: int, seed: int = 0) -> FloatArray:
    """Gumbel noise for so many different inputs."""
    defense = AdaptiveMisinformation(tau=0.5)
    table = KeyedTable(KEY, defense.name, defense.noise_drawer(make_facts()))
    return gumbel_of(table({"x": make_inputs(rows, seed)}, slice(None)))


def gumbel_of(noise: list[Noise]) -> FloatArray:
    return np.array([one.table[one.picks[0], :CLASSES] for one in noise], np.float64)


def chosen_by_row(f: FloatArray, wrong: FloatArray, noise: FloatArray) -> npt.NDArray[np.intp]:
    return np.array([chosen_class(*row) for row in zip(f.tolist(), wrong.tolist(), noise.tolist(), strict=True)])


def judge(
    rows: int,
    tau: float,
    key: bytes = KEY,
    seed: int = 0,
    tail_scale: float = 3.0,
    kind: type[np.floating[Any]] = np.float32,
) -> tuple[Array, Array, Array]:
    defense = AdaptiveMisinformation(tau=tau, tail_scale=tail_scale)
    facts, raw, x = replace(make_facts(), value_dtype=np.dtype(kind)), make_scores(rows, seed), make_inputs(rows, seed)
    raw = RawScores(raw.values.astype(kind), raw.logits, raw.misinformation)
    table = KeyedTable(key, defense.name, defense.noise_drawer(facts))
    signals = {"confidence": raw.values.max(axis=1)}
    verdict = defense(View(make_batch(x), facts, raw, raw.values, None, signals, lambda index: table({"x": x}, index)))
    values = (
        raw.values
        if verdict.values is None
        else np.where((verdict.codes == Code.REPLACE)[:, None], verdict.values, raw.values)
    )
    return raw.values, values, verdict.codes


def test_alpha_is_equation_4() -> None:
    got = alpha(np, np.array([0.2, 0.5, 0.8]), 0.5, 10.0)
    np.testing.assert_allclose(got, [1 / (1 + np.exp(-3.0)), 0.5, 1 / (1 + np.exp(3.0))])
    assert alpha(np, np.array([0.0, 1.0]), 0.5, 1e9).tolist() == pytest.approx([1.0, 0.0])


def test_confident_inputs_are_answered_with_f() -> None:
    f, answer, codes = judge(500, tau=0.5)
    sure = f.max(axis=1) > 0.6
    assert sure.any()
    np.testing.assert_array_equal(answer[sure], f[sure])
    assert not codes[sure].any()


def test_misinformation_is_a_probability_vector_and_names_f_s_choice_as_often_as_chance() -> None:
    f, answer, codes = judge(2000, tau=2.0)
    assert codes.all()
    np.testing.assert_allclose(answer.sum(axis=1), 1.0, atol=1e-5)
    assert (answer >= 0).all()
    assert np.mean(answer.argmax(axis=1) == f.argmax(axis=1)) == pytest.approx(1 / CLASSES, abs=0.03)


def test_no_rank_of_the_answer_gives_the_truth_away() -> None:
    """The published f' puts the least mass on the true class. Here f's choice is spread evenly over the other ranks."""
    f, answer, _ = judge(9000, tau=2.0)
    rank = np.argsort(np.argsort(-answer, axis=1), axis=1)[np.arange(len(f)), f.argmax(axis=1)]
    share = np.bincount(rank, minlength=CLASSES) / len(f)
    np.testing.assert_allclose(share, 1 / CLASSES, atol=0.025)  # a table of 4,096 rows: 5 standard deviations


def test_the_published_form_does_give_it_away() -> None:
    """Control: f' as published, without the keyed tail."""
    raw = make_scores(2000)
    ideal_wrong = np.where(raw.values >= raw.values.max(axis=1, keepdims=True), 0.0, 1.0 / (CLASSES - 1))
    assert (ideal_wrong.argmin(axis=1) == raw.values.argmax(axis=1)).all()


def test_misinformation_is_diverse() -> None:
    _, answer, _ = judge(4000, tau=2.0)
    share = np.bincount(answer.argmax(axis=1), minlength=CLASSES) / 4000
    entropy = -(share * np.log(share)).sum() / np.log(CLASSES)
    assert entropy > 0.95


def test_it_follows_f_prime() -> None:
    """A class to which f' gives no weight is (nearly) never chosen."""
    f = np.full((4096, CLASSES), 0.1, np.float32)
    f[:, 0] = 0.2
    wrong = np.zeros_like(f)
    wrong[:, 5] = -30.0
    chosen = chosen_by_row(f, wrong, gumbel(4096))
    assert set(chosen) == set(range(CLASSES)) - {5}


def test_ties_of_f_are_no_crash() -> None:
    even = np.full((64, CLASSES), 1 / CLASSES, np.float32)
    assert len(set(chosen_by_row(even, np.zeros_like(even), gumbel(64)))) > 1


def recurring(values: Array) -> float:
    """Share of the values that come more than once."""
    _, where, count = np.unique(values, return_inverse=True, return_counts=True)
    return float((count[where] > 1).mean())


def test_no_number_of_it_comes_back() -> None:
    """Honest answers hardly ever share a margin, or a distance between two classes: misinformed ones must not either."""
    _, answer, _ = judge(5000, tau=2.0)
    logs = np.sort(np.log(answer.astype(np.float64)), axis=1)
    for rank in range(CLASSES - 1):
        assert recurring(np.round(logs[:, rank + 1] - logs[:, rank], 6)) < 0.05
    fixed = np.random.default_rng(0).choice([0.5, 1.0, 4.0], 5000)  # the control: margins from a list
    assert recurring(fixed) == 1.0


def test_near_duplicates_do_not_show_the_truth_by_its_absence() -> None:
    """The class that came least, or most, among 160 near-duplicates is f's choice no more often than chance."""
    defense, inputs, copies = AdaptiveMisinformation(tau=2.0), 100, 160
    x = np.repeat(make_inputs(inputs), copies, axis=0)
    x[:, 0] += np.random.default_rng(3).random(len(x), dtype=np.float32) * 1e-3
    f, wrong = (
        np.repeat(v, copies, axis=0) for v in (make_scores(inputs).values, np.full((inputs, CLASSES), -np.log(CLASSES)))
    )
    table = KeyedTable(KEY, defense.name, defense.noise_drawer(make_facts()))
    drawn = gumbel_of(table({"x": x}, slice(None)))

    def found(chosen: Array) -> tuple[float, float]:
        counts = np.array([np.bincount(c, minlength=CLASSES) for c in chosen.reshape(inputs, copies)])
        truth = f[::copies].argmax(axis=1)
        return float(np.mean(counts.argmin(axis=1) == truth)), float(np.mean(counts.argmax(axis=1) == truth))

    least, most = found(chosen_classes(f, wrong, drawn))
    assert max(least, most) < 1 / CLASSES + 0.15
    excluded = np.where(np.arange(CLASSES) == f.argmax(axis=1, keepdims=True), -np.inf, wrong + drawn)
    assert found(excluded.argmax(axis=1))[0] > 0.95  # the control: as if f's choice were never named


@pytest.mark.parametrize("margins", [(), (1.0,), (2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, np.inf)])
def test_margins_that_would_mark_an_answer_are_refused(margins: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="margins"):
        AdaptiveMisinformation(tau=0.5, margins=margins)


def test_the_key_decides() -> None:
    _, first, _ = judge(500, 2.0)
    _, again, _ = judge(500, 2.0)
    _, other, _ = judge(500, 2.0, key=bytes(32))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first.argmax(axis=1) == other.argmax(axis=1)) < 0.25


def test_mix_is_equation_5() -> None:
    assert [mix(1.0, 0.0, 0.25), mix(0.0, 1.0, 0.25)] == [0.75, 0.25]
    assert [mix(0.6, 0.0, 1.0), mix(0.4, 1.0, 1.0)] == [0.0, 1.0]


@pytest.mark.parametrize("margin", [0.3, 5.0, 200.0])
@pytest.mark.parametrize("largest", [1e-110, 1.0, 1e110])
def test_shares_sum_to_one_and_have_the_margin_they_were_given(margin: float, largest: float) -> None:
    weights = [0.25 * largest, largest, 0.0]
    factor, top = shares(sum(weights), max(weights), math.exp(-margin))
    assert factor * sum(weights) + top == pytest.approx(1.0)
    assert math.log(top) - math.log(factor * largest) == pytest.approx(margin)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_rounding_of_sums_does_not_tell(kind: type[np.floating[Any]]) -> None:
    """Sums of softmax in the model's precision miss 1 by several times what rounding each probability alone does."""
    _, answer, _ = judge(5000, tau=2.0, kind=kind)
    logits = np.log(answer.astype(kind))
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    honest = e / np.add.accumulate(e, axis=1)[:, -1:]
    assert honest.dtype == answer.dtype == kind

    def missed(p: Array) -> float:
        return float(np.median([abs(math.fsum([*row, -1.0])) for row in p.tolist()]))

    assert 0.6 < missed(answer) / missed(honest) < 1.6
    if kind is np.float32:  # the control: what double precision would give
        double = answer.astype(np.float64)
        assert missed((double / double.sum(axis=1, keepdims=True)).astype(kind)) < 0.6 * missed(honest)


@pytest.mark.parametrize("tail_scale", [0.01, 3.0, 1e6])
def test_any_tail_is_answered_with_probabilities(tail_scale: float) -> None:
    _, answer, _ = judge(200, tau=2.0, tail_scale=tail_scale)
    np.testing.assert_allclose(answer.sum(axis=1), 1.0, rtol=1e-5)
    assert (answer >= 0).all()


@pytest.mark.parametrize("constant_time", [False, True])
@pytest.mark.parametrize("nu", [5.0, 1000.0])
def test_many_rows_get_the_same_answers_as_one_to_the_last_bit(nu: float, constant_time: bool) -> None:
    """Else the size of a batch would show which answers are misinformation."""
    defense = AdaptiveMisinformation(tau=0.5, nu=nu, constant_time=constant_time)
    rows, rng = 600, np.random.default_rng(1)
    table = KeyedTable(KEY, defense.name, defense.noise_drawer(make_facts()))
    f, confidence = rng.dirichlet(np.ones(CLASSES), rows), rng.random(rows)
    wrong = np.log(rng.dirichlet(np.ones(CLASSES), rows))
    f[0], wrong[1, 3], f[2], confidence[3] = np.nan, np.nan, 1 / CLASSES, np.nan
    f[4, 0], f[5, 1], wrong[6] = np.nan, np.nan, -np.inf
    noise = table({"x": make_inputs(rows)}, slice(None))
    many = defense.redraw_rows(f, wrong, {"confidence": confidence}, noise)
    one = [
        defense.redraw(f[i].tolist(), wrong[i].tolist(), {"confidence": confidence[i].item()}, noise[i])
        for i in range(rows)
    ]
    np.testing.assert_array_equal(many, np.array(one))
    assert np.isfinite(many[7:]).all()


@pytest.mark.parametrize("classes", [CLASSES, 1000])
def test_answers_of_many_classes_are_the_same_alone_and_in_a_batch_and_never_made_number_by_number(
    monkeypatch: pytest.MonkeyPatch, classes: int
) -> None:
    """In plain Python a row of 1,000 classes takes four times as long as in numpy, by which it could be told from an honest one."""
    defense, alone = AdaptiveMisinformation(tau=0.5), list[int]()
    by_number = AdaptiveMisinformation.redraw

    def counted(
        self: AdaptiveMisinformation, answer: list[float], wrong: list[float], signals: dict[str, float], noise: Noise
    ) -> list[float]:
        alone.append(len(answer))
        return by_number(self, answer, wrong, signals, noise)

    monkeypatch.setattr(AdaptiveMisinformation, "redraw", counted)
    rows, rng = 12, np.random.default_rng(2)
    table = KeyedTable(KEY, defense.name, defense.noise_drawer(make_facts(outputs=classes)))
    f = rng.dirichlet(np.ones(classes), rows).astype(np.float32)
    wrong = np.log(rng.dirichlet(np.ones(classes), rows)).astype(np.float32)
    confidence, noise = f.max(axis=1), table({"x": make_inputs(rows)}, slice(None))
    many = defense.redrawn(f, wrong, {"confidence": confidence}, noise)
    for i in range(rows):
        one = defense.redrawn(f[i : i + 1], wrong[i : i + 1], {"confidence": confidence[i : i + 1]}, noise[i : i + 1])
        np.testing.assert_array_equal(one[0], many[i])
    assert alone == ([CLASSES] * rows if classes == CLASSES else []), "control: ten classes are few"


def test_margins_are_drawn_between_the_quantiles() -> None:
    quantiles = (1.0, 2.0, 4.0)
    shares = np.linspace(0.0, 1.0, 41)  # both ends too
    found = [between(share, quantiles) for share in shares.tolist()]
    np.testing.assert_allclose(found, np.interp(shares, [0.0, 0.5, 1.0], quantiles))


def test_near_tau_answers_are_mixed_and_beyond_they_are_not() -> None:
    defense = AdaptiveMisinformation(tau=0.5, nu=20.0)
    table = KeyedTable(KEY, defense.name, defense.noise_drawer(make_facts()))
    one = table.noise({"x": make_inputs(1)}, 0)
    f = [0.5, *[0.5 / (CLASSES - 1)] * (CLASSES - 1)]
    wrong = [-math.log(CLASSES)] * CLASSES

    def answer(confidence: float) -> Array:
        return np.array(defense.redraw(f, wrong, {"confidence": confidence}, one))

    m, half = answer(-9.0), answer(0.5)
    np.testing.assert_allclose(half, (np.array(f) + m) / 2)
    np.testing.assert_array_equal(answer(math.nan), m)
    np.testing.assert_allclose(answer(0.5 - defense._band * 0.99), m, atol=1e-4)


def test_constant_time_gives_the_same_answers() -> None:
    (slow, all_rows), (fast, some_rows) = (
        answer_and_rows(constant_time=constant_time) for constant_time in (True, False)
    )
    np.testing.assert_array_equal(slow, fast)
    assert some_rows < all_rows == 50


def answer_and_rows(*, constant_time: bool) -> tuple[Array, int]:
    """The answer, and for how many rows f' was computed."""
    facts, raw, x = make_facts(), make_scores(50), make_inputs(50)
    defense = AdaptiveMisinformation(tau=0.6, constant_time=constant_time)
    table = KeyedTable(KEY, defense.name, defense.noise_drawer(facts))
    asked: list[int] = []

    def wrong(index: npt.NDArray[np.intp]) -> FloatArray:
        asked.append(len(index))
        assert raw.misinformation is not None
        return raw.misinformation(index)

    signals = {"confidence": raw.values.max(axis=1)}
    counted = RawScores(raw.values, raw.logits, wrong)
    verdict = defense(
        View(make_batch(x), facts, counted, raw.values, None, signals, lambda index: table({"x": x}, index))
    )
    assert verdict.values is not None
    return np.where((verdict.codes == Code.REPLACE)[:, None], verdict.values, raw.values), asked[0]
