"""The watermark on clones, on models that never saw it, and against thieves who try to lose it; Fashion-MNIST, 1 % of all inputs marked.

    python -m benchmarks.watermark [--out out/watermark] [--seeds 3] [--thieves 1] [--minutes 8]

The served model is that of `python -m benchmarks.run` (out/bench/seed-0/hardened), sealed once a seed under an owner's key of its own, with misinformation.
The thief asks images of the test split, its clone is graded on 5,000 others. What is trained is kept in the out folder and not
trained again; --minutes stops before a training that would begin later. Prints the tables of docs/defenses/watermark.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from garrison import datasets
from garrison.attacks.exam import Clone
from garrison.attacks.extraction import clones
from garrison.attacks.extraction.knockoff import Knockoff, one_hot
from garrison.attacks.oracle import OracleFacts
from garrison.audit.ownership.owner import Candidates, mark_candidates
from garrison.audit.ownership.statistics import Agreement, agreement, holm
from garrison.audit.targets import guarded, unguarded
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.secret import read_secret, secret_path
from garrison.crypto.owner import OwnerKey
from garrison.guard.defenses.watermark import Watermark
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_hardened
from garrison.types import Array, FloatArray

BENCH = Path("out/bench/seed-0")
SHARE, INDEPENDENT, DECOYS = 0.01, 20, 50
LEVEL = 1e-3
RECIPE = Knockoff(batch=256, learning_rate=1e-2, weight_decay=0.1).recipe
"""The one that the thieves of the guards' tables use."""
OTHERS = 5000
CLONES = ((2400, True), (10_000, True), (2400, False), (10_000, False))
NOISE = 0.05
"""Of a thief who asks each image three times, slightly changed."""


class LateError(Exception):
    """The time is over; what is trained is kept."""


@dataclass
class World:
    """The data, the sealed services and what was trained so far."""

    out: Path
    end: float

    @cached_property
    def asked(self) -> Array:
        return datasets.load("fashion-mnist", "test").x.reshape(-1, 1, 28, 28).astype(np.float32)

    @cached_property
    def truth(self) -> Array:
        y: Array = np.asarray(datasets.load("fashion-mnist", "test").y)
        return y

    @cached_property
    def own(self) -> tuple[Array, Array]:
        """Labelled images that the thief, or an honest maker, has."""
        with np.load(BENCH / "training" / "train.npz") as found:
            return found["x"], found["y"]

    @cached_property
    def exam(self) -> Array:
        with np.load(BENCH / "training" / "calibration.npz") as found:
            x: Array = found["x"]
            return x

    @cached_property
    def exam_served(self) -> Array:
        return unguarded(self.bundle(0)[0]).query(self.exam).labels

    @cached_property
    def facts(self) -> OracleFacts:
        return guarded(*self.bundle(0)).facts

    def bundle(self, seed: int, *, marked: bool = True) -> tuple[VerifiedBundle, bytes]:
        """The service of a seed, sealed where it is not yet, and its key."""
        path = self.out / f"bundle-{seed}{'' if marked else '-unmarked'}"
        pem = self.out / f"owner-{seed}.key"
        if not pem.exists():
            pem.write_bytes(OwnerKey.generate().to_pem())
        owner = OwnerKey.from_pem(pem.read_bytes())
        if not path.exists():
            options = SealOptions(name="fashion", watermark=Watermark(share=SHARE) if marked else None)
            seal(draft_from_hardened(BENCH / "hardened", options), owner, path)
        return verify(path, [owner.public]), read_secret(secret_path(path))

    def answers(self, seed: int, x: Array, *, marked: bool = True) -> FloatArray:
        """What the service of a seed answers."""
        target = guarded(*self.bundle(seed, marked=marked))
        parts = [target.query(x[i : i + 500]).probabilities for i in range(0, len(x), 500)]
        return np.concatenate([part for part in parts if part is not None])

    def candidates(self, seed: int) -> Candidates:
        return mark_candidates(*self.bundle(seed), self.asked)

    def model(self, name: str, train: Callable[[], Clone]) -> Kept:
        """What a model answers to the asked images and in the exam; trained where it is not kept yet."""
        file = self.out / f"{name}.npz"
        if not file.exists():
            if time.monotonic() > self.end:
                raise LateError(name)
            begun, clone = time.process_time(), train()
            other = self.own[0][:OTHERS] if name.startswith("clone-soft-10000") else self.asked[:1]
            np.savez(file, asked=clone(self.asked), exam=clone(self.exam).argmax(axis=1), other=clone(other))
            print(f"{name}: {time.process_time() - begun:.0f} s", flush=True)
        with np.load(file) as found:
            return Kept(found["asked"], found["exam"], found["other"])


@dataclass(frozen=True)
class Kept:
    """A model's probabilities on the asked images, its classes in the exam, and of a clone its probabilities on `OTHERS` other images."""

    asked: FloatArray
    exam: Array
    other: FloatArray


def order(seed: int) -> Array:
    """In which the thief of a seed asks the images."""
    return np.random.default_rng(seed).permutation(10_000)


