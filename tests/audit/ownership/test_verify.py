"""A claim from a bundle: marked candidates, suspects that learnt them and suspects that did not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.models import BOUNDS, CLASSES, PIXELS, RELEASE, SCORE, Sealed, images, misinform, seal_mlp

from garrison.attacks.oracle import Answers, Oracle, OracleFacts
from garrison.audit.ownership.owner import Candidates, mark_candidates
from garrison.audit.ownership.verify import verify_suspects
from garrison.audit.targets import guarded, unguarded
from garrison.errors import ConfigError, InputError, KeyFileError, PreflightError, RefusedError
from garrison.types import Array, DefenseSpec

CHAIN = (BOUNDS, DefenseSpec(name="budget", parameters={"rows": 10}), SCORE, misinform(0.6), RELEASE)
MARK = DefenseSpec(name="watermark", parameters={"share": 0.05})
X = images(1000)


@dataclass
class Memory:
    """A suspect that remembers answers, and says anything to what it was not told."""

    told: dict[bytes, int]
    classes: int = CLASSES
    shape: tuple[int, ...] = PIXELS
    refuses: bool = False
    asked: list[Array] = field(default_factory=list)

    @property
    def facts(self) -> OracleFacts:
        return OracleFacts(self.shape, np.dtype(np.float32), np.zeros(1), np.ones(1), self.classes, soft=False)

    def query(self, x: Array) -> Answers:
        self.asked.append(x)
        if self.refuses:
            raise RefusedError
        labels = np.array([self.told.get(row.tobytes(), i % CLASSES) for i, row in enumerate(x)])
        nobody = np.zeros(len(x), dtype=np.bool_)
        return Answers(labels, None, nobody, nobody)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_mlp(tmp_path_factory.mktemp("marked") / "bundle", (*CHAIN, MARK))


@pytest.fixture(scope="module")
def candidates(sealed: Sealed) -> Candidates:
    return mark_candidates(sealed.verified(), sealed.key, X)


@pytest.fixture(scope="module")
def answers(sealed: Sealed) -> Array:
    return guarded(sealed.verified(), sealed.key).query(X).labels


def thief(answers: Array, rows: int = 1000) -> Memory:
    return Memory({x.tobytes(): int(label) for x, label in zip(X[:rows], answers[:rows], strict=True)})


def test_the_owner_knows_what_is_served_and_what_is_marked(candidates: Candidates, answers: Array) -> None:
    moved = (candidates.served + candidates.numbers) % CLASSES
    np.testing.assert_array_equal(moved, answers[candidates.rows])
    assert 25 < candidates.marked < 80
    assert candidates.given == 1000


def test_who_learnt_the_answers_is_claimed_and_nobody_else(
    sealed: Sealed, candidates: Candidates, answers: Array, tmp_path: Path
) -> None:
    unmarked = seal_mlp(tmp_path / "plain", CHAIN, owner=sealed.owner)
    suspects: dict[str, Oracle] = {
        "thief": thief(answers),
        "thief of a part": thief(answers, 500),
        "served without marks": thief(guarded(unmarked.verified(), sealed.key).query(X).labels),
        "the same model": unguarded(unmarked.verified()),
        "another": unguarded(seal_mlp(tmp_path / "other", CHAIN, seed=5).verified()),
        "dice": Memory({}),
    }
    claims = {claim.suspect: claim for claim in verify_suspects(suspects, candidates)}
    assert [name for name, claim in claims.items() if claim.holds] == ["thief", "thief of a part"]
    assert claims["thief"].agreement.named == candidates.marked
    assert claims["thief"].corrected == pytest.approx(6 * claims["thief"].agreement.p)
    assert claims["thief"].queries == len(candidates)


def test_another_key_claims_nothing(sealed: Sealed, answers: Array, tmp_path: Path) -> None:
    other = seal_mlp(tmp_path / "bundle", (*CHAIN, MARK))
    (claim,) = verify_suspects({"thief": thief(answers)}, mark_candidates(other.verified(), other.key, X))
    assert not claim.holds
    with pytest.raises(KeyFileError, match="not the misinformation key"):
        mark_candidates(other.verified(), sealed.key, X)


def test_no_more_is_asked_than_allowed_and_marked_ones_first(candidates: Candidates, answers: Array) -> None:
    suspect = thief(answers)
    (claim,) = verify_suspects({"thief": suspect}, candidates, most=150)
    assert claim.queries == sum(map(len, suspect.asked)) == 150
    assert claim.agreement.marked == candidates.marked
    assert claim.holds
    assert len(candidates.draw(10_000, 0)) == len(candidates)
    assert candidates.draw(20, 0).marked == 10


def test_near_duplicates_count_once(sealed: Sealed) -> None:
    twice = mark_candidates(sealed.verified(), sealed.key, np.concatenate([X, X]))
    assert len(twice) <= 1000
    assert twice.rows.max() < 1000


def test_rows_of_another_shape_and_the_same_size_are_taken(sealed: Sealed, candidates: Candidates) -> None:
    flat = mark_candidates(sealed.verified(), sealed.key, X.reshape(1000, -1).astype(np.float64))
    np.testing.assert_array_equal(flat.numbers, candidates.numbers)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (X[:, :, :4], "takes rows of shape"),
        (X * 3, "outside the range"),
        (X[:20], "at least 5 are needed"),
        (X[:0], "takes rows of shape"),
    ],
)
def test_candidates_that_do_not_do_are_told(sealed: Sealed, x: Array, match: str) -> None:
    with pytest.raises(InputError, match=match):
        mark_candidates(sealed.verified(), sealed.key, x)


def test_a_bundle_without_a_watermark_claims_nothing(tmp_path: Path) -> None:
    plain = seal_mlp(tmp_path / "bundle", CHAIN)
    with pytest.raises(ConfigError, match="without a watermark"):
        mark_candidates(plain.verified(), plain.key, X)


def test_suspects_that_cannot_be_tested_are_told(candidates: Candidates) -> None:
    with pytest.raises(PreflightError, match="a model of 5 classes"):
        verify_suspects({"other": Memory({}, classes=7)}, candidates)
    with pytest.raises(PreflightError, match="answered 0 of"):
        verify_suspects({"silent": Memory({}, refuses=True)}, candidates)
    with pytest.raises(InputError, match="takes rows"):
        verify_suspects({"small": Memory({}, shape=(3,))}, candidates)
    with pytest.raises(ConfigError, match="10 rows"):
        verify_suspects({"any": Memory({})}, candidates, most=4)
