"""What transfer-set and equation thieves get of real undefended models, trial by trial: the figures in docs/attacks.

    python -m benchmarks.thieves [--out out/thieves] [--only adaptive,jbda,toolbox,active,race,trees,alike] [--seeds 3] [--minutes 8]

Target of the transfer sets: the undefended Fashion-MNIST model of `python -m benchmarks.run` (out/bench/seed-0), asked through its bundle.
The thief has pictures that it was not trained on. Tables: models of scikit-learn, sealed, fitted here. What is finished is kept in the out
folder and not done again; --minutes stops before a trial that would begin later. Needs the `dev` extra: models and the toolbox of the tests.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from benchmarks.cloudleak_targets import ROOT
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier
from tests.attacks.extraction import trees
from tests.attacks.extraction.sealed import Sealed, fit, race, sealed
from tests.attacks.extraction.sealed import stolen as stolen_table

from garrison import datasets
from garrison.attacks import measures
from garrison.attacks.base import Attack, Trial
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.activethief import ActiveThief, Strategy
from garrison.attacks.extraction.copycat import Copycat
from garrison.attacks.extraction.equation_solving import EquationSolving
from garrison.attacks.extraction.jbda import Jbda, JbdaTargeted
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.extraction.knockoff_adaptive import KnockoffAdaptive
from garrison.attacks.extraction.network_equations import NetworkEquations
from garrison.attacks.extraction.path_finding import PathFinding
from garrison.attacks.extraction.path_finding_missing import PathFindingMissing
from garrison.attacks.extraction.seeds_alone import SeedsAlone
from garrison.attacks.extraction.tree_service import TreeService
from garrison.attacks.knowledge import Knowledge, Labelled
from garrison.audit.targets import ServiceTarget, unguarded
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerPublicKey
from garrison.types import Array

LEAVES = 26
Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Job:
    """One trial: `do` is given the seed and the out folder."""

    name: str
    do: Callable[[int, Path], Metrics]


@dataclass(frozen=True, slots=True, eq=False)
class Clothes:
    """The model, what clones are measured on, and 5,000 pictures that it was not trained on, with their classes."""

    victim: ServiceTarget
    exam: Exam
    x: Array
    y: Array

    def labelled(self, per_class: int, seed: int) -> Labelled:
        rng = np.random.default_rng([7, seed])
        rows = np.concatenate([rng.choice(np.flatnonzero(self.y == c), per_class, replace=False) for c in range(10)])
        return Labelled(self.x[rows], self.y[rows].astype(np.int64))


@cache
def clothes() -> Clothes:
    folder = ROOT / "out" / "bench" / "seed-0"
    if not (folder / "plain").exists():
        raise SystemExit(f"there is no {folder / 'plain'}: run python -m benchmarks.run --seeds 1 first")
    target = unguarded(verify(folder / "plain", [OwnerPublicKey.from_pem((folder / "owner.pub").read_bytes())]))
    test = datasets.load("fashion-mnist", "test")
    if test.y is None:
        raise SystemExit("the test rows have no classes")
    with np.load(folder / "training" / "calibration.npz") as held:
        x, y = held["x"], held["y"]
    return Clothes(target, Exam(test.x, test.y.astype(np.int64), target.raw(test.x)), x, y)


@cache
def pile(name: str) -> Array:
    """Surrogate rows: "digits", "photographs", or "mixed", where one row in five is of the model's own kind."""
    if name == "photographs":
        return datasets.load("photo-patches", "train").x
    digits = datasets.load("mnist", "train").x
    return digits if name == "digits" else np.concatenate([digits[:20_000], clothes().x])


def shown(trial: Trial, *names: str) -> Metrics:
    return {name: float(trial.scores[name].mean()) for name in names} | {"queries": float(trial.queries)}


def transfer(name: str, attack: Attack, budget: int, known: Callable[[int], Knowledge]) -> Job:
    def do(seed: int, out: Path) -> Metrics:
        del out
        world = clothes()
        trial = attack.carry_out(world.victim, known(seed), world.exam, budget=budget, seed=seed)
        return shown(trial, "clone_accuracy", "fidelity")

    return Job(name, do)


def surrogate(name: str) -> Callable[[int], Knowledge]:
    return lambda _: Knowledge(pile(name))


