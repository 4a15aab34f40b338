"""What a traced guard says of each row: one whole number, so that a batch in which nothing happened is seen by one glance.

    bit 0       another answer was put in
    bit 1       to be answered with "uncertain"
    bit 2       to be worked out by the late graph: its new answer needs noise
    bits 3-7    1 + the number, in the chain, of the first defense that refuses; 0 for none
    bit 8 + i   the shadow defense that is number i in the chain minds this row

Also the names of the traced graphs' inputs and outputs. `encode` is traced at sealing, the others read its result with numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from garrison.types import BoolArray

ADMIT, MARKS = "guard.admit", "guard.marks"
REPLACED, UNCERTAIN, LATE = 1, 2, 4
REFUSER = 31 << 3
_SHADOW = 256
MOST_DEFENSES = 23
"""Longer chains run in numpy: a mark has 31 bits."""

MarkArray = npt.NDArray[np.int32]


def released(name: str) -> str:
    """The guarded graph's output, for one that the release policy names."""
    return f"released.{name}"


def setting(defense: str, name: str) -> str:
    """An adjustable number of a defense."""
    return f"{defense}.{name}"


def picks(defense: str) -> str:
    return f"{defense}.noise.picks"


def uniform(defense: str) -> str:
    return f"{defense}.noise.uniform"


def signal(name: str) -> str:
    return f"signal.{name}"


def encode(xp: Any, flags: Mapping[int, Any], refused: Mapping[int, Any], shadow: Mapping[int, Any]) -> Any:
    """Marks, shape (rows,), from boolean rows.

    Args:
        flags: by bit value.
        refused: by the number of an armed defense; the first counts.
        shadow: by the number of a shadow defense.
    """
    terms = [(value, rows) for value, rows in flags.items()]
    terms += [(_SHADOW << i, rows) for i, rows in shadow.items()]
    earlier = None
    for i, rows in sorted(refused.items()):
        terms.append(((i + 1) << 3, rows if earlier is None else rows & ~earlier))
        earlier = rows if earlier is None else earlier | rows
    total = None
    for value, rows in terms:
        term = xp.where(rows, xp.asarray(np.int32(value)), xp.asarray(np.int32(0)))
        total = term if total is None else total + term
    return total


def refuser(marks: MarkArray) -> npt.NDArray[np.int32]:
    """The number of the defense that refuses, -1 for none; shape (rows,)."""
    found: npt.NDArray[np.int32] = ((marks & REFUSER) >> 3) - 1
    return found


def minded(marks: MarkArray, shadow: int) -> BoolArray:
    """Rows that a shadow defense minds."""
    found: BoolArray = (marks & (_SHADOW << shadow)) != 0
    return found
