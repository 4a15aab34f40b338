"""Train two Fashion-MNIST victims: a plain one, and one with outlier exposure and a misinformation head.

    python examples/fashion_mnist/train.py --out out/demo/training

Writes plain.onnx, victim.onnx, train.npz and calibration.npz (5,000 training images that neither victim is trained on).
What is there already is kept, unless --force is given. No digit, letter, photograph or face is among the outliers.
The two are trained side by side, one thread each: small networks gain little from a second thread, and lose much where
something else wants the same core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
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


def write_data(out: Path, seed: int, *, force: bool) -> None:
    """The training rows and, apart from them, those for calibration."""
    if (out / "calibration.npz").exists() and not force:
        return
    found = datasets.load("fashion-mnist", "train")
    x, y = found.x, np.asarray(found.y)
    order = np.random.default_rng(seed).permutation(len(x))
    for name, rows in (("train", order[HELD_OUT:]), ("calibration", order[:HELD_OUT])):
        np.savez(out / f"{name}.npz", x=x[rows], y=y[rows], labels=np.array(found.labels))


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


def train(out: Path, name: str, options: Training) -> None:
    with np.load(out / "train.npz") as data:
        x, y = data["x"], data["y"]
    graph = train_plain(x, y, options) if name == "plain" else train_exposed(x, y, options)
    part = out / f"{name}.part"
    part.write_bytes(graph)
    part.replace(out / f"{name}.onnx")  # a run that was interrupted leaves no half a model


def accuracy(model: Path, x: Any, y: Any) -> float:
    answers = score(open_session(model.read_bytes()), {"image": x}, ["probabilities"])["probabilities"]
    return float((answers.argmax(axis=1) == y).mean())


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/demo/training"))
    parser.add_argument("--epochs", type=int, default=Training().epochs)
    parser.add_argument("--threads", type=int, default=2, help="with 1 the two are trained one after the other")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="train again")
    parser.add_argument("--only", choices=["plain", "victim"], help="train this one, without a word")
    return parser.parse_args(words)


def main() -> None:
    given = options_of()
    options = Training(epochs=given.epochs, seed=given.seed, threads=max(1, given.threads // 2))
    if given.only:
        train(given.out, given.only, options)
        return
    started = time.monotonic()
    given.out.mkdir(parents=True, exist_ok=True)
    write_data(given.out, given.seed, force=given.force)
    wanted = [name for name in ("plain", "victim") if given.force or not (given.out / f"{name}.onnx").exists()]
    aside = None
    if len(wanted) == 2 and given.threads > 1:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", wanted.pop(0)]
        aside = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for name in wanted:
            train(given.out, name, options)
        if aside is not None and aside.wait() != 0:
            sys.exit("training the plain victim failed; run this again with --only plain to see why")
    finally:
        if aside is not None:
            aside.terminate()
    found = datasets.load("fashion-mnist", "test")
    for name in ("plain", "victim"):
        path = given.out / f"{name}.onnx"
        print(f"{path}: test accuracy {accuracy(path, found.x, found.y):.2%}")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
