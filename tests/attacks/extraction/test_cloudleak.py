"""CloudLeak on a real small service: it steals, keeps to its budget, shows its pictures, and bears refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from tests.attacks.adversarial.nets import SHAPE, DigitService, digits
from tests.attacks.services import Linear
from tests.attacks.services import facts as table_facts
from tests.audit.worlds import build, served
from tests.models import images

from garrison.attacks.base import Trial
from garrison.attacks.exam import Exam
from garrison.attacks.extraction import malicious
from garrison.attacks.extraction.cloudleak import CloudLeak
from garrison.attacks.extraction.finetune import Kept
from garrison.attacks.extraction.malicious import Examples, Sources, moved_copy
from garrison.attacks.extraction.pixels import Pixels, picture_shape
from garrison.attacks.knowledge import Knowledge, Labelled
from garrison.attacks.oracle import MeteredOracle, OracleFacts
from garrison.audit.targets import HttpTarget, guarded
from garrison.client import Client

SMALL = CloudLeak(
    public="", reused=0, first=40, round_size=40, candidates=1.5, steps=3, epochs=2, fewest_steps=40, batch=10, layer=2
)


def exam(service: DigitService) -> Exam:
    x, y = digits()
    rows = as_rows(x[1600:], service)
    return Exam(rows, y[1600:], service.probabilities(rows))


def as_rows(x: np.ndarray, service: DigitService) -> np.ndarray:
    return np.round(x * 255).astype(np.uint8) if service.dtype == "uint8" else x


def steal(attack: CloudLeak, service: DigitService, budget: int = 100, seed: int = 0, pool: int = 300) -> Trial:
    rows = as_rows(digits()[0][900 : 900 + pool], service)
    return attack.carry_out(service, Knowledge(rows), exam(service), budget=budget, seed=seed)


def with_(**changes: object) -> CloudLeak:
    return msgspec.structs.replace(SMALL, **changes)


@pytest.mark.parametrize(
    "examples",
    [
        "featurefool",
        "random",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cw", "pgd", "feature-adversary")),
    ],
)
def test_every_kind_of_example_steals_within_the_budget(examples: Examples) -> None:
    service = DigitService()
    trial = steal(with_(examples=examples, epsilon=0.1), service)
    assert trial.queries == service.asked == 100
    assert trial.scores["fidelity"].mean() > 0.45  # a constant answer gets about 0.12
    shown = [picture.names for picture in trial.pictures]
    assert shown == ([] if examples == "random" else [("source", "guide", "perturbation", "result")] * 4)
    for picture in trial.pictures:
        source, _, _, result = picture.images
        assert all(image.shape == SHAPE and image.min() >= 0 and image.max() <= 1 for image in picture.images)
        change = float(np.linalg.norm(result - source))
        assert f"{change:.2f}" in picture.caption
        assert change < 0.5 * float(np.linalg.norm(source))


def test_more_questions_steal_more() -> None:
    few, many = (steal(with_(examples="random", sampling="random"), DigitService(), b, pool=600) for b in (30, 300))
    assert many.scores["fidelity"].mean() > few.scores["fidelity"].mean() + 0.1


def test_what_is_reused_is_told_and_stays() -> None:
    attack = with_(reused=3)
    trial = steal(attack, DigitService(), budget=60)
    assert "reused=3" in trial.attack
    told = trial.told
    assert (told["layers reused"], told["layers retrained"], told["layers new"]) == (3, 1, 1)
    assert told["parameters retrained"] == 64 * 9 * 128 + 128
    assert told["parameters new"] == 128 * 10 + 10
    assert steal(with_(reused=0), DigitService(), budget=60).told["parameters reused"] == 0


def test_a_smaller_budget_asks_the_first_rows_of_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recording(DigitService):
        rows: list[np.ndarray] = []  # noqa: RUF012

        def query(self, x):  # type: ignore[no-untyped-def]
            self.rows.append(x)
            return DigitService.query(self, x)

    asked = []
    for budget in (70, 110):
        Recording.rows = []
        monkeypatch.setattr(malicious, "MADE", Kept(0))  # nothing is remembered between the two
        steal(with_(), Recording(), budget=budget)
        asked.append(np.concatenate(Recording.rows))
    assert np.array_equal(asked[0], asked[1][:70])


def test_refusals_and_uncertain_labels_are_borne() -> None:
    dark = DigitService(refuses_dark=0.3, soft=False)
    trial = steal(with_(), dark, budget=150)
    assert trial.queries <= 150
    assert trial.unanswered > 0
    assert trial.scores["fidelity"].mean() > 0.3
    nothing = steal(with_(), DigitService(refuses_dark=1.0), budget=90)
    assert nothing.queries == 90
    assert nothing.told["rows learnt from"] == 0
    assert nothing.scores["total_variation"].mean() > 0.5
    assert nothing.pictures == ()


def test_whole_number_pictures_are_asked_as_whole_numbers() -> None:
    service = DigitService(dtype="uint8")
    assert steal(with_(), service, budget=70).scores["fidelity"].mean() > 0.3


def test_labelled_pictures_cost_nothing() -> None:
    x, y = digits()
    service = DigitService()
    known = Knowledge(x[900:1000], labelled=Labelled(x[:300], y[:300]))
    trial = with_(first=1).carry_out(service, known, exam(service), budget=20, seed=0)
    assert trial.queries == 20
    assert trial.told["rows learnt from"] == 320
    assert trial.scores["fidelity"].mean() > 0.6


def test_it_says_where_it_applies() -> None:
    facts = DigitService().facts
    assert SMALL.obstacle(facts) == ""
    assert "no pictures" in SMALL.obstacle(Linear().facts)
    assert "no pictures" in SMALL.obstacle(table_facts((5, 9, 9)))
    assert "real values" in SMALL.obstacle(dataclasses.replace(facts, regression=True))
    assert picture_shape((224, 224, 3)) == picture_shape((3, 224, 224)) == (3, 224, 224)
    assert picture_shape((9, 8)) == (1, 9, 8)
    assert picture_shape((2048,)) is picture_shape((1, 4, 4)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidates": 0.5},
        {"epsilon": 0.0},
        {"reused": -2},
        {"layer": 99},
        {"margin": -2.0},
        {"trade_off": 0.0},
        {"steps": 0},
        {"learning_rate": float("nan")},
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        CloudLeak(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "last"), [((1, 8, 9), False), ((8, 9, 3), True), ((8, 9), False)])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_rows_and_pictures_are_made_of_each_other(shape: tuple[int, ...], dtype: str, *, last: bool) -> None:
    low, high = np.full(shape, -104.0), np.full(shape, 151.0)
    if dtype == "uint8":
        low, high = np.zeros(shape), np.full(shape, 255.0)
    facts = OracleFacts(shape, np.dtype(dtype), low, high, 2, soft=True)
    rng = np.random.default_rng(0)
    rows = (low + rng.random((5, *shape)) * (high - low)).astype(dtype)
    pixels = Pixels.of(facts, rows)
    pictures = pixels.pictures(rows)
    assert pictures.shape[1:] == picture_shape(shape)
    assert pixels.last is last
    back = pixels.rows(pictures)
    assert back.dtype == rows.dtype
    np.testing.assert_allclose(back.astype(float), rows.astype(float), atol=1e-4)
    edge = pixels.rows(np.ones_like(pictures))
    assert (edge <= high).all()


def test_without_a_stated_range_the_thiefs_rows_give_one() -> None:
    shape = (1, 8, 8)
    facts = OracleFacts(shape, np.dtype(np.float32), np.full(shape, -np.inf), np.full(shape, np.inf), 2, soft=True)
    rows = np.linspace(-3, 5, 64, dtype=np.float32).reshape(1, *shape)
    pictures = Pixels.of(facts, rows).pictures(rows)
    assert pictures.min() == 0
    assert pictures.max() == 1


def test_each_source_is_used_once_before_one_is_used_again() -> None:
    pictures = digits()[0][:7]
    drawn = Sources(pictures, np.random.default_rng(0)).draw(12)
    assert sorted(map(bytes, drawn[:7])) == sorted(map(bytes, pictures))
    split = Sources(pictures, np.random.default_rng(0))
    assert np.array_equal(np.concatenate([split.draw(5), split.draw(7)]), drawn)
    # The second time they are copies, moved or mirrored: the same values, mostly elsewhere.
    assert any(bytes(one) not in set(map(bytes, pictures)) for one in drawn[7:])
    assert moved_copy(np.random.default_rng(1), pictures[0]).shape == pictures[0].shape


def test_a_clone_answers_a_row_alone_as_among_others() -> None:
    service, x = DigitService(), digits()[0]
    clone = (
        with_(fewest_steps=5, epochs=1)
        .run(MeteredOracle(service, 40), Knowledge(x[900:1000]), np.random.default_rng(0))
        .clone
    )
    assert np.allclose(clone(x[:200])[7:8], clone(x[7:8]), atol=1e-6)
    assert clone(x[:0]).shape == (0, 10)


def test_no_step_of_an_example_touches_the_callers_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    steal(with_(examples="pgd"), DigitService(), budget=50)
    assert torch.equal(torch.rand(2), expected)


def test_over_http_it_gets_what_it_gets_in_process(tmp_path: Path) -> None:
    world = build(tmp_path)
    attack, known, x = with_(fewest_steps=5, epochs=1), Knowledge(images(80)), images(50, seed=9)
    local = guarded(world.opened(world.bundle), world.key)
    near = attack.carry_out(local, known, Exam(x, None, local.query(x).probabilities), budget=90, seed=0)
    with served(world, tmp_path / "state") as url, Client(url) as client:
        remote = HttpTarget(client, url)
        far = attack.carry_out(remote, known, Exam(x, None, remote.query(x).probabilities), budget=90, seed=0)
    assert near.queries == far.queries == 90
    assert len(far.pictures) == 4
    assert near.scores["total_variation"].mean() == pytest.approx(far.scores["total_variation"].mean(), abs=0.02)
