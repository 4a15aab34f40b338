"""Recorded streams: what attackers and honest callers ask, row by row in the order asked, with what a detector sees of each row.

    python -m benchmarks.streams [--out out/bench/streams] [--only jbda,knockoff,...] [--seeds 3]

Asks the bundle of `python -m benchmarks.run` (out/bench/seed-0) in this process. Each attack is the real one of `garrison.attacks`, against
the bundle without its guard ("undefended") and with it ("defended"). Thieves have rows of the training split, honest callers of the test
split, which neither the model nor any calibration saw. What is there is not made again.

    stream = streams.load("jbda-undefended-0")     # Stream: x, projection, confidence, probability, top
    honest = streams.honest(600, seed=1)           # 600 callers of 500 rows; a share of them moves, flips or brightens its pictures
    whole = streams.blocks(stream, 20)             # account of each row: the same rows from 20 accounts

Signals are those of the undefended model under the bundle, as detectors see them. Accounts and cover are composed, not asked anew: signals
are functions of one row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from garrison import datasets
from garrison.attacks.base import Attack
from garrison.attacks.draws import uniform_rows
from garrison.attacks.exam import Loot
from garrison.attacks.knowledge import Knowledge, Labelled
from garrison.attacks.oracle import Answers, MeteredOracle
from garrison.audit.targets import ServiceTarget, guarded, unguarded
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.secret import read_secret
from garrison.crypto.owner import OwnerPublicKey
from garrison.guard.base import View
from garrison.guard.defenses.projection import Projection
from garrison.types import Array, Batch, Caller, FloatArray

ROOT = Path(__file__).parents[1]
SEED = ROOT / "out" / "bench" / "seed-0"
OUT = ROOT / "out" / "bench" / "streams"
WIDTH = 32
ROWS_A_CALLER = 500
SHIFTS = ("plain", "flip", "move", "bright", "mixed")
"""What an honest caller does to its pictures: nothing; half of them mirrored; moved by 2 or 3 pixels; 0.7 to 1.3 times as bright; one of these
drawn for each row."""
_GRADED = 2_000
_STEP = 500
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Rows in the order asked. Arrays as in `garrison.guard.detectors.base.Seen`; `x` is empty where it is not kept.

    Attributes:
        x: (rows, 1, 28, 28).
        projection: (rows, 32).
        confidence, probability, top: (rows,).
        clone_accuracy: of the clone on test rows, NaN for honest callers.
    """

    x: Array
    projection: FloatArray
    confidence: FloatArray
    probability: FloatArray
    top: npt.NDArray[np.intp]
    clone_accuracy: float = float("nan")

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: Rows | slice) -> Stream:
        x = self.x[rows] if len(self.x) else self.x
        return Stream(x, self.projection[rows], self.confidence[rows], self.probability[rows], self.top[rows])


def joined(parts: list[Stream]) -> Stream:
    """One after the other, without their inputs."""
    return Stream(
        np.zeros(0),
        np.concatenate([part.projection for part in parts]),
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.probability for part in parts]),
        np.concatenate([part.top for part in parts]),
    )


class Recorder:
    """A target that keeps what it is asked."""

    def __init__(self, target: ServiceTarget) -> None:
        self.facts = target.facts
        self.asked: list[Array] = []
        self._target = target

    def query(self, x: Array) -> Answers:
        self.asked.append(x.copy())
        return self._target.query(x)


class Eyes:
    """What a detector sees of rows: the projection, and the undefended model's answers."""

    def __init__(self, bundle: VerifiedBundle) -> None:
        self._plain = unguarded(bundle)
        self._facts = bundle.manifest.facts()
        self._projection = Projection(width=WIDTH)

    def look(self, x: Array) -> Stream:
        parts = [self._part(x[i : i + _STEP]) for i in range(0, len(x), _STEP)]
        whole = joined(parts)
        return Stream(x, whole.projection, whole.confidence, whole.probability, whole.top)

    def _part(self, x: Array) -> Stream:
        named = self._plain.named_rows(x)
        batch = Batch(named, np.zeros(len(x), dtype=np.intp), (Caller("c"),), (-1,))
        marks = self._projection.judge(np, View(batch=batch, facts=self._facts), {})
        scores = self._plain.raw(x)
        best = scores.max(axis=1)
        return Stream(np.zeros(0), marks.signals["projection"], best, best.copy(), scores.argmax(axis=1))


def opened() -> VerifiedBundle:
    return verify(SEED / "bundle", [OwnerPublicKey.from_pem((SEED / "owner.pub").read_bytes())])


