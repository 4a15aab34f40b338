"""What honest rows lose and outliers get, measured by running the very chain that will be signed.

The owner's key does not exist yet, so the chain runs under a throwaway one; every figure here is the same in distribution
under any key. Each row is a request of its own, so that a refused row takes no other with it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from garrison.bundle.manifest import InputSpec, input_facts
from garrison.guard.keyed import KEY_BYTES
from garrison.guard.pipeline import Pipeline, Progress
from garrison.hardening.calibration import Calibration
from garrison.hardening.data import Part
from garrison.hardening.measures import auroc, diversity, wrongness
from garrison.hardening.scoring import open_session, score
from garrison.types import (
    FEATURE_SCORES,
    Array,
    Batch,
    BoolArray,
    Caller,
    DefenseSpec,
    FloatArray,
    ModelFacts,
    RawScores,
    Task,
)


@dataclass(frozen=True, slots=True)
class Victim:
    """A model whose outputs have their canonical names.

    Attributes:
        model: the graph's bytes.
        outputs: names of its outputs.
        inputs: with their value ranges.
        labels: one a class.
        datatype: numpy dtype of the probabilities.
        threads: of the runtime.
        misinformation: the graph of an f' of its own, where there is one.
    """

    model: bytes
    outputs: tuple[str, ...]
    inputs: tuple[InputSpec, ...]
    labels: tuple[str, ...]
    datatype: np.dtype[Any]
    threads: int = 1
    misinformation: bytes | None = None

    def facts(self) -> ModelFacts:
        """What the guard may know of it."""
        return ModelFacts(
            task=Task.CLASSIFICATION,
            inputs=tuple(input_facts(spec) for spec in self.inputs),
            labels=self.labels,
            outputs=len(self.labels),
            value_dtype=self.datatype,
            has_logits="logits" in self.outputs,
            has_misinformation=self.misinformation is not None or "misinformation" in self.outputs,
            feature_score=self.feature_score,
        )

    @property
    def feature_score(self) -> str:
        """Which of `FEATURE_SCORES` the graph offers; "" for none."""
        return next((name for name in FEATURE_SCORES if name in self.outputs), "")

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """All outputs, that of an f' of its own among them."""
        found = score(open_session(self.model, self.threads), inputs, self.outputs)
        return found | self.wrong(inputs)

    def wrong(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """The output of an f' of its own; empty where there is none."""
        if self.misinformation is None:
            return {}
        return score(open_session(self.misinformation, self.threads), inputs, ["misinformation"])


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What a chain made of some rows.

    Attributes:
        raw: the victim's outputs.
        answer: (rows, classes), before the release policy.
        withheld: (rows,), refused, or answered "uncertain".
        replaced: (rows,), answered with something else than f(x).
        confidence: (rows,), the guard's signal.
    """

    raw: dict[str, Array]
    answer: FloatArray
    withheld: BoolArray
    replaced: BoolArray
    confidence: FloatArray


def serve(victim: Victim, chain: tuple[DefenseSpec, ...], inputs: dict[str, Array]) -> Served:
    """Run the chain over rows, each a request of its own, from a caller with no limit."""
    rows = len(next(iter(inputs.values())))
    raw = victim.run(inputs)
    pipeline = Pipeline(chain, victim.facts(), secrets.token_bytes(KEY_BYTES))
    progress = Progress.begin(Batch(inputs, np.arange(rows), (Caller("owner"),) * rows, (-1,) * rows))
    pipeline.admit(progress)
    pipeline.inspect(progress)
    wrong = raw.get("misinformation")
    misinformation = None if wrong is None else lambda picked: wrong[picked]
    features = raw.get(victim.feature_score)
    pipeline.answer(progress, RawScores(raw["probabilities"], raw.get("logits"), misinformation, features))
    answer = raw["probabilities"] if progress.answer is None else progress.answer
    refused = np.array([code is not None for code in progress.refused])
    withheld = refused | progress.uncertain
    return Served(raw, answer, withheld, progress.replaced, progress.signals["confidence"])


def measure(
    victim: Victim,
    chain: tuple[DefenseSpec, ...],
    fitted: Calibration,
    held_out: Part,
    outliers: dict[str, Array] | None,
) -> dict[str, float]:
    """The figures that go into the manifest; shares lie in [0, 1].

    Args:
        victim: see `Victim`.
        chain: as it will be signed.
        fitted: the calibration.
        held_out: the calibration rows; figures on them are therefore a little kind.
        outliers: rows that are not the model's business, None where there are none.
    """
    found = {
        "tau": fitted.tau,
        "calibration_rows": float(fitted.rows),
        "benign_loss": fitted.loss,
        "benign_loss_low": fitted.loss_low,
        "benign_loss_high": fitted.loss_high,
        "benign_loss_asked": fitted.asked,
    }
    inside = serve(victim, chain, held_out.inputs)
    found["answers_changed"] = float((inside.replaced | inside.withheld).mean())
    if held_out.y is not None:
        found["accuracy"] = float((inside.raw["probabilities"].argmax(axis=1) == held_out.y).mean())
        right = (inside.answer.argmax(axis=1) == held_out.y) & ~inside.withheld
        found["served_accuracy"] = float(right.mean())
        if "misinformation" in inside.raw:
            found |= _wrongness(inside.raw["misinformation"], held_out.y)
    if outliers is not None:
        found |= _outside(serve(victim, chain, outliers), inside.confidence, len(victim.labels))
    return {name: round(value, 6) for name, value in found.items()}


def _wrongness(logs: FloatArray, y: Array) -> dict[str, float]:
    judged = wrongness(logs, y)
    return {
        "misinformation_loss": judged.loss,
        "misinformation_loss_untrained": judged.loss_untrained,
        "misinformation_mass_on_truth": judged.mass_on_truth,
    }


def _outside(outside: Served, inside: FloatArray, classes: int) -> dict[str, float]:
    found = {
        "outliers": float(len(outside.answer)),
        "outliers_auroc": auroc(inside, outside.confidence),
        "outliers_caught": float((outside.replaced | outside.withheld).mean()),
    }
    told = outside.answer.argmax(axis=1)[outside.replaced & ~outside.withheld]
    if len(told):
        used, spread = diversity(told, classes)
        found |= {"misinformation_classes": float(used), "misinformation_entropy": spread}
    return found