def own(seed: int) -> Knowledge:
    """150 pictures with their classes, 15 of each."""
    return Knowledge(clothes().x[:0], labelled=clothes().labelled(15, seed))


def adaptive() -> Iterator[Job]:
    for name in ("mixed", "photographs", "digits"):
        for attack in (Knockoff(), KnockoffAdaptive()):
            yield transfer(f"{attack.name}, {name}, 2,000", attack, 2000, surrogate(name))


def jbda() -> Iterator[Job]:
    for attack, budget in ((SeedsAlone(), 150), (Jbda(), 150), (Jbda(), 2400), (JbdaTargeted(), 2400)):
        yield transfer(f"{attack.name}, {budget:,}", attack, budget, own)


def toolbox() -> Iterator[Job]:
    """Ours and the adversarial-robustness-toolbox's: the same rows, network, number of passes and budget."""

    def theirs(*, labels: bool) -> Callable[[int, Path], Metrics]:
        def do(seed: int, out: Path) -> Metrics:
            del out
            from tests.attacks.toolbox import stolen

            world = clothes()
            clone, asked = stolen(world.victim, world.x, 2500, seed, labels=labels)
            named, reference = clone(world.exam.x).argmax(axis=1), np.asarray(world.exam.reference).argmax(axis=1)
            right = {"clone_accuracy": named == world.exam.y, "fidelity": named == reference}
            return {name: float(np.mean(values)) for name, values in right.items()} | {"queries": float(asked)}

        return do

    for attack in (Copycat(), Knockoff()):
        name = f"{attack.name}, own kind, 2,500"
        yield transfer(name, attack, 2500, lambda _: Knowledge(clothes().x))
        yield Job(f"{name}, the toolbox's", theirs(labels=isinstance(attack, Copycat)))


def active() -> Iterator[Job]:
    for strategy in Strategy:
        attack = ActiveThief(strategy=strategy)
        yield transfer(f"activethief, {strategy}, photographs, 2,000", attack, 2000, surrogate("photographs"))


@cache
def race_model(kind: str, out: Path) -> Sealed:
    """Softmax regression or a network with 20 hidden units, in double precision; fitted anew in each process."""
    x, y = race("train")
    mlp = MLPClassifier((20,), activation="tanh", max_iter=20, random_state=0)
    folder = out / f"race-{kind}-{time.time_ns()}"
    return sealed(fit(LogisticRegression(max_iter=300) if kind == "softmax" else mlp, x, y), x, y, folder)


def equations() -> Iterator[Job]:
    """Unknowns: 530 of softmax regression, 2,225 of the network; 1.0 and 5.0 questions for each."""
    network = NetworkEquations(activation="tanh", restarts=1, steps=800)
    cases: tuple[tuple[str, Attack, tuple[int, int]], ...] = (
        ("softmax", EquationSolving(), (530, 2650)),
        ("network", network, (2225, 11_125)),
    )
    for kind, attack, budgets in cases:
        for budget in budgets:

            def do(seed: int, out: Path, kind: str = kind, attack: Attack = attack, budget: int = budget) -> Metrics:
                target, (asked, _) = race_model(kind, out).target, race("test")
                trial = stolen_table(attack, target, target, asked, asked[:3000], budget, seed=seed, uniform=10_000)
                return shown(trial, "fidelity", "uniform_fidelity", "total_variation")

            yield Job(f"{attack.name}, Adult/Race {kind}, {budget:,}", do)


def forest() -> Iterator[Job]:
    """German credit, 26 leaves."""
    kinds: tuple[tuple[str, bool, type, bool], ...] = (
        ("numbers", False, np.float32, False),
        ("categories", True, np.float32, False),
        ("whole numbers", False, np.int64, False),
        ("numbers, missing", False, np.float32, True),
        ("categories, missing", True, np.float32, True),
    )
    for name, categories, dtype, missing in kinds:

        def do(
            seed: int,
            out: Path,
            categories: bool = categories,  # noqa: FBT001
            dtype: type = dtype,
            missing: bool = missing,  # noqa: FBT001
        ) -> Metrics:
            del out
            data = trees.german()
            target = trees.tree_service(data, LEAVES, categories=categories, missing=missing, dtype=dtype)
            attack = PathFindingMissing() if missing else PathFinding()
            known = data.categories if categories else None
            trial = trees.steal(target, data.x.astype(dtype), attack, categories=known, seed=seed)
            return {"exact": float(trees.exact(trial)), "questions a leaf": trial.queries / LEAVES}

        yield Job(f"path finding, {name}", do)


