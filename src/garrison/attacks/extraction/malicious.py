"""The examples that CloudLeak asks about, by name, and where their sources and guides come from.

`featurefool`, `feature-adversary`: towards the features of a guide. `pgd`, `cw`: away from the class that the attacker's own
network gives the source. `random`: the sources as they are.

Invariant: sources come in an order that does not depend on the budget; each is used once before one is used again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from garrison.attacks.adversarial.carlini_wagner import carlini_wagner
from garrison.attacks.adversarial.features import feature_adversary, featurefool, unit_features
from garrison.attacks.adversarial.pgd import pgd
from garrison.attacks.extraction.finetune import Borrowed, Kept
from garrison.attacks.oracle import Labels
from garrison.errors import MissingExtraError
from garrison.types import Array, FloatArray

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

Examples = Literal["featurefool", "cw", "pgd", "feature-adversary", "random"]
_SHIFT = 0.1
"""Moved copies are shifted by up to this share of a side."""
_AT_ONCE = 128
MADE = Kept(64 * 2**20)
"""Examples that were made before."""


@dataclass(frozen=True, slots=True)
class Making:
    """How examples are made.

    Attributes:
        examples: which kind.
        layer: number of the block whose output is phi, from 1; 0 for the last.
        margin: M of FeatureFool, as a share of the distance of source and guide; None for alpha - `intra`.
        alpha: of FeatureFool.
        trade_off: lambda of FeatureFool.
        epsilon: largest change of a value, for `pgd` and `feature-adversary`.
        steps: of the optimiser.
    """

    examples: Examples
    layer: int
    margin: float | None
    alpha: float
    trade_off: float
    epsilon: float
    steps: int


def made_once(
    how: Making, own: Borrowed, sources: FloatArray, guides: FloatArray, *, intra: float, seed: int
) -> FloatArray:
    """See `make`. From memory where the same were made before: a larger budget begins with the questions of a smaller one."""
    if how.examples == "random":
        return sources
    digest = hashlib.sha256(f"{how!r} {own.backbone.name} {own.backbone.side} {own.reused} {intra} {seed}".encode())
    weights = [p.detach().numpy() for p in own.weights()]
    for part in (sources, guides, *weights):
        digest.update(f"{part.shape}".encode())
        digest.update(np.ascontiguousarray(part).data)
    found = MADE.get(digest.digest())
    if found is None:
        found = torch.as_tensor(make(how, own, sources, guides, intra=intra, seed=seed))
        MADE.put(digest.digest(), found)
    return found.numpy().copy()


def make(how: Making, own: Borrowed, sources: FloatArray, guides: FloatArray, *, intra: float, seed: int) -> FloatArray:
    """As many pictures as sources, (n, channels, height, width) in [0, 1].

    Args:
        how: see `Making`.
        own: the attacker's own network.
        sources, guides: pictures.
        intra: mean distance of unit features of one class.
        seed: of all randomness.
    """
    if how.examples == "random":
        return sources
    generator = torch.Generator().manual_seed(seed)
    near, far = torch.as_tensor(sources), torch.as_tensor(guides)

    def phi(pictures: torch.Tensor) -> torch.Tensor:
        return own.layer(pictures, how.layer or len(own.backbone.blocks))

    if how.examples == "featurefool":
        margin = _margin(how, phi_apart(own, how, sources, guides), intra)
        return featurefool(phi, near, far, margin=margin, trade_off=how.trade_off, steps=how.steps).numpy()
    if how.examples == "feature-adversary":
        return feature_adversary(phi, near, far, epsilon=how.epsilon, steps=how.steps).numpy()
    made = []
    for part in torch.split(near, _AT_ONCE):
        with torch.inference_mode():
            believed = own.logits(part).argmax(dim=1)
        believed = believed.clone()
        if how.examples == "pgd":
            made.append(pgd(own.logits, part, believed, epsilon=how.epsilon, steps=how.steps, generator=generator))
        else:
            made.append(carlini_wagner(own.logits, part, believed, steps=how.steps))
    return torch.cat(made).numpy()


def _margin(how: Making, apart: torch.Tensor, intra: float) -> torch.Tensor:
    return torch.full_like(apart, how.alpha - intra) if how.margin is None else how.margin * apart


def unit_of(own: Borrowed, how: Making, pictures: FloatArray) -> torch.Tensor:
    """The feature layer of pictures, at unit length, (n, features)."""
    unit = unit_features(lambda images: own.layer(images, how.layer or len(own.backbone.blocks)))
    with torch.inference_mode():
        return torch.cat([unit(part) for part in torch.split(torch.as_tensor(pictures), _AT_ONCE)])


def phi_apart(own: Borrowed, how: Making, some: FloatArray, others: FloatArray) -> torch.Tensor:
    """Distance of the features of pictures, pair by pair, (n,) in 0 to 2."""
    found: torch.Tensor = torch.linalg.vector_norm(unit_of(own, how, some) - unit_of(own, how, others), dim=1)
    return found.clone()


@dataclass(slots=True, eq=False)
class Sources:
    """Pictures to start from: every one once, in a random order; after that copies of them, moved and mirrored at random.

    Attributes:
        pictures: (n, channels, height, width), at least one.
    """

    pictures: FloatArray
    rng: np.random.Generator
    _order: Labels = field(default_factory=lambda: np.zeros(0, np.int64))
    _passes: int = 0

    def draw(self, count: int) -> FloatArray:
        """The next `count` pictures."""
        found = []
        while count > 0 and len(self.pictures):
            if not len(self._order):
                self._order = self.rng.permutation(len(self.pictures))
                self._passes += 1
            taken, self._order = self._order[:count], self._order[count:]
            part = self.pictures[taken]
            found.append(part if self._passes == 1 else np.stack([moved_copy(self.rng, one) for one in part]))
            count -= len(taken)
        return np.concatenate(found) if found else self.pictures[:0]


def moved_copy(rng: np.random.Generator, picture: FloatArray) -> FloatArray:
    """The picture (channels, height, width) mirrored or not, and shifted; what comes in at an edge repeats it."""
    height, width = picture.shape[1:]
    down, right = (int(rng.integers(-most, most + 1)) for most in (round(_SHIFT * height), round(_SHIFT * width)))
    rows, columns = np.clip(np.arange(height) - down, 0, height - 1), np.clip(np.arange(width) - right, 0, width - 1)
    found: Array = picture[:, rows][:, :, columns]
    return found[:, :, ::-1].copy() if rng.random() < 0.5 else found
