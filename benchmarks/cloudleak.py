"""CloudLeak at the slides' budgets: FeatureFool against random sampling, three seeds, and what each clone keeps of the model's accuracy.

    python -m benchmarks.cloudleak [--out out/cloudleak] [--seeds 3] [--only fashion,others,faces,lite0,nsfw] [--minutes 8]

Targets: the undefended Fashion-MNIST model of `python -m benchmarks.run` (out/bench/seed-0), a faces model (examples/faces), and open
NSFW, which others trained; all sealed by `garrison seal` and asked through their unguarded bundles. What is finished is kept in the
out folder and not done again, and neither are the examples that were made (out/cloudleak/made; delete them at the end); --minutes stops before a
trial that would begin later. Writes cloudleak.json and cloudleak.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import cloudleak_targets as targets
from garrison.attacks import measures
from garrison.attacks.base import Attack, Trial
from garrison.attacks.extraction import malicious
from garrison.attacks.extraction.cloudleak import CloudLeak
from garrison.attacks.extraction.finetune import Kept

USD_A_QUERY = 0.001
MOST_SEEDS = 100
SMALL = {"network": "small-cnn", "reused": 2, "steps": 10}
LITE0 = {"side": 64, "layer": 8, "steps": 10, "candidates": 1.5}
RANDOM = {"examples": "random", "sampling": "random"}
MARGIN = {"examples": "random", "sampling": "margin"}
FOOL = {"examples": "featurefool"}
CARLINI = SMALL | {"examples": "cw", "steps": 20}
SLIDES = """The slides, Microsoft's services: traffic signs at 430/1,290/2,150 queries, random 13.1/58.1/89.9 % of the original's accuracy,
FeatureFool 20.5/85.9/97.6 %; flowers at 510/1,530/2,550, random 29.0/70.6/87.4 %, FeatureFool 35.1/79.8/97.2 %."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One kind of example on one target."""

    target: str
    name: str
    budgets: tuple[int, ...]
    parameters: dict[str, Any]

    def attack(self) -> Attack:
        return CloudLeak(**self.parameters)


@dataclass(frozen=True, slots=True)
class Figure:
    """What one trial got; `victim` is the accuracy of the model itself on the same rows, or None where nobody labelled them."""

    target: str
    arm: str
    budget: int
    seed: int
    queries: int
    accuracy: float | None
    victim: float | None
    fidelity: float
    total_variation: float
    seconds: float
    told: dict[str, float]
    attack: str
    constant_total_variation: float = 0.0


class OnDisk(Kept):
    """Examples in files, so that a run that was killed in the middle of a trial does not make them again."""

    def __init__(self, folder: Path) -> None:
        super().__init__(64 * 2**20)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: bytes) -> torch.Tensor | None:
        found, path = super().get(key), self._folder / f"{key.hex()}.npy"
        return torch.as_tensor(np.load(path)) if found is None and path.exists() else found

    def put(self, key: bytes, value: torch.Tensor) -> None:
        super().put(key, value)
        new = self._folder / f"{key.hex()}.new.npy"
        np.save(new, value.numpy())
        new.replace(self._folder / f"{key.hex()}.npy")


ARMS = {
    "fashion": (
        Arm("fashion", "random sampling", (430, 1290, 2150), SMALL | RANDOM),
        Arm("fashion", "FeatureFool", (430, 1290, 2150), SMALL | FOOL),
    ),
    "others": (
        Arm("fashion", "random pictures, margin sampling", (1290,), SMALL | MARGIN),
        Arm("fashion", "C&W", (1290,), CARLINI),
    ),
    "faces": (
        Arm("faces", "random sampling", (680, 1360, 2000), SMALL | RANDOM),
        Arm("faces", "FeatureFool", (680, 1360, 2000), SMALL | FOOL),
    ),
    "lite0": (
        Arm("faces", "random sampling, EfficientNet-Lite0", (680,), LITE0 | RANDOM),
        Arm("faces", "FeatureFool, EfficientNet-Lite0", (680,), LITE0 | FOOL),
    ),
    "nsfw": (
        Arm("nsfw", "random sampling, EfficientNet-Lite0", (200,), LITE0 | RANDOM | {"first": 50, "round_size": 50}),
        Arm("nsfw", "FeatureFool, EfficientNet-Lite0", (200,), LITE0 | FOOL | {"first": 50, "round_size": 50}),
    ),
}


def figure_of(arm: Arm, trial: Trial, victim: float | None, constant: float) -> Figure:
    means = {name: float(rows.mean()) for name, rows in trial.scores.items()}
    return Figure(
        target=arm.target,
        arm=arm.name,
        budget=trial.budget,
        seed=trial.seed,
        queries=trial.queries,
        accuracy=means.get("clone_accuracy"),
        victim=victim,
        fidelity=means["fidelity"],
        total_variation=means["total_variation"],
        seconds=trial.seconds,
        told=dict(trial.told),
        attack=trial.attack,
        constant_total_variation=constant,
    )


def work(names: list[str], seeds: int) -> Iterator[tuple[Arm, int, int]]:
    """Seed by seed and arm by arm, budgets from the smallest: a larger one finds in memory what a smaller one made."""
    for name in names:
        for seed in range(seeds):
            for arm in ARMS[name]:
                for budget in arm.budgets:
                    yield arm, seed, budget


def key_of(arm: Arm, seed: int, budget: int) -> str:
    return f"{arm.target}|{arm.name}|{budget}|{seed}|{arm.attack()!r}"


