"""What tells strange inputs from honest ones: four scores, with and without outlier exposure, on Fashion-MNIST.

    python benchmarks/ood_scores.py --seeds 0 1 2 --rows 20000 --epochs 4

Trains two LeNets a seed, calibrates each score on 5,000 held-out rows as `garrison harden` does, and prints, for each kind of strange rows, the
AUROC against honest test rows and the share of rows below tau. Columns: mean over seeds (smallest to largest).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
import onnx

from garrison import datasets
from garrison.hardening import export
from garrison.hardening.calibration import ScoreName, calibrate, confidence_of
from garrison.hardening.data import Part
from garrison.hardening.feature_scores import add_feature_score
from garrison.hardening.measures import auroc
from garrison.hardening.outliers import outlier_set
from garrison.hardening.scoring import open_session, score
from garrison.hardening.training import Training
from garrison.hardening.victim import train_victim
from garrison.types import FEATURE_SCORES, Array, FloatArray

HELD_OUT, ROWS, OUTLIERS = 5_000, 2_000, 15_000
SCORES: tuple[ScoreName, ...] = ("max-probability", "energy", "mahalanobis", "knn")
Figures = dict[tuple[str, str, str], list[tuple[float, float]]]


def strange(seed: int) -> dict[str, FloatArray]:
    """Rows that are no clothes; none of them is among the outliers of training."""
    rng = np.random.default_rng(seed)

    def some(name: str) -> FloatArray:
        x = datasets.load(name, "test").x
        return np.asarray(x[rng.permutation(len(x))[:ROWS]], dtype=np.float32)

    noise = rng.random((ROWS, 1, 28, 28), dtype=np.float32)
    return {"digits": some("mnist"), "photographs": some("photo-patches"), "uniform noise": noise}


def graphs_of(x: FloatArray, y: Array, given: argparse.Namespace, seed: int) -> dict[str, bytes]:
    """A plain victim and one with outlier exposure."""
    options = Training(epochs=given.epochs, seed=seed)
    outliers = outlier_set(x.shape[1:], OUTLIERS, seed, benign=x)
    arms = {"plain": None, "outlier exposure": outliers}
    return {
        arm: export.victim_graph(train_victim(x, y, outliers=rows, options=options), None, x[:64])
        for arm, rows in arms.items()
    }


def confidence(model: Any, name: ScoreName, training: Part, seed: int) -> Any:
    """A function from rows to what the model answers and the score."""
    graph = add_feature_score(model, name, training, seed) if name in FEATURE_SCORES else model
    session = open_session(graph.SerializeToString())

    def run(x: FloatArray) -> tuple[FloatArray, FloatArray]:
        found = score(session, {"image": x})
        c = confidence_of(name, found["probabilities"], found["logits"], feature_score=found.get(name))
        return found["probabilities"], c

    return run


def one_seed(seed: int, given: argparse.Namespace, figures: Figures) -> None:
    own, test = datasets.load("fashion-mnist", "train"), datasets.load("fashion-mnist", "test")
    order = np.random.default_rng(seed).permutation(len(own.x))
    cut, held = order[: given.rows], order[-HELD_OUT:]
    y = np.asarray(own.y)
    outside = strange(seed)
    for arm, data in graphs_of(own.x[cut], y[cut], given, seed).items():
        model = onnx.load_model_from_string(data)
        for name in SCORES:
            run = confidence(model, name, Part({"image": own.x[cut]}, y[cut]), seed)
            p, c = run(own.x[held])
            tau = calibrate(p, c, y[held]).tau
            answers, inside = run(test.x)
            lost = (answers.argmax(axis=1) == np.asarray(test.y)) & (inside < tau)
            figures[arm, name, "honest"].append((float((answers.argmax(axis=1) == test.y).mean()), float(lost.mean())))
            for kind, x in outside.items():
                _, found = run(x)
                figures[arm, name, kind].append((auroc(inside, found), float((found < tau).mean())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    figures: Figures = defaultdict(list)
    for seed in given.seeds:
        one_seed(seed, given, figures)
    print(
        "| training | score | rows | AUROC (honest: accuracy) | below tau (honest: accuracy lost) |\n|---|---|---|---|---|"
    )
    for (arm, name, kind), values in figures.items():
        cells = [f"{v.mean():.3f} ({v.min():.3f} to {v.max():.3f})" for v in np.array(values).T]
        print(f"| {arm} | {name} | {kind} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
