from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from garrison.hardening.measures import auroc, diversity, wrongness


def test_auroc_with_ties_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 300).round(1), rng.normal(0, 1, 200).round(1)
    truth = np.r_[np.ones(300), np.zeros(200)]
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, np.r_[inside, outside]))
    assert auroc(np.ones(3), np.ones(4)) == 0.5


def test_diversity() -> None:
    assert diversity(np.zeros(50, dtype=np.int64), 10) == (1, 0.0)
    used, spread = diversity(np.arange(100) % 10, 10)
    assert used == 10
    assert spread == pytest.approx(1.0)


def test_wrongness_of_a_perfect_and_of_an_ignorant_f() -> None:
    y = np.arange(4)
    with np.errstate(divide="ignore"):
        perfect = np.log((1 - np.eye(4)) / 3)
    judged = wrongness(perfect, y)
    assert (judged.loss, judged.mass_on_truth) == (0.0, 0.0)
    assert judged.entropy == pytest.approx(1.0)
    ignorant = wrongness(np.full((4, 4), np.log(0.25)), y)
    assert ignorant.loss == pytest.approx(ignorant.loss_untrained)
