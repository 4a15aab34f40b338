"""An f' of its own for a victim of which nothing but an ONNX file is at hand: trained, exported and compared with torch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from garrison.hardening import export
from garrison.hardening.data import Part
from garrison.hardening.measuring import Victim
from garrison.hardening.misinformation import OWN_NETWORK, train_network
from garrison.hardening.scoring import Report, open_session, score, silent
from garrison.types import Array

FEWEST_STEPS, MOST_EPOCHS = 400, 200
"""Small data sets are passed over more often, until f' has seen so many batches."""
MOST_ROWS = 100_000
"""More only cost time."""
SAMPLE_ROWS = 8


def train_graph(victim: Victim, training: Part, seed: int = 0, threads: int = 1, report: Report = silent) -> bytes:
    """Train f' on at most 100,000 rows; without labels, on the victim's own answers.

    Args:
        victim: at least three classes.
        training: its rows.
        seed, threads: of the training.
        report: told how far it is.

    Returns:
        A graph that takes the victim's inputs and has the one output `misinformation`.

    Raises:
        CalibrationError: fewer than three classes, labels out of range.
    """
    inputs, y = _picked(training, seed)
    if y is None:
        session = open_session(victim.model, threads)
        y = score(session, inputs, ["probabilities"])["probabilities"].argmax(axis=1)
    x = export.joined(inputs)
    epochs = min(MOST_EPOCHS, math.ceil(FEWEST_STEPS * OWN_NETWORK.batch / len(x)))
    options = replace(OWN_NETWORK, epochs=max(OWN_NETWORK.epochs, epochs), seed=seed, threads=threads)
    network = train_network(x, y, len(victim.labels), options=options, report=report)
    return export.misinformation_graph(network, victim.inputs, {name: v[:SAMPLE_ROWS] for name, v in inputs.items()})


def _picked(training: Part, seed: int) -> tuple[dict[str, Array], Array | None]:
    if len(training) <= MOST_ROWS:
        return training.inputs, training.y
    rows = np.sort(np.random.default_rng(seed).permutation(len(training))[:MOST_ROWS])
    return {name: x[rows] for name, x in training.inputs.items()}, None if training.y is None else training.y[rows]