def learn(world: World, x: Array, p: FloatArray, seed: int) -> Clone:
    return clones.train_clone(x, p, world.facts, RECIPE, seed)


def hard(p: FloatArray) -> FloatArray:
    return one_hot(p.argmax(axis=1), p.shape[1])


def clone_of(world: World, queries: int, seed: int, *, soft: bool = True, marked: bool = True) -> Kept:
    """A knockoff clone of the first images of the thief's order."""

    def train() -> Clone:
        x = world.asked[order(seed)[:queries]]
        p = world.answers(seed, x, marked=marked)
        return learn(world, x, p if soft else hard(p), seed)

    return world.model(f"clone-{'soft' if soft else 'labels'}-{queries}-{seed}{'' if marked else '-unmarked'}", train)


def independent(world: World, i: int) -> Kept:
    """A model of somebody else: its own rows and labels. Every fourth has the very images of the candidates, rightly labelled."""

    def train() -> Clone:
        rng = np.random.default_rng(1000 + i)
        x, y = (world.asked, world.truth) if i % 4 == 3 else world.own
        rows = rng.permutation(len(x))[: (2000, 3000, 4000, 4000)[i % 4]]
        recipe = replace(RECIPE, epochs=(6, 8, 6, 12)[i % 4], fewest_steps=40)
        return clones.train_clone(x[rows], one_hot(y[rows], 10), world.facts, recipe, 1000 + i)

    return world.model(f"independent-{i}", train)


def voted(world: World, seed: int) -> Kept:
    """Two halves judge each other: answers that the clone of the other half contradicts are left out, then it learns from the rest."""

    def train() -> Clone:
        x, p = world.asked[order(seed)], world.answers(seed, world.asked[order(seed)])
        kept = np.zeros(len(x), dtype=np.bool_)
        for part in (slice(0, None, 2), slice(1, None, 2)):
            judge = learn(world, x[part], p[part], seed)
            others = np.setdiff1d(np.arange(len(x)), np.arange(len(x))[part])
            kept[others] = judge(x[others]).argmax(axis=1) == p[others].argmax(axis=1)
        return learn(world, x[kept], p[kept], seed)

    return world.model(f"voted-10000-{seed}", train)


def thrice(world: World, seed: int) -> Kept:
    """Each image asked three times with noise; the class that was named most often is learnt. 30,000 queries."""

    def train() -> Clone:
        rng, x = np.random.default_rng(seed), world.asked[order(seed)]
        total = np.zeros((len(x), 10))
        for _ in range(3):
            noisy = np.clip(x + rng.normal(0, NOISE, x.shape), 0, 1).astype(np.float32)
            total += hard(world.answers(seed, noisy))
        return learn(world, x, hard(total), seed)

    return world.model(f"thrice-30000-{seed}", train)


def second_hand(world: World, seed: int) -> Kept:
    """A clone of the clone: it learns the first one's answers to other images."""

    def train() -> Clone:
        return learn(world, world.own[0][:OTHERS], clone_of(world, 10_000, seed).other, seed + 1)

    return world.model(f"second-hand-{seed}", train)


def tuned(world: World, seed: int) -> Kept:
    """The clone of 10,000 answers, trained on with 2,000 rightly labelled images of the thief's own."""

    def train() -> Clone:
        generator = torch.Generator().manual_seed(seed)
        x, (own, y) = world.asked[order(seed)], world.own
        scale = clones.scaling(x, world.facts)
        net: torch.nn.Module = clones.fresh(world.facts, generator)
        few = replace(RECIPE, epochs=10, learning_rate=1e-3)
        for rows, p, recipe in ((x, world.answers(seed, x), RECIPE), (own[:2000], one_hot(y[:2000], 10), few)):
            goals = torch.as_tensor(p.astype(np.float32))
            net = clones.descend(net, scale(torch.as_tensor(rows)), goals, recipe, generator)
        whole = torch.nn.Sequential(scale, net).eval()
        return lambda rows: clones.answer(whole, rows)

    return world.model(f"tuned-10000-{seed}", train)


def outcome(found: Candidates, rows: Array, model: Kept, *, labels: bool = False) -> Agreement:
    """The test over those candidates that are among these images of the test split."""
    part = found.part(np.flatnonzero(np.isin(found.rows, rows)))
    p = model.asked[part.rows]
    return agreement(part.served, part.numbers, p.argmax(axis=1), None if labels else p, part.classes)


Line = tuple[str, Agreement, float]
"""What was tested, the counts, and how often the model agrees with the undefended one in the exam."""


def fidelity(world: World, model: Kept) -> float:
    return float((model.exam == world.exam_served).mean())


def clone_lines(world: World, seed: int) -> list[Line]:
    """Clones of one thief, tested with the images that it asked."""
    found, lines = world.candidates(seed), []
    for queries, soft in CLONES if seed == 0 else CLONES[:2]:
        model = clone_of(world, queries, seed, soft=soft)
        what = f"{queries:,} {'probabilities' if soft else 'labels'}"
        lines.append((what, outcome(found, order(seed)[:queries], model, labels=not soft), fidelity(world, model)))
    model = clone_of(world, 2400, seed)
    lines.append(("2,400 probabilities, 10,000 candidates", outcome(found, order(seed), model), fidelity(world, model)))
    return lines


