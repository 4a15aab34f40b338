"""A hashed ensemble: several heads that agree on honest inputs and contradict each other on others; a coarse hash of the input picks who answers.

Kariyappa, Prakash and Qureshi, "Protecting DNNs from Theft using an Ensemble of Diverse Models" (ICLR 2021). A thief who asks about inputs of
another kind gets answers of several models that have nothing to do with each other, and its clone learns none of them. The heads share the
convolutions, which are most of the work; the loss is

    mean_k CE(f_k(x), y)  +  diversity * mean over outliers of log sum_{a<b} exp cos(f_a(x), f_b(x))

The hash is ours: a few keyed projections of block means, quantised into cells as wide as a good part of the spread of honest inputs. It is ordinary
arithmetic, and a part of the model's graph.

Not secret: whoever holds the bundle reads the projections in the graph, so the hash hides who answers from clients and not from the host. A client who
knows it can ask one member alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from garrison.errors import CalibrationError
from garrison.guard.keyed import table_generator
from garrison.hardening.networks import is_image, lenet
from garrison.hardening.scoring import Report, silent
from garrison.hardening.training import Training, descend, seeded
from garrison.hardening.victim import check_rows
from garrison.types import FloatArray

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.integer]
LABEL = "hashed-ensemble"
PLANES = 3
BLOCK = 4
"""Side of the blocks of an image over which the projections are constant."""
COARSENESS = 1.0
"""Width of a cell, in standard deviations of honest inputs along a projection."""
MOST_MEMBERS = 16


@dataclass(frozen=True, slots=True, eq=False)
class InputHash:
    """Which member answers an input: the sum of `weights` times the cells that it falls into, modulo `members`.

    Attributes:
        matrix: (features, planes), in cells.
        offset: (planes,).
        weights: (planes,), whole numbers in 1 to members - 1.
        members: how many there are.
    """

    matrix: FloatArray
    offset: FloatArray
    weights: FloatArray
    members: int

    @classmethod
    def keyed(
        cls, key: bytes, x: Images, members: int, *, planes: int = PLANES, coarseness: float = COARSENESS
    ) -> InputHash:
        """A hash by the owner's key, its cells sized on honest inputs.

        Args:
            key: 32 bytes, see `garrison.crypto.owner.OwnerKey.misinformation_key`.
            x: (rows, ...), honest inputs.
            members: at least 2.
            planes: projections; more of them mix the members more finely, and change them more easily.
            coarseness: width of a cell, in standard deviations.
        """
        rng = table_generator(key, LABEL)
        flat = x.reshape(len(x), -1).astype(np.float64)
        matrix = _directions(rng, x.shape[1:], flat, planes)
        spread = (flat @ matrix).std(axis=0)
        if not (spread > 0).all():
            raise CalibrationError("the rows are all alike, so no hash can tell them apart")
        scaled = matrix / (coarseness * spread)
        offset = rng.random(planes) - (flat @ scaled).mean(axis=0)
        weights = rng.integers(1, members, planes).astype(np.float32)
        return cls(scaled.astype(np.float32), offset.astype(np.float32), weights, members)

    def member_of(self, x: Images) -> npt.NDArray[np.intp]:
        """The number of the member that answers each row, shape (rows,)."""
        cells = np.floor(x.reshape(len(x), -1).astype(np.float32) @ self.matrix + self.offset)
        found: npt.NDArray[np.intp] = np.mod(cells @ self.weights, self.members).astype(np.intp)
        return found


def _directions(rng: np.random.Generator, shape: tuple[int, ...], flat: FloatArray, planes: int) -> FloatArray:
    """Normal numbers, one a block of an image or one a feature in units of its deviation: (features, planes)."""
    if not is_image(shape):
        deviation = flat.std(axis=0)
        return rng.normal(size=(flat.shape[1], planes)) / np.where(deviation > 0, deviation, np.inf)[:, np.newaxis]
    channels, height, width = shape
    blocks = rng.normal(size=(planes, channels, -(-height // BLOCK), -(-width // BLOCK)))
    grown = blocks.repeat(BLOCK, axis=2).repeat(BLOCK, axis=3)[:, :, :height, :width]
    return np.ascontiguousarray(grown.reshape(planes, -1).T)


class Ensemble(nn.Module):
    """Heads on shared features; `forward` gives the logits of all of them, shape (rows, members, classes).

    Attributes:
        trunk: input -> features.
        heads: one a member, features -> logits.
        hash: who answers; set by `train_ensemble`.
    """

    def __init__(self, trunk: nn.Sequential, heads: list[nn.Sequential], picker: InputHash) -> None:
        super().__init__()
        self.trunk, self.heads, self.hash = trunk, nn.ModuleList(heads), picker

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.trunk(x)
        return torch.stack([head(features) for head in self.heads], dim=1)


class Answering(nn.Module):
    """The ensemble as it is served: logits of the member that the hash picks, shape (rows, classes)."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        picked = torch.as_tensor(self.ensemble.hash.member_of(x.numpy()))
        found: torch.Tensor = self.ensemble(x)[torch.arange(len(x)), picked]
        return found


