from __future__ import annotations

import numpy as np
import pytest
import torch

from garrison.errors import CalibrationError
from garrison.hardening.measures import auroc
from garrison.hardening.networks import Network
from garrison.hardening.outliers import outlier_set
from garrison.hardening.training import apply
from garrison.hardening.victim import train_victim
from garrison.types import Array

from .conftest import QUICK, Digits


def confidence(network: Network, x: Array) -> Array:
    found: Array = torch.softmax(apply(network, x), dim=1).max(dim=1).values.numpy()
    return found


def test_a_victim_learns(victim: Network, digits: Digits) -> None:
    assert (apply(victim, digits.unseen_x).argmax(dim=1).numpy() == digits.unseen_y).mean() > 0.93


def test_outlier_exposure_finds_a_kind_of_outlier_that_it_never_saw(victim: Network, digits: Digits) -> None:
    """Own images upside down and mirrored are not in the mixture; the control arm is the same training without exposure."""
    outliers = outlier_set((1, 16, 16), 3000, 0, benign=digits.x)
    exposed = train_victim(digits.x, digits.y, outliers=outliers, options=QUICK)
    assert (apply(exposed, digits.unseen_x).argmax(dim=1).numpy() == digits.unseen_y).mean() > 0.9
    rng = np.random.default_rng(9)
    unseen_kind = digits.unseen_x.reshape(-1, 256)[:, rng.permutation(256)].reshape(-1, 1, 16, 16)
    scores = {}
    for name, network in (("plain", victim), ("exposed", exposed)):
        scores[name] = auroc(confidence(network, digits.unseen_x), confidence(network, unseen_kind))
    assert scores["exposed"] > 0.99
    assert scores["exposed"] > scores["plain"] + 0.005


def test_the_same_seed_gives_the_same_victim(digits: Digits) -> None:
    from dataclasses import replace

    short = replace(QUICK, epochs=1)
    first, second = (train_victim(digits.x, digits.y, options=short) for _ in range(2))
    other = train_victim(digits.x, digits.y, options=replace(short, seed=1))
    assert torch.equal(first.answer.weight, second.answer.weight)
    assert not torch.equal(first.answer.weight, other.answer.weight)


def test_bad_rows(digits: Digits) -> None:
    with pytest.raises(CalibrationError, match="as many labels"):
        train_victim(digits.x, digits.y[:-1])
    spoilt = digits.x.copy()
    spoilt[3, 0, 2, 2] = np.nan
    with pytest.raises(CalibrationError, match="NaN"):
        train_victim(spoilt, digits.y)