def thief_lines(world: World, seed: int) -> list[Line]:
    """Thieves who try to lose the marks; 10,000 images."""
    found, rows = world.candidates(seed), order(seed)
    made = {"second hand": second_hand, "thrice": thrice, "voted": voted, "tuned": tuned}
    models = {name: make(world, seed) for name, make in made.items()}
    return [(name, outcome(found, rows, model), fidelity(world, model)) for name, model in models.items()]


def control_lines(world: World, seeds: Sequence[int]) -> list[Line]:
    """Clones that carry no marks of this key: of the service without a watermark, and of the same model under another key."""
    plain = clone_of(world, 10_000, 0, marked=False)
    lines = [("no watermark", outcome(world.candidates(0), order(0), plain), fidelity(world, plain))]
    for seed in seeds[1:]:
        other = clone_of(world, 10_000, seed)
        lines.append((f"key of seed {seed}", outcome(world.candidates(0), order(0), other), fidelity(world, other)))
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("out/watermark"))
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--thieves", type=int, default=1, help="seeds of the thieves who try to lose the marks")
    arguments.add_argument("--only", choices=["", "clones", "independent"], default="", help="train these and stop")
    arguments.add_argument("--minutes", type=float, default=480)
    chosen = arguments.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    world = World(chosen.out, time.monotonic() + 60 * chosen.minutes)
    seeds = range(chosen.seeds)
    try:
        train_all(world, seeds, chosen.thieves, chosen.only)
    except LateError as error:
        print(f"{error} is not trained yet: begin again")
        return
    if chosen.only:
        return
    models = [independent(world, i) for i in range(INDEPENDENT)]
    others = {seed: [outcome(world.candidates(seed), order(seed), model) for model in models] for seed in seeds}
    for seed in seeds:
        show(f"clones, seed {seed}", clone_lines(world, seed), others[seed])
    show_independent(world, seeds, models)
    show("controls, key of seed 0", control_lines(world, seeds), [])
    for seed in seeds[: chosen.thieves]:
        show(f"thieves, seed {seed}", thief_lines(world, seed), others[seed])


def train_all(world: World, seeds: Sequence[int], thieves: int, only: str) -> None:
    """What matters most first.

    Raises:
        LateError: the time is over.
    """
    if only != "clones":
        for i in range(INDEPENDENT):
            independent(world, i)
    if only == "independent":
        return
    for seed in seeds:
        clone_lines(world, seed)
    control_lines(world, seeds)
    for seed in seeds[:thieves]:
        thief_lines(world, seed)


def show(title: str, lines: Sequence[Line], others: Sequence[Agreement]) -> None:
    """A table; p is corrected over the model and the others, the claims against these are counted."""
    print(f"\n{title}")
    print(
        "| suspect | fidelity | marked | named | surprise | differs | p | corrected |\n|---|---|---|---|---|---|---|---|"
    )
    for what, one, agrees in lines:
        corrected = holm([one.p, *(other.p for other in others)])
        false = sum(p < LEVEL for p in corrected[1:])
        told = f", {false} FALSE" if false else ""
        surprise = "-" if one.surprise is None else f"{one.surprise:.2f}"
        print(
            f"| {what} | {agrees:.1%} | {one.marked} | {one.named} | {surprise} | {one.differing} of {one.asked} "
            f"| {one.p:.1e} | {corrected[0]:.1e}{told} |"
        )


def show_independent(world: World, seeds: Sequence[int], models: Sequence[Kept]) -> None:
    """Independent models under the keys of the seeds, and under keys drawn at random."""
    agree = [fidelity(world, model) for model in models]
    print(f"\n{len(models)} independent models, fidelity {min(agree):.1%} to {max(agree):.1%}")
    for seed in seeds:
        found = world.candidates(seed)
        p = [outcome(found, order(seed), model).p for model in models]
        claimed = sum(x < LEVEL for x in holm(p))
        print(f"key of seed {seed}: smallest p {min(p):.3f}, corrected {min(holm(p)):.3f}, claimed {claimed}")
    found, (bundle, _) = world.candidates(0), world.bundle(0)
    facts = bundle.manifest.facts()
    p = []
    for decoy in range(DECOYS):
        key = np.random.default_rng(decoy).bytes(32)
        marker = Watermark(share=SHARE).marks(facts, key)
        numbers = marker({facts.inputs[0].name: found.x})
        other = replace(found, numbers=numbers)
        p += [outcome(other, order(0), model).p for model in models]
    rates = ", ".join(f"{np.mean(np.array(p) < level):.4f} below {level}" for level in (0.05, 0.01, 0.001))
    print(f"{len(p)} tests under {DECOYS} random keys: {rates}; smallest {min(p):.1e}")


if __name__ == "__main__":
    main()
