"""Copycat: natural images of anything, labels alone.

Correia-Silva, Berriel, Badue, de Souza and Oliveira-Santos, "Copycat CNN: Stealing Knowledge by Persuading Confession with Random
Non-Labeled Data" (IJCNN 2018). The thief asks photographs of no particular kind, keeps the first class of each answer and nothing else,
and trains on those stolen labels. Which photographs is the plan's choice (`surrogate = "photo-patches:train"`).

Training can add what costs no query: copies of the asked rows, moved and mirrored, with the label of the original. They did not help on
our targets and are off unless asked for (`copies`).

Different from the paper: the clone starts from random weights, not from ImageNet's; classes are brought to equal weight
(`balance`).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from garrison.attacks.base import Goal
from garrison.attacks.checks import at_least
from garrison.attacks.exam import Clone
from garrison.attacks.extraction.clones import image_shape, is_image, train_clone
from garrison.attacks.extraction.knockoff import Knockoff, one_hot, surrogate_rows
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import MeteredOracle
from garrison.types import Array


class Copycat(Knockoff, frozen=True):
    """Ask random natural images, train on the first class alone.

    Attributes:
        copies: changed copies of each answered image in the training; they are not asked.
        shift: pixels, at most, that a copy is moved by, in each direction.
        epochs, fewest_steps, batch, learning_rate, weight_decay, averaged, balance: see
            `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "copycat"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    copies: int = 0
    shift: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "copies", "shift")

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Clone:
        asked = surrogate_rows(knowledge, rng, oracle.remaining)
        seed = int(rng.integers(2**63))
        answers = oracle.query(asked)
        x, labels = asked[answers.usable], answers.labels[answers.usable]
        many = [x, *(copied(x, self.shift, rng) for _ in range(self.copies if is_image(oracle.facts.shape) else 0))]
        targets = one_hot(np.tile(labels, len(many)), oracle.facts.classes)
        return train_clone(np.concatenate(many), targets, oracle.facts, self.recipe, seed)


def copied(x: Array, shift: int, rng: np.random.Generator) -> Array:
    """`changed`, of images whose channels stand first, last or nowhere."""
    if x.ndim == 3:
        return changed(x[:, None], shift, rng)[:, 0]
    if image_shape(x.shape[1:]) == x.shape[1:]:
        return changed(x, shift, rng)
    return np.moveaxis(changed(np.moveaxis(x, -1, 1), shift, rng), 1, -1)


def changed(x: Array, shift: int, rng: np.random.Generator) -> Array:
    """Each image (rows, channels, height, width) mirrored or not and moved by at most `shift` pixels; its edge is drawn out."""
    mirrored = np.where(rng.random(len(x))[:, None, None, None] < 0.5, x[..., ::-1], x)
    wide = np.pad(mirrored, ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="edge")
    down, right = rng.integers(0, 2 * shift + 1, (2, len(x)))
    height, width = x.shape[2:]
    rows = down[:, None] + np.arange(height)
    columns = right[:, None] + np.arange(width)
    found: Array = wide[np.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return np.moveaxis(found, -1, 1)
