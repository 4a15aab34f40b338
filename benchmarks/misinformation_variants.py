"""What a thief gets of each way of misinforming: knockoff with digits, soft answers and labels alone.

    python benchmarks/misinformation_variants.py --hardened out/bench/seed-0/hardened --seeds 0 1 2

Each way gets the calibrated threshold of the hardened folder, or with --every-row one above every row: then all that the thief asks is misinformed,
which shows what a way does by itself, and served accuracy is not printed. `runner-up` is deceptive misinformation with spread 0.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from garrison import datasets
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import LabelsOnly, Oracle
from garrison.audit.targets import ServiceTarget
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.crypto.owner import OwnerKey
from garrison.enclave.service import Service
from garrison.guard.defenses.adaptive_misinformation import AdaptiveMisinformation
from garrison.guard.override import UnsafeGuardOverride
from garrison.hardening.artifact import read_hardened
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_hardened
from garrison.types import DefenseSpec

BARE = (DefenseSpec(name="bounds"), DefenseSpec(name="release"))


@dataclass(frozen=True)
class Way:
    """A way of misinforming, and what is changed of the calibrated parameters."""

    defense: str
    changes: dict[str, Any]


WAYS = {
    "no misinformation": None,
    "adaptive": Way("adaptive-misinformation", {}),
    "deceptive": Way("deceptive-misinformation", {}),
    "runner-up": Way("deceptive-misinformation", {"spread": 0.0}),
    "label-preserving": Way("label-preserving-misinformation", {}),
}
ABOVE_EVERY_ROW = 1e6
THIEF = Knockoff(batch=256, learning_rate=1e-2, weight_decay=0.1)
"""As in the guards' tables."""


def chain_of(signed: tuple[DefenseSpec, ...], way: Way | None, *, every_row: bool) -> tuple[DefenseSpec, ...]:
    """The calibrated chain with another way of misinforming; without any, no score either."""
    if way is None:
        return BARE
    changes = way.changes | ({"tau": ABOVE_EVERY_ROW} if every_row else {})
    names = AdaptiveMisinformation.__struct_fields__
    return tuple(
        msgspec.structs.replace(
            spec, name=way.defense, parameters={n: v for n, v in spec.parameters.items() if n in names} | changes
        )
        if spec.name.endswith("-misinformation")
        else spec
        for spec in signed
    )


def service_of(bundle: VerifiedBundle, key: bytes, chain: tuple[DefenseSpec, ...]) -> Service:
    return Service(bundle, key=key, override=UnsafeGuardOverride(chain, "a benchmark"))


def clone_accuracy(target: Oracle, exam: Exam, surrogate: Any, budget: int, seeds: list[int]) -> str:
    found = []
    for seed in seeds:
        trial = THIEF.carry_out(target, Knowledge(surrogate), exam, budget=budget, seed=seed)
        found.append(float(trial.scores["clone_accuracy"].mean()))
    return f"{np.mean(found):.1%} ({min(found):.1%} to {max(found):.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardened", type=Path, default=Path("out/bench/seed-0/hardened"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=5_000)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--answers", nargs="+", choices=["soft", "labels"], default=["soft", "labels"])
    parser.add_argument("--every-row", action="store_true")
    given = parser.parse_args()
    test, digits = datasets.load("fashion-mnist", "test"), datasets.load("mnist", "train").x
    owner = OwnerKey.generate()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        seal(draft_from_hardened(given.hardened, SealOptions(name="clothes")), owner, path)
        bundle = verify(path, [owner.public])
    signed, key = read_hardened(given.hardened).guard, owner.misinformation_key("clothes")
    y = np.asarray(test.y).astype(np.int64)
    reference = service_of(bundle, key, BARE).predict({"image": test.x}).outputs["probabilities"]
    exam = Exam(test.x, y, reference)
    print("| way | served accuracy | " + " | ".join(f"clone, {how}" for how in given.answers) + " |")
    print("|---|---" + "|---" * len(given.answers) + "|")
    for name in given.ways:
        service = service_of(bundle, key, chain_of(signed, WAYS[name], every_row=given.every_row))
        served = service.predict({"image": test.x}).outputs["probabilities"].argmax(axis=1)
        target = ServiceTarget(service, overridden=True)
        arms: dict[str, Oracle] = {"soft": target, "labels": LabelsOnly(target)}
        cells = [clone_accuracy(arms[how], exam, digits, given.budget, given.seeds) for how in given.answers]
        accuracy = "" if given.every_row else f"{(served == y).mean():.2%}"
        print(f"| {name} | {accuracy} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
