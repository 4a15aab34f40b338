"""Real models for the attacks' effect tests, without a guard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from garrison import datasets
from garrison.attacks.exam import Exam
from garrison.attacks.knowledge import Labelled
from garrison.attacks.oracle import Answers, OracleFacts
from garrison.hardening.training import Training, apply
from garrison.hardening.victim import train_victim
from garrison.types import Array


@dataclass(frozen=True)
class Victim:
    """A plain Fashion-MNIST model without a guard."""

    network: torch.nn.Module

    @property
    def facts(self) -> OracleFacts:
        shape = (1, 28, 28)
        return OracleFacts(shape, np.dtype(np.float32), np.zeros(shape), np.ones(shape), 10, soft=True)

    def query(self, x: Array) -> Answers:
        p = torch.softmax(apply(self.network, x), dim=1).numpy()
        nobody = np.zeros(len(x), dtype=np.bool_)
        return Answers(p.argmax(axis=1).astype(np.int64), p, nobody, nobody)


@dataclass(frozen=True)
class Clothes:
    """A Fashion-MNIST model, rows to measure clones on, and rows of the same kind that a thief may have.

    Attributes:
        victim: trained on the training rows but the last 10,000.
        exam: the test rows.
        x, y: those 10,000.
    """

    victim: Victim
    exam: Exam
    x: Array
    y: Array

    def labelled(self, per_class: int, seed: int) -> Labelled:
        """As many rows of each class, with their true classes."""
        rng = np.random.default_rng([7, seed])
        rows = np.concatenate([rng.choice(np.flatnonzero(self.y == c), per_class, replace=False) for c in range(10)])
        return Labelled(self.x[rows], self.y[rows].astype(np.int64))


def clothes() -> Clothes:
    own, held = datasets.load("fashion-mnist", "train"), datasets.load("fashion-mnist", "test")
    if own.y is None or held.y is None:
        raise ValueError("expected classes")
    victim = Victim(train_victim(own.x[:-10_000], own.y[:-10_000], options=Training(threads=1)))
    exam = Exam(held.x, held.y.astype(np.int64), victim.query(held.x).probabilities)
    return Clothes(victim, exam, own.x[-10_000:], own.y[-10_000:])
