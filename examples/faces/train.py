"""Train a model that tells 40 people by their faces (ORL, 112 x 92, grey).

    python examples/faces/train.py --out out/faces/training
    garrison keygen -o out/faces/owner
    garrison seal out/faces/training/victim.onnx --data out/faces/training/held_out.npz --key out/faces/owner.key -o out/faces/bundle

Writes victim.onnx, and held_out.npz with two pictures of each person that it is not trained on: what the sealing needs, and what a
thief who has pictures of these people would ask about. Of each person five pictures are for training, mirrored and shifted as well;
the data set's own test split has the other three. What is there already is kept, unless --force is given.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from garrison import datasets
from garrison.cli.output import progress
from garrison.hardening import export
from garrison.hardening.scoring import open_session, score
from garrison.hardening.training import Training
from garrison.hardening.victim import Images, Labels, train_victim

FOR_TRAINING = 5
"""Pictures of each person that the model is trained on, of the seven in the training split."""
COPIES = 12
SHIFT = 6


def parts(x: Images, y: Labels) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """The pictures to train on, and those held out; the training split holds each person's pictures one after another."""
    number = np.arange(len(x)) - np.searchsorted(y, y)
    chosen = number < FOR_TRAINING
    return (x[chosen], y[chosen]), (x[~chosen], y[~chosen])


def moved(x: Images, y: Labels, rng: np.random.Generator) -> tuple[Images, Labels]:
    """The pictures, and copies of them, shifted by a few pixels and every other one mirrored."""
    found = [x]
    for copy in range(COPIES):
        down, right = rng.integers(-SHIFT, SHIFT + 1, size=2)
        moved_copy = np.roll(x, (down, right), axis=(2, 3))
        found.append(moved_copy[:, :, :, ::-1] if copy % 2 else moved_copy)
    return np.concatenate(found).astype(np.float32), np.tile(y, COPIES + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/faces/training"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="train again")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    found = datasets.load("orl-faces", "train")
    (x, y), (held_x, held_y) = parts(found.x, np.asarray(found.y))
    np.savez(given.out / "held_out.npz", x=held_x, y=held_y, labels=np.array(found.labels))
    victim = given.out / "victim.onnx"
    if given.force or not victim.exists():
        many_x, many_y = moved(x, y, np.random.default_rng(given.seed))
        options = Training(epochs=given.epochs, seed=given.seed)
        with progress("faces") as report:
            network = train_victim(many_x, many_y, options=options, report=report)
        part = victim.with_suffix(".part")
        part.write_bytes(export.victim_graph(network, None, x[:64]))
        part.replace(victim)  # a run that was interrupted leaves no half a model
    test = datasets.load("orl-faces", "test")
    answers = score(open_session(victim.read_bytes()), {"image": test.x}, ["probabilities"])["probabilities"]
    print(
        f"{victim}: test accuracy {(answers.argmax(axis=1) == test.y).mean():.2%}, {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
