"""What the watermark is worth: a clone is claimed; models that never saw the marks, another key, and solved equations are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from tests.attacks.extraction.sealed import fit

from garrison.attacks.exam import Exam
from garrison.attacks.extraction.clones import train_clone
from garrison.attacks.extraction.equation_solving import EquationSolving
from garrison.attacks.extraction.knockoff import Knockoff, one_hot
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle
from garrison.audit.ownership.owner import Candidates, mark_candidates
from garrison.audit.ownership.statistics import Agreement, agreement, holm
from garrison.audit.targets import ServiceTarget, guarded, unguarded
from garrison.bundle.reader import verify
from garrison.bundle.secret import read_secret
from garrison.crypto.owner import OwnerKey
from garrison.guard.defenses.watermark import Watermark
from garrison.sealing.formats.sklearn import convert
from garrison.sealing.inputs import rows_from_arrays
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_source
from garrison.types import FloatArray

pytestmark = pytest.mark.slow
X, Y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
ASKED, EXAM = X[:1500], X[1500:]


def served(folder: Path, share: float | None) -> tuple[ServiceTarget, ServiceTarget, Candidates | None]:
    """The service, its model without a guard, and the marks among the rows that are asked."""
    model = fit(LogisticRegression(max_iter=300), X[:900], Y[:900])
    owner, mark = OwnerKey.generate(), None if share is None else Watermark(share=share)
    options = SealOptions(name="digits", range_margin=0.0, watermark=mark)
    source = convert(model, double=True)
    seal(draft_from_source(source, rows_from_arrays({"x": X}, Y), options), owner, folder)
    bundle = verify(folder, [owner.public])
    key = None if share is None else read_secret(folder.with_name(f"{folder.name}.secret"))
    marked = None if key is None else mark_candidates(bundle, key, ASKED)
    return guarded(bundle, key), unguarded(bundle), marked


def answers(target: ServiceTarget) -> FloatArray:
    p = target.query(ASKED).probabilities
    assert p is not None
    return p


def judged(marked: Candidates, p: FloatArray) -> Agreement:
    return agreement(marked.served, marked.numbers, p[marked.rows].argmax(axis=1), p[marked.rows], marked.classes)


def test_clones_are_claimed_and_nobody_else(tmp_path: Path) -> None:
    target, truth, marked = served(tmp_path / "marked", 0.02)
    plain, _, _ = served(tmp_path / "plain", None)
    _, _, other_key = served(tmp_path / "other", 0.02)
    assert marked is not None
    assert other_key is not None
    recipe = replace(Knockoff(batch=256, learning_rate=1e-2, weight_decay=0.1).recipe, epochs=60)

    def clone(p: FloatArray, seed: int) -> FloatArray:
        return train_clone(ASKED, p, target.facts, recipe, seed)(ASKED)

    thief = clone(answers(target), 0)
    assert (thief.argmax(axis=1) == truth.query(ASKED).labels).mean() > 0.9
    # Each of these must fail to be claimed.
    innocent = [clone(one_hot(Y[:1500], 10), 1), clone(answers(plain), 2), *(dice(seed) for seed in range(3))]
    p = holm([judged(marked, values).p for values in (thief, *innocent)])
    assert p[0] < 1e-3
    assert min(p[1:]) > 0.01
    assert judged(other_key, thief).p > 0.01


def dice(seed: int) -> FloatArray:
    return np.random.default_rng(seed).dirichlet(np.ones(10), len(ASKED))


def test_solved_equations_carry_no_marks(tmp_path: Path) -> None:
    target, truth, marked = served(tmp_path / "marked", 0.02)
    assert marked is not None
    exam = Exam(EXAM.astype(target.facts.dtype), None, truth.raw(EXAM))
    trial = EquationSolving().carry_out(target, Knowledge(ASKED), exam, budget=260, seed=0)
    assert float(trial.scores["fidelity"].mean()) > 0.95
    clone = EquationSolving().run(MeteredOracle(target, 260), Knowledge(ASKED), np.random.default_rng(0))
    assert callable(clone)
    found = judged(marked, np.asarray(clone(ASKED.astype(target.facts.dtype))))
    assert found.fidelity > 0.95
    assert found.p > 0.01
