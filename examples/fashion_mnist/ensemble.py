"""A hashed ensemble for Fashion-MNIST: five heads that agree on clothes and contradict each other elsewhere, in one ONNX graph.

    python examples/fashion_mnist/ensemble.py --out out/ensemble
    garrison harden out/ensemble/model.onnx --data out/ensemble/train.npz --calibration out/ensemble/calibration.npz -o out/ensemble/hardened

The hash that picks a head comes from --key, the owner's key file (`garrison keygen`); without one a throwaway key is drawn. See
docs/defenses/hashed-ensemble.md for what it stops, and who can read the hash.
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

import numpy as np

from garrison import datasets
from garrison.cli.output import progress
from garrison.cli.owner_key import read_owner_key
from garrison.hardening import export
from garrison.hardening.ensemble import train_ensemble
from garrison.hardening.outliers import outlier_set
from garrison.hardening.scoring import open_session, score
from garrison.hardening.training import Training

HELD_OUT, OUTLIERS, NAME = 5_000, 30_000, "clothes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/ensemble"))
    parser.add_argument("--key", type=Path, help="OWNER.key")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--rows", type=int, default=55_000)
    parser.add_argument("--epochs", type=int, default=Training().epochs)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    key = secrets.token_bytes(32) if given.key is None else read_owner_key(given.key, None).misinformation_key(NAME)
    found, test = datasets.load("fashion-mnist", "train"), datasets.load("fashion-mnist", "test")
    order, y = np.random.default_rng(given.seed).permutation(len(found.x)), np.asarray(found.y)
    rows, held = order[: given.rows], order[-HELD_OUT:]
    given.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows), ("calibration", held)):
        np.savez(given.out / f"{name}.npz", x=found.x[part], y=y[part], labels=np.array(found.labels))
    x = found.x[rows]
    outliers = outlier_set(x.shape[1:], OUTLIERS, given.seed, benign=x)
    options = Training(epochs=given.epochs, seed=given.seed)
    with progress("training") as report:
        ensemble = train_ensemble(x, y[rows], outliers, key, members=given.members, options=options, report=report)
    model = given.out / "model.onnx"
    model.write_bytes(export.ensemble_graph(ensemble, x[:64]))
    p = score(open_session(model.read_bytes()), {"image": test.x}, ["probabilities"])["probabilities"]
    shares = np.bincount(ensemble.hash.member_of(test.x), minlength=given.members) / len(test.x)
    print(f"{model}: test accuracy {(p.argmax(axis=1) == test.y).mean():.2%}, rows by head {np.round(shares, 2)}")


if __name__ == "__main__":
    main()
