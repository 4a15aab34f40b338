"""The owner's side of a claim: which candidates are marked, and what the service answers them without marks.

Nothing is kept of what callers asked. The key says of any input whether it would be marked, so the owner brings *candidates*: inputs that the
suspect's maker may have asked (recorded requests, or public data of the kind). Candidates that were never asked only dilute the evidence.

The key is fixed by the signed bundle, which commits to it: it cannot be chosen after the suspect was seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from garrison.audit.targets import changed
from garrison.bundle.reader import VerifiedBundle
from garrison.bundle.secret import check_secret
from garrison.errors import ConfigError, InputError
from garrison.guard.base import RecordDefense, RowDefense
from garrison.guard.defenses.watermark import Watermark
from garrison.guard.pipeline import load_defense
from garrison.types import Array, DefenseSpec, Phase

RELEASE = DefenseSpec(name="release")
FEWEST_MARKS = 5
"""With fewer marked candidates no claim could hold at any useful level."""
_SLICE = 512


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Inputs with the owner's marks. Of inputs that are marked alike for being nearly the same, one is kept.

    Attributes:
        x: (rows, *shape).
        rows: (rows,), which of the given ones they are, rising.
        numbers: (rows,), 0 for none, else by how many classes the answer is moved on.
        served: (rows,), the class that is served without marks.
        classes: of the model.
        share: of inputs that the rule marks.
        given: rows before near-duplicates were left out.
    """

    x: Array
    rows: npt.NDArray[np.intp]
    numbers: npt.NDArray[np.int64]
    served: npt.NDArray[np.int64]
    classes: int
    share: float
    given: int

    def __len__(self) -> int:
        return len(self.x)

    @property
    def marked(self) -> int:
        return int(np.count_nonzero(self.numbers))

    def part(self, rows: npt.NDArray[np.intp]) -> Candidates:
        """Some of them, by their place here."""
        x, given, numbers, served = self.x[rows], self.rows[rows], self.numbers[rows], self.served[rows]
        return Candidates(x, given, numbers, served, self.classes, self.share, self.given)

    def draw(self, most: int, seed: int) -> Candidates:
        """At most so many to ask: marked ones first, up to half; then others, drawn evenly."""
        rng = np.random.default_rng(seed)
        hits, others = np.flatnonzero(self.numbers), np.flatnonzero(self.numbers == 0)
        chosen = rng.permutation(hits)[: max(most // 2, most - len(others))]
        rows = np.sort(np.concatenate([chosen, rng.permutation(others)[: most - len(chosen)]]))
        return self.part(rows)


def mark_candidates(bundle: VerifiedBundle, key: bytes, x: Array) -> Candidates:
    """Look up the marks of candidates.

    Args:
        bundle: of the watermarked service.
        key: its misinformation key.
        x: (rows, *shape), within the model's ranges.

    Raises:
        ConfigError: the bundle carries no watermark, or its model is on another server or takes several inputs.
        KeyFileError: the key is not the one that the bundle was sealed with.
        InputError: candidates that do not fit the model, or too few marked ones among them.
    """
    manifest, facts = bundle.manifest, bundle.manifest.facts()
    mark = next((load_defense(s) for s in manifest.guard if s.name == Watermark.name and not s.shadow), None)
    if not isinstance(mark, Watermark):
        raise ConfigError(f"{manifest.name!r} was sealed without a watermark: nothing can be claimed by it")
    if manifest.upstream is not None or len(facts.inputs) != 1:
        raise ConfigError("a claim is made from a bundle that holds its model, with one input tensor")
    check_secret(manifest, key, "--secret")
    (spec,) = facts.inputs
    rows = fitted(x, spec.shape, spec.dtype)
    flat = rows.reshape(len(rows), -1)
    bad = ~(((flat >= spec.low.reshape(-1)) & (flat <= spec.high.reshape(-1))) | (flat != flat)).all(axis=1)
    if bad.any():
        raise InputError(f"{bad.sum()} candidates lie outside the range that the model takes; leave them out")
    marker = mark.marks(facts, key)
    different = marker.first_of_each_cell({spec.name: rows})
    kept = rows[different]
    numbers = marker({spec.name: kept})
    if np.count_nonzero(numbers) < FEWEST_MARKS:
        raise InputError(
            f"{np.count_nonzero(numbers)} of {len(kept)} different candidates are marked, at least {FEWEST_MARKS} are "
            f"needed: with marks on {mark.share:.2%} of all inputs that takes some {FEWEST_MARKS / mark.share:,.0f}"
        )
    served = _served(bundle, key, kept)
    return Candidates(kept, different, numbers, served, manifest.outputs, mark.share, len(rows))


def fitted(x: Array, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """Rows in a model's shape; the same values in another shape are taken too.

    Raises:
        InputError: rows of another size, or none.
    """
    if not len(x) or x[0].size != int(np.prod(shape)):
        raise InputError(f"the model takes rows of shape {shape}; the candidates are {x.shape}")
    return np.ascontiguousarray(x.reshape(len(x), *shape), dtype=dtype)


def _served(bundle: VerifiedBundle, key: bytes, x: Array) -> npt.NDArray[np.int64]:
    """First classes, as the chain answers a caller whom nothing is held against, without marks."""
    chain = (*(spec for spec in bundle.manifest.guard if _looks_at_inputs(spec)), RELEASE)
    target = changed(bundle, key, chain, "without its watermark, to see what would be answered")
    parts = [target.query(x[i : i + _SLICE]).labels for i in range(0, len(x), _SLICE)]
    return np.concatenate(parts)


def _looks_at_inputs(spec: DefenseSpec) -> bool:
    """Whether a defense decides what an input is answered, whoever asks."""
    defense = load_defense(spec)
    if isinstance(defense, RecordDefense) or not isinstance(defense, RowDefense):
        return False
    return defense.in_graph and defense.phase is not Phase.ADMIT
