"""Asks suspects about candidates and tests what they answer.

candidates = mark_candidates(bundle, key, x)
claims = verify_suspects({"theirs.onnx": suspect}, candidates)
claims[0].agreement.p, claims[0].corrected, claims[0].holds
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from garrison.attacks.oracle import MeteredOracle, Oracle
from garrison.audit.ownership.owner import FEWEST_MARKS, Candidates, fitted
from garrison.audit.ownership.statistics import Agreement, agreement, holm
from garrison.errors import ConfigError, PreflightError
from garrison.types import FloatArray

LEVEL = 1e-3
MOST_QUERIES = 2000


@dataclass(frozen=True, slots=True)
class Claim:
    """What can be said of one suspect.

    Attributes:
        suspect: its name.
        queries: rows that it was asked, repeats included.
        agreement: counts and p-values.
        corrected: the p-value after Holm's correction over all suspects of the call.
        level: the accepted chance of any false claim among them.
    """

    suspect: str
    queries: int
    agreement: Agreement
    corrected: float
    level: float

    @property
    def holds(self) -> bool:
        """Whether so much agreement is less likely than `level` for models that do not depend on the owner's key."""
        return self.corrected < self.level


def verify_suspects(
    suspects: Mapping[str, Oracle],
    candidates: Candidates,
    *,
    most: int = MOST_QUERIES,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Claim]:
    """Ask every suspect and test.

    Args:
        suspects: by name.
        candidates: see `garrison.audit.ownership.owner`.
        most: rows that a suspect is asked; of the marked candidates all where they are at most half of it.
        level: accepted chance of any false claim, in (0, 1).
        seed: of which candidates are asked, where they are more.

    Raises:
        ConfigError: too few rows, or a level that is none.
        PreflightError: a suspect with other classes or inputs, or one that answers too few marked candidates.
    """
    if most < 2 * FEWEST_MARKS or not 0 < level < 1:
        raise ConfigError(f"a suspect must be asked {2 * FEWEST_MARKS} rows at least, and the level lie in (0, 1)")
    asked = candidates.draw(most, seed)
    found = {name: _ask(name, suspect, asked, most) for name, suspect in suspects.items()}
    corrected = holm([one.p for _, one in found.values()])
    rows = zip(found.items(), corrected, strict=True)
    return [Claim(name, queries, one, p, level) for (name, (queries, one)), p in rows]


def _ask(name: str, suspect: Oracle, asked: Candidates, most: int) -> tuple[int, Agreement]:
    facts = suspect.facts
    if facts.regression or facts.classes != asked.classes:
        raise PreflightError(f"{name}: expected a model of {asked.classes} classes, as the watermarked one has")
    meter = MeteredOracle(suspect, most)
    answers = meter.query_within(fitted(asked.x, facts.shape, facts.dtype))
    rows = answers.usable
    soft = answers.probabilities if answers.values is None else _softmax(answers.values)
    ranked = None if soft is None else soft[rows]
    one = agreement(asked.served[rows], asked.numbers[rows], answers.labels[rows], ranked, asked.classes)
    if one.marked < FEWEST_MARKS:
        raise PreflightError(
            f"{name}: answered {one.marked} of {asked.marked} marked candidates, at least {FEWEST_MARKS} are needed"
        )
    return meter.rows, one


def _softmax(scores: FloatArray) -> FloatArray:
    """Scores as probabilities: only their differences within a row count."""
    known = np.nan_to_num(scores.astype(np.float64))
    e = np.exp(known - known.max(axis=1, keepdims=True))
    found: FloatArray = e / e.sum(axis=1, keepdims=True)
    return found
