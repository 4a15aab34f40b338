"""A clone in the making: trained in rounds, asked in between for what the next questions should be.

Invariants: rows come and go unscaled, as the service takes them; equal calls in equal order give equal students on the same
number of threads; the caller's own random numbers are left alone. Needs torch, and says so.
"""

from __future__ import annotations

import copy

import numpy as np

from garrison.attacks.exam import Clone
from garrison.attacks.extraction.clones import Recipe, answer, descend, fresh, scaling
from garrison.attacks.oracle import OracleFacts
from garrison.errors import MissingExtraError
from garrison.types import Array, FloatArray

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

_SLICE = 500


class Student:
    """One network of the kind that `train_clone` trains, with its weights kept from round to round.

    Args:
        facts: of the service.
        like: rows (n, *shape), at least one, whose range or moments set the scale of the inputs.
        seed: of the weights and of the order of rows.
    """

    def __init__(self, facts: OracleFacts, like: Array, seed: int) -> None:
        self._scale = scaling(like, facts)
        self._generator = torch.Generator().manual_seed(seed)
        self._net: nn.Sequential = fresh(facts, self._generator)
        self._net.eval()

    def learn(self, x: Array, targets: FloatArray, recipe: Recipe) -> None:
        """Train on from the present weights. No row changes nothing.

        Args:
            x: (rows, *shape).
            targets: (rows, classes), probabilities.
            recipe: how; its rise of the learning rate begins anew.
        """
        if not len(x):
            return
        with torch.inference_mode(mode=False):
            goals = torch.as_tensor(targets.astype(np.float32))
            trained = descend(self._net, self._rows(x), goals, recipe, self._generator)
        if not isinstance(trained, nn.Sequential):
            raise TypeError("a sequence of layers stays one under training")
        self._net = trained.eval()

    def probabilities(self, x: Array) -> FloatArray:
        """Shape (rows, classes)."""
        return answer(nn.Sequential(self._scale, self._net), x)

    @torch.inference_mode()
    def features(self, x: Array) -> FloatArray:
        """What goes into the last layer, shape (rows, width)."""
        parts = [self._net[:-1](self._rows(x[i : i + _SLICE])) for i in range(0, len(x), _SLICE)]
        found: FloatArray = torch.cat(parts).numpy()
        return found

    def rise(self, x: Array, classes: Array) -> FloatArray:
        """Gradient of the logarithm of the probability of `classes` (rows,) by x; its sign is where that class becomes likelier."""
        parts = []
        with torch.inference_mode(mode=False):
            for i in range(0, len(x), _SLICE):
                rows = torch.as_tensor(x[i : i + _SLICE].astype(np.float32)).requires_grad_()
                named = torch.as_tensor(classes[i : i + _SLICE].astype(np.int64))
                loss = functional.cross_entropy(self._net(self._scale(rows)), named, reduction="sum")
                parts.append(-torch.autograd.grad(loss, rows)[0])
        found: FloatArray = torch.cat(parts).numpy() if parts else np.zeros(x.shape, np.float32)
        return found

    def logits(self, x: Array) -> FloatArray:
        """Scores, shape (rows, classes)."""
        with torch.inference_mode():
            parts = [self._net(self._rows(x[i : i + _SLICE])) for i in range(0, len(x), _SLICE)]
            found: FloatArray = torch.cat(parts).numpy()
            return found

    def slopes(self, x: Array, classes: Array) -> tuple[FloatArray, FloatArray]:
        """Scores of some classes and their gradients by x.

        Args:
            x: (rows, *shape).
            classes: (rows, k), class numbers, for each row its own.

        Returns:
            (rows, k) and (rows, k, *shape).
        """
        with torch.inference_mode(mode=False):
            rows = torch.as_tensor(x.astype(np.float32)).requires_grad_()
            z = self._net(self._scale(rows)).gather(1, torch.as_tensor(classes.astype(np.int64)))
            total = z.sum(dim=0)
            parts = [torch.autograd.grad(total[k], rows, retain_graph=True)[0] for k in range(z.shape[1])]
            return z.detach().numpy(), torch.stack(parts, dim=1).numpy()

    def network(self) -> nn.Sequential:
        """A copy of the student as it is now: unscaled rows in, scores out."""
        return copy.deepcopy(nn.Sequential(self._scale, self._net))

    def clone(self) -> Clone:
        """The student as it is now."""
        whole = self.network()
        return lambda asked: answer(whole, asked)

    def _rows(self, x: Array) -> torch.Tensor:
        found: torch.Tensor = self._scale(torch.as_tensor(x.astype(np.float32)))
        return found
