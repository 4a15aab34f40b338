"""A network of the zoo made into a clone: its first blocks reused as they are, the others and a new last layer trained.

Invariants: what the reused blocks make of a row is computed once; a row's answer does not depend on the rest of its batch;
equal rows, targets and seed give equal clones on the same number of threads.
"""

from __future__ import annotations

import collections
import hashlib
import threading
from dataclasses import dataclass

import numpy as np

from garrison.attacks.exam import Clone
from garrison.attacks.extraction.clones import Recipe, descend
from garrison.attacks.extraction.pixels import Pixels
from garrison.attacks.extraction.zoo import Backbone, copied, unset_linear
from garrison.errors import MissingExtraError
from garrison.types import Array, FloatArray

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

_SLICE = 64
_MOST_KEPT = 128 * 2**20


class Kept:
    """What reused blocks made of rows, for rows that are asked about again; the oldest goes first when the bytes are too many."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._found: collections.OrderedDict[bytes, torch.Tensor] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> torch.Tensor | None:
        with self._lock:
            return self._found.get(key)

    def put(self, key: bytes, value: torch.Tensor) -> None:
        with self._lock:
            self._found[key] = value
            while sum(kept.nbytes for kept in self._found.values()) > self._most:
                self._found.popitem(last=False)


_KEPT = Kept(_MOST_KEPT)


@dataclass(slots=True, eq=False)
class Borrowed:
    """A clone in the making.

    Attributes:
        backbone: of the zoo.
        reused: how many of its blocks stay as they are.
        classes: of the service.
        pixels: how rows become pictures.
        top: the retrained blocks and the new last layer.
    """

    backbone: Backbone
    reused: int
    classes: int
    pixels: Pixels
    top: nn.Sequential

    @classmethod
    def fresh(cls, backbone: Backbone, reused: int, classes: int, pixels: Pixels) -> Borrowed:
        """Blocks as pretrained, the last layer zero: all classes alike."""
        return cls(backbone, reused, classes, pixels, _top(backbone, reused, classes))

    def told(self) -> dict[str, float]:
        """Which layers are reused and which retrained."""
        blocks, own = len(self.backbone.blocks), self.backbone.features * self.classes + self.classes
        return {
            "layers reused": self.reused,
            "layers retrained": blocks - self.reused,
            "layers new": 1,
            "parameters reused": self.backbone.parameters(0, self.reused),
            "parameters retrained": self.backbone.parameters(self.reused),
            "parameters new": own,
        }

    def weights(self) -> list[torch.Tensor]:
        """Of all layers."""
        reused = [p for block in self.backbone.blocks[: self.reused] for p in block.parameters()]
        return [*reused, *self.top.parameters()]

    def carried(self, pictures: FloatArray) -> torch.Tensor:
        """What the reused blocks make of pictures (n, channels, height, width)."""
        with torch.inference_mode():
            parts = [self._trunk(torch.as_tensor(pictures[i : i + _SLICE])) for i in range(0, len(pictures), _SLICE)]
            return torch.cat(parts) if parts else torch.zeros((0, 1))

    def learn(self, carried: torch.Tensor, targets: FloatArray, recipe: Recipe, seed: int, *, anew: bool) -> None:
        """Train the blocks that are not reused and the last layer; from the pretrained weights where `anew`.

        Args:
            carried: (n, ...), of `carried`; no row leaves everything as it is.
            targets: (n, classes), probabilities.
            recipe: how.
            seed: of the order of rows.
            anew: forget what was learnt so far.
        """
        if not len(carried):
            return
        with torch.inference_mode(mode=False), torch.enable_grad():
            if anew:
                self.top = _top(self.backbone, self.reused, self.classes)
            goals = torch.as_tensor(targets.astype(np.float32))
            generator = torch.Generator().manual_seed(seed)
            found = descend(self.top, carried.clone(), goals, recipe, generator)
        if not isinstance(found, nn.Sequential):
            raise TypeError("a sequence of layers stays one under training")
        self.top = found.eval()

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        """Can be differentiated with respect to the pictures."""
        found: torch.Tensor = self.top(self._trunk(pictures))
        return found

    def layer(self, pictures: torch.Tensor, number: int) -> torch.Tensor:
        """The output of block `number`, counted from 1; can be differentiated."""
        z = self.backbone.prepare(pictures)
        for block in (*self.backbone.blocks[: self.reused], *list(self.top)[:-1])[:number]:
            z = block(z)
        return z

    def probabilities(self, carried: torch.Tensor) -> FloatArray:
        """(n, classes) for what `carried` gave."""
        if not len(carried):
            return np.zeros((0, self.classes), dtype=np.float32)
        with torch.inference_mode():
            parts = [torch.softmax(self.top(part), dim=1) for part in torch.split(carried, 8 * _SLICE)]
            found: FloatArray = torch.cat(parts).numpy()
        return found

    def clone(self) -> Clone:
        """Rows -> probabilities. What the reused blocks make of many rows is kept for the next clone that is asked about them."""
        frozen = Borrowed(self.backbone, self.reused, self.classes, self.pixels, self.top)

        def answer(rows: Array) -> FloatArray:
            return frozen.probabilities(frozen.carried_once(rows))

        return answer

    def carried_once(self, rows: Array) -> torch.Tensor:
        """Like `carried`, of rows of the service, from memory where they were asked about before."""
        words = f"{self.backbone.name} {self.backbone.side} {self.reused} {rows.dtype.str} {rows.shape}"
        if self.backbone.name != "efficientnet-lite0":  # the small network is as fast as its memory
            return self.carried(self.pixels.pictures(rows))
        digest = hashlib.sha256(words.encode())
        for part in (rows, self.pixels.low, self.pixels.high):
            digest.update(np.ascontiguousarray(part).data)
        found = _KEPT.get(digest.digest())
        if found is None:
            found = self.carried(self.pixels.pictures(rows))
            _KEPT.put(digest.digest(), found)
        return found

    def _trunk(self, pictures: torch.Tensor) -> torch.Tensor:
        z = self.backbone.prepare(pictures)
        for block in self.backbone.blocks[: self.reused]:
            z = block(z)
        return z


def _top(backbone: Backbone, reused: int, classes: int) -> nn.Sequential:
    with torch.inference_mode(mode=False):
        last = unset_linear(backbone.features, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(*copied(backbone.blocks[reused:]), last).eval()