def run(out: Path, names: list[str], seeds: int, minutes: float) -> dict[str, Figure]:
    """All figures that are there; new ones are written as they come."""
    kept = out / "figures.json"
    found = {key: Figure(**value) for key, value in json.loads(kept.read_text()).items()} if kept.exists() else {}
    begun = time.monotonic()
    opened: dict[str, targets.Opened] = {}
    for arm, seed, budget in work(names, seeds):
        key = key_of(arm, seed, budget)
        if key in found:
            continue
        if time.monotonic() - begun > 60 * minutes:
            print("stopped: begin again to go on")
            break
        if arm.target not in opened:
            opened[arm.target] = targets.open_target(arm.target, out)
        target = opened[arm.target]
        trial = arm.attack().carry_out(target.oracle, target.knowledge, target.exam, budget=budget, seed=seed)
        found[key] = figure_of(arm, trial, target.accuracy, target.constant_total_variation)
        kept.write_text(json.dumps({k: asdict(v) for k, v in found.items()}, indent=1))
        print(
            f"{arm.target}, {arm.name}, {budget}, seed {seed}: {found[key].fidelity:.4f} {trial.seconds:.0f} s",
            flush=True,
        )
    return found


def rows_of(found: dict[str, Figure], names: list[str], seeds: int) -> list[dict[str, Any]]:
    """One row a target, arm and budget over all its seeds; the interval is Student's, where there are three or more."""
    rows = []
    for name in names:
        for arm in ARMS[name]:
            for budget in arm.budgets:
                keys = [key_of(arm, seed, budget) for seed in range(seeds)]
                got = [found[key] for key in keys if key in found]
                if got:
                    rows.append(_row(arm, budget, got))
    return rows


def _row(arm: Arm, budget: int, got: list[Figure]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "target": arm.target,
        "arm": arm.name,
        "budget": budget,
        "seeds": len(got),
        "queries": max(f.queries for f in got),
        "usd": max(f.queries for f in got) * USD_A_QUERY,
        "seconds": float(np.mean([f.seconds for f in got])),
        "victim": got[0].victim,
        "fidelity": _interval([f.fidelity for f in got]),
        "total_variation": float(np.mean([f.total_variation for f in got])),
        "constant_total_variation": got[0].constant_total_variation,
        "attack": got[0].attack,
        "told": got[0].told,
    }
    known = [f.accuracy for f in got if f.accuracy is not None]
    if known and got[0].victim:
        row["accuracy"] = _interval(known)
        row["share"] = float(np.mean(known)) / got[0].victim
    return row


def _interval(values: list[float]) -> tuple[float, float | None, float | None]:
    if len(values) < measures.FEWEST_SEEDS:
        return float(np.mean(values)), None, None
    found = measures.over_seeds(np.array(values))
    return found.value, found.low, found.high


def differences(found: dict[str, Figure], names: list[str], seeds: int) -> list[dict[str, Any]]:
    """FeatureFool less random sampling, seed by seed, in points of the clone's accuracy (of fidelity where nobody labelled the rows)."""
    rows = []
    for name in names:
        if name == "others":
            continue
        plain, fool = ARMS[name][:2]
        for budget in plain.budgets:
            pairs = [(key_of(fool, s, budget), key_of(plain, s, budget)) for s in range(seeds)]
            there = [(found[a], found[b]) for a, b in pairs if a in found and b in found]
            if there:
                mean, low, high = _interval([100 * (_graded(a) - _graded(b)) for a, b in there])
                row = {"target": plain.target, "arm": fool.name, "budget": budget, "seeds": len(there)}
                rows.append(row | {"points": mean, "low": low, "high": high})
    return rows


def _graded(figure: Figure) -> float:
    return figure.fidelity if figure.accuracy is None else figure.accuracy


def _shown(value: tuple[float, float | None, float | None]) -> str:
    mean, low, high = value
    return f"{mean:.2%}" if low is None or high is None else f"{mean:.2%} ({low:.2%} to {high:.2%})"


def page(rows: list[dict[str, Any]], gaps: list[dict[str, Any]]) -> str:
    lines = [
        "| target | examples | queries | price | accuracy | of the original's | fidelity | seeds | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        accuracy = _shown(r["accuracy"]) if "accuracy" in r else "-"
        share = f"{r['share']:.1%} of {r['victim']:.2%}" if "share" in r else "-"
        lines.append(
            f"| {r['target']} | {r['arm']} | {r['queries']:,} | ${r['usd']:.2f} | {accuracy} | {share} | {_shown(r['fidelity'])} | "
            f"{r['seeds']} | {r['seconds']:.0f} |"
        )
    lines += ["", "| target | FeatureFool less random sampling, points | budget | seeds |", "|---|---|---|---|"]
    for g in gaps:
        span = "no interval" if g["low"] is None else f"{g['low']:+.2f} to {g['high']:+.2f}"
        lines.append(f"| {g['target']}, {g['arm']} | {g['points']:+.2f} ({span}) | {g['budget']:,} | {g['seeds']} |")
    return "\n".join([*lines, "", SLIDES, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/cloudleak"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default=",".join(ARMS))
    parser.add_argument("--minutes", type=float, default=60.0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    malicious.MADE = OnDisk(given.out / "made")
    names = given.only.split(",")
    found = run(given.out, names, given.seeds, given.minutes)
    rows, gaps = rows_of(found, list(ARMS), MOST_SEEDS), differences(found, list(ARMS), MOST_SEEDS)
    (given.out / "cloudleak.json").write_text(json.dumps({"rows": rows, "differences": gaps}, indent=1))
    (given.out / "cloudleak.md").write_text(page(rows, gaps))
    print(page(rows, gaps))


if __name__ == "__main__":
    main()