def thief() -> Knowledge:
    """Digits, 5,000 rows of the model's own kind, 150 of them labelled."""
    own = datasets.load("fashion-mnist", "train")
    order = np.random.default_rng(7).permutation(len(own.x))[:5_000]
    x, y = own.x[order], np.asarray(own.y)[order].astype(np.int64)
    return Knowledge(datasets.load("mnist", "train").x, x, Labelled(x[:150], y[:150]))


def random_steps() -> Attack:
    """JBDA by a thief who knows that steps of one length are seen: each row's step is drawn, from 0.05 to 0.4."""
    from garrison.attacks.extraction.jbda import Jbda
    from garrison.attacks.extraction.students import Student
    from garrison.attacks.oracle import Labels, OracleFacts

    class RandomSteps(Jbda, frozen=True):
        def moved(
            self, student: Student, x: Array, labels: Labels, number: int, facts: OracleFacts, rng: np.random.Generator
        ) -> Array:
            length = rng.uniform(0.05, 0.4, (len(x), 1, 1, 1))
            way = -1.0 if number % 2 else 1.0
            found: Array = np.clip(x + way * length * np.sign(student.rise(x, labels)), facts.low, facts.high)
            return found.astype(x.dtype)

    return RandomSteps()


def _attack(name: str) -> tuple[Attack, int]:
    """The attack and its budget."""
    from garrison.attacks.extraction.cloudleak import CloudLeak
    from garrison.attacks.extraction.jbda import Jbda, JbdaTargeted
    from garrison.attacks.extraction.knockoff import Knockoff

    if name.startswith("jbda-step-"):
        return Jbda(step=float(name.rpartition("-")[2])), 2_400
    made: dict[str, Callable[[], tuple[Attack, int]]] = {
        "jbda": lambda: (Jbda(), 2_400),
        "jbda-random-steps": lambda: (random_steps(), 2_400),
        "jbda-tr": lambda: (JbdaTargeted(), 2_400),
        "knockoff": lambda: (Knockoff(), 5_000),
        "own": lambda: (Knockoff(), 2_500),
        "uniform": lambda: (Knockoff(), 2_500),
        "cloudleak": lambda: (CloudLeak(network="small-cnn", reused=2, steps=10), 1_000),
        "cloudleak-digits": lambda: (CloudLeak(network="small-cnn", reused=2, steps=10), 1_290),
    }
    return made[name]()


def _knowledge(name: str, target: ServiceTarget) -> Knowledge:
    has = thief()
    if name == "uniform":
        return Knowledge(uniform_rows(np.random.default_rng(3), 2_500, target.facts))
    if name == "own":
        return Knowledge(has.in_distribution if has.in_distribution is not None else has.surrogate)
    return Knowledge(has.surrogate) if name in ("knockoff", "cloudleak-digits") else has


def record(name: str, *, defended: bool, seed: int) -> Stream:
    """Carry out an attack and keep what it asked."""
    bundle = opened()
    target = guarded(bundle, read_secret(SEED / "bundle.secret")) if defended else unguarded(bundle)
    attack, budget = _attack(name)
    recorder = Recorder(target)
    found = attack.run(MeteredOracle(recorder, budget), _knowledge(name, target), np.random.default_rng(seed))
    clone = found.clone if isinstance(found, Loot) else found
    test = datasets.load("fashion-mnist", "test")
    right = clone(test.x[:_GRADED]).argmax(axis=1) == np.asarray(test.y)[:_GRADED]
    seen = Eyes(bundle).look(np.concatenate(recorder.asked))
    return Stream(seen.x, seen.projection, seen.confidence, seen.probability, seen.top, float(right.mean()))


def shifted(x: Array, how: str, rng: np.random.Generator) -> Array:
    """The same pictures as an honest caller may send them; see `SHIFTS`."""
    if how == "mixed":
        drawn = rng.integers(0, 4, len(x))
        parts = [shifted(x, kind, rng) for kind in SHIFTS[:4]]
        found: Array = np.stack(parts)[drawn, np.arange(len(x))]
        return found
    if how == "flip":
        return np.where((rng.random(len(x)) < 0.5)[:, None, None, None], x[..., ::-1], x)
    if how == "move":
        steps = rng.choice([-3, -2, 2, 3], (len(x), 2))
        axis = rng.integers(0, 3, len(x))  # down, across or both
        steps[axis == 0, 1], steps[axis == 1, 0] = 0, 0
        return np.stack([_moved(one, int(down), int(across)) for one, (down, across) in zip(x, steps, strict=True)])
    if how == "bright":
        return np.clip(x * rng.uniform(0.7, 1.3, (len(x), 1, 1, 1)), 0, 1).astype(x.dtype)
    return x