def alike() -> Iterator[Job]:
    """Trees of 20 leaves that answer with ones and zeros, so that leaves cannot be told apart; features as they come, unscaled."""
    for name in ("breast-cancer", "wine", "german-credit", "unscaled"):
        for kind, attack in (("", PathFinding()), (", unchecked", PathFinding(proof=0))):

            def do(seed: int, out: Path, name: str = name, attack: PathFinding = attack) -> Metrics:
                del out
                x, y = trees.table(name)
                model = DecisionTreeClassifier(max_leaf_nodes=20, random_state=0).fit(x, y)
                target = TreeService(model, x.min(axis=0), x.max(axis=0), missing=False, decimals=0)
                trial = trees.steal(target, x, attack, seed=seed)
                told = {"at most wrong, as it says": trial.told["answered otherwise, drawn evenly, at most"]}
                found = shown(trial, "fidelity", "uniform_fidelity")
                return found | {"questions a leaf": trial.queries / target.leaves} | told

            yield Job(f"path finding, answers alike, {name}{kind}", do)


GROUPS: dict[str, Callable[[], Iterator[Job]]] = {
    "adaptive": adaptive,
    "jbda": jbda,
    "toolbox": toolbox,
    "active": active,
    "race": equations,
    "trees": forest,
    "alike": alike,
}


def work(names: list[str], seeds: int) -> Iterator[tuple[Job, int]]:
    for name in names:
        jobs = list(GROUPS[name]())
        yield from ((job, seed) for seed in range(seeds) for job in jobs)


def run(out: Path, names: list[str], seeds: int, minutes: float) -> dict[str, Metrics]:
    """All figures that are there, by job and seed; new ones are written as they come."""
    kept, begun = out / "figures.json", time.monotonic()
    found: dict[str, Metrics] = json.loads(kept.read_text()) if kept.exists() else {}
    for job, seed in work(names, seeds):
        key = f"{job.name}, seed {seed}"
        if key in found:
            continue
        if time.monotonic() - begun > 60 * minutes:
            print("stopped: begin again to go on")
            break
        started = time.process_time()
        found[key] = job.do(seed, out) | {"seconds of a processor": time.process_time() - started}
        kept.write_text(json.dumps(found, indent=1))
        print(key, {name: round(value, 4) for name, value in found[key].items()}, flush=True)
    return found


def _over_seeds(values: list[float]) -> str:
    each = ", ".join(f"{v:.4g}" for v in values)
    if len(values) < measures.FEWEST_SEEDS:
        return f"{np.mean(values):.4g} ({each})"
    estimate = measures.over_seeds(np.array(values))
    return f"{estimate.value:.4g}, {estimate.low:.4g} to {estimate.high:.4g} ({each})"


def page(found: dict[str, Metrics], names: list[str], seeds: int) -> str:
    """One line a job and figure: mean, Student's 95 % interval over seeds, each seed; then what one arm has more than the other."""
    lines = []
    for name in names:
        jobs = list(GROUPS[name]())
        got = {job.name: [found[k] for s in range(seeds) if (k := f"{job.name}, seed {s}") in found] for job in jobs}
        for job, trials in got.items():
            lines += [f"{job}: {m}: {_over_seeds([t[m] for t in trials])}" for m in (trials[0] if trials else ())]
        if name in ("adaptive", "toolbox"):
            whole = [(a.name, b.name) for a, b in zip(jobs[::2], jobs[1::2], strict=True)]
            for first, second in whole:
                for metric in ("clone_accuracy", "fidelity"):
                    pairs = zip(got[first], got[second], strict=False)
                    more = [100 * (b[metric] - a[metric]) for a, b in pairs]
                    if more:
                        lines.append(f"{second}, less {first}: points of {metric}: {_over_seeds(more)}")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/thieves"))
    parser.add_argument("--only", default=",".join(GROUPS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    names = given.only.split(",")
    found = run(given.out, names, given.seeds, given.minutes)
    text = page(found, names, given.seeds)
    (given.out / "thieves.txt").write_text(page(found, list(GROUPS), given.seeds))
    print(text)


if __name__ == "__main__":
    main()
