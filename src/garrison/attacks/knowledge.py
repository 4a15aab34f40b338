"""What an attacker has before asking.

Invariant: nothing here was answered by the service. What an attacker labels by asking costs queries and goes through the meter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from garrison.attacks.oracle import Labels
from garrison.types import Array, FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Rows of the model's own kind with their true classes, which an attacker labelled by hand.

    Attributes:
        x: (rows, *shape).
        y: (rows,).
    """

    x: Array
    y: Labels


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """What an attacker on hyperparameters knows: the rows a model was trained on, and how.

    Attributes:
        x: (rows, features).
        y: (rows,), classes or real values.
        algorithm: the learner's name, as the attack that uses it lists them.
        settings: the learner's other, public settings, such as a kernel's width.
    """

    x: Array
    y: FloatArray
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Knowledge:
    """What an attacker has before asking.

    Attributes:
        surrogate: (n, *shape), unlabelled inputs that are not the model's business, in the range of its inputs.
        in_distribution: (m, *shape), unlabelled inputs of the model's own kind, where the attacker has any.
        labelled: a few rows of the model's own kind with true classes, where the attacker has any.
        training: the rows that the model was trained on, where the attacker knows them.
        categorical: by flat feature number, the values that it takes; public, from the service's documentation.
    """

    surrogate: Array
    in_distribution: Array | None = None
    labelled: Labelled | None = None
    training: Training | None = None
    categorical: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
