"""What a traced guard says of each row: one whole number, so that a batch in which nothing happened is seen by one glance.

    bit 0       to be answered with "uncertain"
    bits 3-7    1 + the number, in the chain, of the first defense that refuses; 0 for none
    bit 8 + i   the defense that is number i in the chain minds this row: it gets another answer, or would by a defense in shadow

Also the names of the traced graphs' inputs and outputs. `encode` is traced at sealing, the others read its result with numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from garrison.guard.base import Marks
from garrison.types import BoolArray

ADMIT, MARKS = "guard.admit", "guard.marks"
UNCERTAIN = 1
REFUSER = 31 << 3
MOST_DEFENSES = 23
"""Longer chains run in numpy: a mark has 31 bits."""

MarkArray = npt.NDArray[np.int32]


def released(name: str) -> str:
    """The guarded graph's output, for one that the release policy names."""
    return f"released.{name}"


def setting(defense: str, name: str) -> str:
    """An adjustable number of a defense."""
    return f"{defense}.{name}"


def signal(name: str) -> str:
    return f"signal.{name}"


def minds(number: int) -> int:
    """The bit of the defense that is so far down the chain."""
    return 256 << number


def encode(xp: Any, flags: Mapping[int, Any], refused: Mapping[int, Any]) -> Any:
    """Marks, shape (rows,), from boolean rows.

    Args:
        flags: by value, of one bit or several.
        refused: by the number of an armed defense; the first counts.
    """
    terms = list(flags.items())
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


def minded(marks: MarkArray, number: int) -> BoolArray:
    """Rows that a defense minds."""
    found: BoolArray = (marks & minds(number)) != 0
    return found


def judged_again(marks: MarkArray, number: int, found: Marks, *, shadow: bool) -> MarkArray:
    """Marks of rows of which one defense has changed its mind.

    Args:
        number: its place in the chain.
        found: what it minds now, in numpy. That a row is refused or uncertain is not taken back.
        shadow: whether it changes nothing.
    """
    nothing = np.zeros(len(marks), dtype=np.bool_)
    refuse, replace, uncertain = (nothing if x is None else x for x in (found.refuse, found.replace, found.uncertain))
    minded = refuse | replace if shadow else replace
    new: MarkArray = np.where(minded, marks | minds(number), marks & ~np.int32(minds(number)))
    if not shadow:
        new = np.where(uncertain, new | UNCERTAIN, new)
        free = (new & REFUSER) == 0
        new = np.where(refuse & free, new | ((number + 1) << 3), new)
    return new.astype(np.int32)
