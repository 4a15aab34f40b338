"""Calibration: honest callers are simulated through the detectors' own code, and hardly any of them is alarmed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest

from garrison.bundle.manifest import InputSpec, input_facts
from garrison.guard.defenses.watch import load_detector
from garrison.guard.detectors import DETECTORS
from garrison.guard.detectors.base import Detector, Seen
from garrison.guard.detectors.ood_rate import OodRate
from garrison.hardening.fits import FITTERS, Honest
from garrison.hardening.watching import (
    ALARMED,
    calibrate_watch,
    crossed,
    fitted,
    highest,
    nats,
    simulated_callers,
    sums,
    take,
    thresholds,
    why_unwatched,
)
from garrison.types import Array, DefenseSpec, FloatArray, ModelFacts, Task

CLASSES, WIDTH = 4, 8
NAMES = ("ood-rate", "ood-cover", "hardness", "coverage")


def pool(rng: np.random.Generator, rows: int, sure: float, spread: float = 1.0) -> Seen:
    probability = rng.beta(sure, 1, rows).astype(np.float32)
    return Seen(
        place=np.zeros(rows, dtype=np.intp),
        asked=np.arange(rows),
        projection=(spread * rng.normal(size=(rows, WIDTH))).astype(np.float32),
        confidence=probability,
        probability=probability,
        top=rng.integers(0, CLASSES, rows),
    )


@pytest.fixture(scope="module")
def honest() -> Honest:
    rng = np.random.default_rng(0)
    pools = {kind: pool(rng, 1_200, sure) for kind, sure in (("plain", 20.0), ("move", 8.0))}
    strange = {kind: pool(rng, 400, 0.5, 3.0) for kind in ("outliers", "uniform", "stepped")}
    return Honest(pools, strange, CLASSES, 0)


@pytest.fixture(scope="module")
def bare(honest: Honest) -> dict[str, Detector]:
    return fitted(honest, NAMES)


def test_hardly_any_honest_caller_is_alarmed_and_strange_ones_are(honest: Honest, bare: dict[str, Detector]) -> None:
    rng = np.random.default_rng(1)
    callers = simulated_callers(honest, 60, rng, rows=200)
    found = thresholds(bare, {name: highest(detector, callers) for name, detector in bare.items()})
    assert set(found.detectors) == set(NAMES)
    detectors = {name: load_detector(name, dict(given)) for name, given in found.detectors.items()}
    fresh = simulated_callers(honest, 60, np.random.default_rng(2), rows=200)
    over = np.any([highest(d, fresh) >= d.threshold for d in detectors.values()], axis=0)
    assert over.sum() == 0
    thief = take(honest.strange["outliers"], np.arange(100))
    rate = detectors["ood-rate"]
    assert np.flatnonzero(sums(rate, [thief])[0] >= rate.threshold)[0] < 40
    assert found.metrics["watch_callers"] == 60
    assert found.metrics["watch_alarmed"] == 0
    assert 0.04 < found.metrics["watch_alarmed_high"] < 0.06


def test_hardness_knows_who_takes_hard_rows_and_not_who_stays_with_one_class(
    honest: Honest, bare: dict[str, Detector]
) -> None:
    detector = bare["hardness"]
    plain = honest.plain
    hard = np.flatnonzero(plain.probability < np.quantile(plain.probability, 0.4))[:400]
    usual = np.flatnonzero(plain.top == 1)[:200]
    assert nats(detector, [take(plain, hard)]).mean() > 0.1
    assert nats(detector, [take(plain, usual)]).mean() < 0


def test_a_caller_is_heard_alike_alone_and_among_others(honest: Honest, bare: dict[str, Detector]) -> None:
    callers = simulated_callers(honest, 5, np.random.default_rng(3), rows=70)
    prada = FITTERS["bounded-prada"](honest)
    assert prada is not None
    for name, detector in {**bare, "bounded-prada": prada}.items():
        alone = np.concatenate([nats(detector, [caller]) for caller in callers])
        assert nats(detector, callers) == pytest.approx(alone, abs=1e-6), name


def test_a_threshold_is_above_every_honest_caller_and_never_tiny(honest: Honest, bare: dict[str, Detector]) -> None:
    callers = simulated_callers(honest, 30, np.random.default_rng(4), rows=100)
    assert bare["ood-rate"].threshold == math.inf
    peaks = highest(bare["ood-rate"], callers)
    assert peaks == pytest.approx(sums(bare["ood-rate"], callers).max(axis=1))
    assert threshold_of(bare["ood-rate"], peaks, ALARMED) >= max(8.0, float(peaks.max()))
    silent = OodRate(threshold=math.inf, edges=(0.5,), nats=(0.0, 0.0))
    assert threshold_of(silent, highest(silent, callers), 0.5) == 8.0


def threshold_of(detector: Detector, peaks: FloatArray, alarmed: float) -> float:
    return float(str(thresholds({"one": detector}, {"one": peaks}, alarmed).detectors["one"]["threshold"]))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("share", [ALARMED, 1e-6])
def test_as_many_new_callers_are_alarmed_as_may_be(bare: dict[str, Detector], scale: float, share: float) -> None:
    peaks = scale * np.random.default_rng(8).exponential(size=4_000)
    alarmed = math.exp(-threshold_of(bare["ood-rate"], peaks, share) / scale)
    assert alarmed < 4 * share
    assert alarmed > share / 4, "control: a threshold above all bounds would do for the first"


def test_sums_are_not_believed_to_fall_off_faster_than_nats_promise(bare: dict[str, Detector]) -> None:
    rng = np.random.default_rng(9)
    few = 4 + 0.1 * rng.exponential(size=4_000)
    assert 4 + math.log(0.02 / ALARMED) < threshold_of(bare["ood-rate"], few, ALARMED) < 5 + math.log(0.02 / ALARMED)


class KnowsItsRows(Detector, frozen=True):
    """A nat against each row that it was not fitted on, and one for each that it was."""

    name: ClassVar[str] = "knows-its-rows"

    rows: frozenset[bytes]

    def weigh(self, seen: Seen, columns: Mapping[str, Array], shared: Mapping[str, Array]) -> FloatArray:
        return np.array([-1.0 if row.tobytes() in self.rows else 1.0 for row in seen.projection])


def test_honest_callers_are_heard_by_detectors_that_do_not_know_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(honest: Honest) -> Detector:
        return KnowsItsRows(threshold=math.inf, rows=frozenset(row.tobytes() for row in honest.plain.projection))

    monkeypatch.setitem(DETECTORS, "knows-its-rows", f"{__name__}:KnowsItsRows")
    monkeypatch.setitem(FITTERS, "knows-its-rows", fit)
    rng = np.random.default_rng(10)
    few = Honest({"plain": pool(rng, 1_000, 20.0)}, {}, CLASSES, 0)
    peaks = crossed(few, [few], ("knows-its-rows",), 16, 0)["knows-its-rows"]
    assert peaks.tolist() == [500.0] * 16
    assert highest(fit(few), simulated_callers(few, 16, rng)).max() == 0, "control: rows that it was fitted on"


def test_a_detector_for_which_half_of_the_rows_are_too_few_is_left_out(
    honest: Honest, bare: dict[str, Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = len(honest.plain.top)
    fit = FITTERS["ood-rate"]
    monkeypatch.setitem(FITTERS, "ood-rate", lambda given: fit(given) if len(given.plain.top) == most else None)
    peaks = crossed(honest, [honest], ("ood-rate", "hardness"), 16, 0)
    assert set(peaks) == {"hardness"}
    assert set(thresholds(bare, peaks).detectors) == {"hardness"}


def test_callers_ask_every_row_once_and_some_prefer_classes(honest: Honest) -> None:
    callers = simulated_callers(honest, 8, np.random.default_rng(5), rows=300)
    assert all(len(np.unique(caller.projection, axis=0)) == 300 for caller in callers)
    shares = [np.bincount(caller.top, minlength=CLASSES).max() / 300 for caller in callers]
    assert max(shares) > 0.3 > min(shares)


def _facts(task: Task = Task.CLASSIFICATION) -> ModelFacts:
    spec = InputSpec(name="x", datatype="FP32", shape=(6,), minimum=-9.0, maximum=9.0)
    labels = tuple("abcd") if task is Task.CLASSIFICATION else ()
    return ModelFacts(task, (input_facts(spec),), labels, 4, np.dtype(np.float32), False, False)


def test_rows_that_are_all_equal_allow_no_distances_and_are_no_error(honest: Honest) -> None:
    rng = np.random.default_rng(11)
    equal = pool(rng, 1_200, 20.0)
    equal.projection[:] = equal.projection[0]
    few = Honest({"plain": equal, "move": equal}, honest.strange, CLASSES, 0)
    names = ("near-duplicates", "hardness")
    assert set(fitted(honest, names)) == set(names), "control"
    assert set(fitted(few, names)) == {"hardness"}


def test_the_whole_way_on_a_table() -> None:
    rng = np.random.default_rng(6)
    centres = 3 * rng.normal(size=(4, 6))
    x = (centres[rng.integers(0, 4, 1_000)] + rng.normal(size=(1_000, 6))).astype(np.float32)

    def ask(inputs: dict[str, Array]) -> dict[str, Array]:
        logits = -((inputs["x"][:, None, :] - centres) ** 2).sum(axis=2) / 2
        odds: FloatArray = np.exp(logits - logits.max(axis=1, keepdims=True))
        return {"probabilities": (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)}

    looks = (DefenseSpec(name="projection", parameters={"width": 8}), DefenseSpec(name="max-probability"))
    found = calibrate_watch(ask, _facts(), looks, {"x": x}, names=("ood-rate", "hardness"), callers=40)
    assert set(found.detectors) == {"ood-rate", "hardness"}
    assert found.metrics["watch_alarmed"] == 0
    assert found.notes == ()
    whole = {"x": np.round(x).astype(np.int64)}  # of which no strange ones are simulated
    found = calibrate_watch(ask, _facts(), looks, whole, names=("ood-rate", "hardness"), callers=40)
    assert set(found.detectors) == {"hardness"}
    assert found.notes == ("these detectors are left out, the calibration rows do not allow them: ood-rate",)
    few = {"x": np.repeat(x[:10], 100, axis=0)}
    found = calibrate_watch(ask, _facts(), looks, few, names=("hardness",), callers=40)
    (note,) = found.notes
    assert "late, or never" in note
    assert f"hardness (from {found.detectors['hardness']['threshold']:g} nats on)" in note


def test_why_there_are_no_detectors() -> None:
    assert why_unwatched(_facts(), 5_000) == ""
    assert "calibration rows" in why_unwatched(_facts(), 50)
    assert "probabilities" in why_unwatched(_facts(Task.REGRESSION), 5_000)