def _moved(x: Array, down: int, across: int) -> Array:
    found = np.zeros_like(x)
    height, width = x.shape[1:]
    to, start = (max(down, 0), max(across, 0)), (max(-down, 0), max(-across, 0))
    h, w = height - abs(down), width - abs(across)
    found[:, to[0] : to[0] + h, to[1] : to[1] + w] = x[:, start[0] : start[0] + h, start[1] : start[1] + w]
    return found


def make_honest(split: str, how: str) -> Stream:
    """What is seen of the rows of a split, shifted; see `load`."""
    if split == "calibration":
        with np.load(SEED / "training" / "calibration.npz") as held:
            x = held["x"]
    else:
        x = datasets.load("fashion-mnist", split).x
    seen = Eyes(opened()).look(shifted(x, how, np.random.default_rng([11, SHIFTS.index(how)])))
    return Stream(np.zeros(0), seen.projection, seen.confidence, seen.probability, seen.top)


def load(name: str) -> Stream:
    """`ATTACK-undefended-SEED`, `ATTACK-defended-SEED`, or `SPLIT-SHIFT` with split calibration (5,000 rows), test (10,000) or train."""
    with np.load(OUT / f"{name}.npz") as held:
        return Stream(
            **{f.name: held[f.name] for f in fields(Stream) if f.name != "clone_accuracy"},
            clone_accuracy=float(held["clone_accuracy"]),
        )


def honest(
    count: int, *, seed: int, split: str = "test", rows: int = ROWS_A_CALLER, kinds: tuple[str, ...] = SHIFTS
) -> list[Stream]:
    """Callers who each ask so many rows of the split, drawn without replacement; the kinds of shift take turns."""
    pools = [load(f"{split}-{how}") for how in kinds]
    rng = np.random.default_rng(seed)
    return [(pool := pools[i % len(pools)])[rng.permutation(len(pool))[:rows]] for i in range(count)]


def covered(
    attack: Stream, cover: Stream, ratio: float, rng: np.random.Generator
) -> tuple[Stream, npt.NDArray[np.bool_]]:
    """The attack with `ratio` rows of cover for each of its own, mixed evenly; and which rows are the attacker's own."""
    count = round(ratio * len(attack))
    drawn = (
        cover[rng.permutation(len(cover))[:count]] if count <= len(cover) else cover[rng.integers(0, len(cover), count)]
    )
    when = np.concatenate([np.arange(len(attack)), rng.random(count) * len(attack)])
    order = np.argsort(when, kind="stable")
    return joined([attack, drawn])[order], order < len(attack)


def turns(rows: int, accounts: int) -> Rows:
    """Account of each row: row by row in turn."""
    return np.arange(rows) % accounts


def blocks(rows: int, accounts: int) -> Rows:
    """Account of each row: one account after the other."""
    return np.arange(rows) * accounts // rows


ATTACKS = (
    "jbda",
    "knockoff",
    "uniform",
    "own",
    "cloudleak",
    "cloudleak-digits",
    "jbda-tr",
    "jbda-step-0.1",
    "jbda-step-0.05",
    "jbda-step-0.4",
    "jbda-random-steps",
)
SPLITS = ("calibration", "test", "train")


def work(seeds: int, only: list[str]) -> Iterator[tuple[str, Callable[[], Stream]]]:
    for split in SPLITS:
        for how in SHIFTS:
            if not only or split in only:
                yield f"{split}-{how}", lambda split=split, how=how: make_honest(split, how)  # type: ignore[misc]
    for seed in range(seeds):
        for name in ATTACKS:
            for defended in (False, True):
                if not only or name in only:
                    arm = "defended" if defended else "undefended"
                    yield (
                        f"{name}-{arm}-{seed}",
                        lambda n=name, d=defended, s=seed: record(n, defended=d, seed=s),  # type: ignore[misc]
                    )


def make(only: list[str], seeds: int = 3, out: Path = OUT) -> None:
    """Those that are not there yet, of these names; of all, where none is named."""
    out.mkdir(parents=True, exist_ok=True)
    for name, begin in work(seeds, only):
        path = out / f"{name}.npz"
        if path.exists():
            continue
        begun = time.monotonic()
        made = begin()
        part = path.with_suffix(".part.npz")
        np.savez(part, **{f.name: getattr(made, f.name) for f in fields(Stream)})
        part.replace(path)
        print(
            f"{name}: {len(made)} rows, clone {made.clone_accuracy:.4f}, {time.monotonic() - begun:.0f} s", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    make([name for name in given.only.split(",") if name], given.seeds, given.out)


if __name__ == "__main__":
    main()