def coherence(logits: torch.Tensor) -> torch.Tensor:
    """How alike the members answer: log of the sum of exp(cosine) over all pairs, the mean over rows.

    Args:
        logits: (rows, members, classes).
    """
    p = functional.normalize(torch.softmax(logits, dim=2), dim=2)
    pairs = itertools.combinations(range(p.shape[1]), 2)
    return torch.stack([(p[:, a] * p[:, b]).sum(dim=1) for a, b in pairs], dim=1).logsumexp(dim=1).mean()


def train_ensemble(
    x: Images,
    y: Labels,
    outliers: Images,
    key: bytes,
    *,
    members: int = 5,
    diversity: float = 1.0,
    planes: int = PLANES,
    coarseness: float = COARSENESS,
    outlier_share: float = 0.5,
    options: Training | None = None,
    report: Report = silent,
) -> Ensemble:
    """A LeNet with several heads, and the hash that picks one.

    Args:
        x: (rows, channels, height, width), y: (rows,), class numbers from 0.
        outliers: (n, channels, height, width), on which the heads are to contradict each other.
        key: of the hash.
        members: heads, 2 to 16.
        diversity: weight of the second term; 0 for heads that differ by their first weights alone.
        planes, coarseness: see `InputHash.keyed`.
        outlier_share: outliers in a step, as a share of its rows.
        options: see `garrison.hardening.training.Training`.

    Raises:
        CalibrationError: x and y differ in length, or are not finite; members, diversity or outliers out of range.
    """
    check_rows(x, y)
    if not 2 <= members <= MOST_MEMBERS or not 0 <= diversity < math.inf or not len(outliers):
        raise CalibrationError(
            f"expected 2 to {MOST_MEMBERS} members, a diversity of at least 0 and outliers, "
            f"found {members}, {diversity} and {len(outliers)}"
        )
    options = options or Training()
    picker = InputHash.keyed(key, x, members, planes=planes, coarseness=coarseness)
    with seeded(options.seed, options.threads):
        ensemble = _fresh((x.shape[1], x.shape[2], x.shape[3]), int(y.max()) + 1, picker)
        step = _step(ensemble, (x, y, outliers), diversity, outlier_share)
        descend(ensemble, len(x), step, options, report)
    return ensemble


def _fresh(shape: tuple[int, int, int], classes: int, picker: InputHash) -> Ensemble:
    """The convolutions of one LeNet, and the dense layers of several."""
    networks = [lenet(shape, classes) for _ in range(picker.members)]
    cut = next(i for i, layer in enumerate(networks[0].body) if isinstance(layer, nn.Flatten)) + 1
    heads = [nn.Sequential(*list(network.body)[cut:], network.answer) for network in networks]
    return Ensemble(nn.Sequential(*list(networks[0].body)[:cut]), heads, picker)


def _step(
    ensemble: Ensemble, rows: tuple[Images, Labels, Images], diversity: float, share: float
) -> Callable[[torch.Tensor], torch.Tensor]:
    images, labels = torch.as_tensor(rows[0]), torch.as_tensor(np.asarray(rows[1], dtype=np.int64))
    outside, members = torch.as_tensor(rows[2]), ensemble.hash.members

    def step(batch: torch.Tensor) -> torch.Tensor:
        picked = torch.randint(len(outside), (max(1, int(share * len(batch))),))
        logits = ensemble(torch.cat([images[batch], outside[picked]]))
        known, unknown = logits[: len(batch)], logits[len(batch) :]
        truth = labels[batch].repeat_interleave(members)
        return functional.cross_entropy(known.reshape(len(truth), -1), truth) + diversity * coherence(unknown)

    return step
