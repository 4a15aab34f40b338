"""Train two Fashion-MNIST victims: a plain one, and one with outlier exposure and a misinformation head.

    python examples/fashion_mnist/train.py --out out/demo/training

Writes plain.onnx, victim.onnx, train.npz and calibration.npz (5,000 training images that neither victim is trained on).
What is there already is kept, unless --force is given. No digit, letter, photograph or face is among the outliers.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from garrison import datasets
from garrison.cli.output import progress
from garrison.hardening import export
from garrison.hardening.misinformation import HEAD, train_head
from garrison.hardening.outliers import outlier_set
from garrison.hardening.scoring import open_session, score
from garrison.hardening.training import Training
from garrison.hardening.victim import train_victim

HELD_OUT = 5_000
OUTLIERS = 30_000


def accuracy(model: Path, x: Any, y: Any) -> float:
    answers = score(open_session(model.read_bytes()), {"image": x}, ["probabilities"])["probabilities"]
    return float((answers.argmax(axis=1) == y).mean())


def load(split: str) -> tuple[Any, Any, tuple[str, ...]]:
    found = datasets.load("fashion-mnist", split)
    return found.x, found.y, found.labels


def write_data(out: Path, seed: int, *, force: bool) -> None:
    """The training rows and, apart from them, those for calibration."""
    if (out / "calibration.npz").exists() and not force:
        return
    x, y, labels = load("train")
    order = np.random.default_rng(seed).permutation(len(x))
    for name, rows in (("train", order[HELD_OUT:]), ("calibration", order[:HELD_OUT])):
        np.savez(out / f"{name}.npz", x=x[rows], y=y[rows], labels=np.array(labels))


def train_plain(x: Any, y: Any, options: Training) -> bytes:
    with progress("plain victim") as report:
        network = train_victim(x, y, options=options, report=report)
    return export.victim_graph(network, None, x[:64])


def train_exposed(x: Any, y: Any, options: Training) -> bytes:
    with progress("drawing outliers") as report:
        outliers = outlier_set(x.shape[1:], OUTLIERS, options.seed, benign=x, report=report)
    with progress("victim with outlier exposure") as report:
        network = train_victim(x, y, outliers=outliers, options=options, report=report)
    with progress("misinformation head") as report:
        how = replace(HEAD, seed=options.seed, threads=options.threads)
        head = train_head(network, x, y, outliers=outliers, options=how, report=report)
    return export.victim_graph(network, head, x[:64])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo/training"))
    parser.add_argument("--epochs", type=int, default=Training().epochs)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="train again")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    write_data(given.out, given.seed, force=given.force)
    options = Training(epochs=given.epochs, seed=given.seed, threads=given.threads)
    x, y, _ = load("test")
    for name, train in (("plain", train_plain), ("victim", train_exposed)):
        path, started = given.out / f"{name}.onnx", time.monotonic()
        if not path.exists() or given.force:
            with np.load(given.out / "train.npz") as data:
                path.write_bytes(train(data["x"], data["y"], options))
        seconds = time.monotonic() - started
        print(f"{path}: test accuracy {accuracy(path, x, y):.2%} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
