"""An owner's choices as they are typed, on the command line and in Python."""

from __future__ import annotations

import re
from typing import cast

from garrison.errors import ConfigError
from garrison.guard.defenses.budget import Budget, Period
from garrison.guard.defenses.release import Release

DEFAULT_DECIMALS = 3
RELEASES = ("full", "rounded", "top-k", "label")
_BUDGET = re.compile(r"(\d{1,15})(?:/(day|ever))?")


def release_of(mode: str | None, k: int = 3, decimals: int | None = None) -> Release | None:
    """What leaves of an answer: "full", "rounded" (3 decimals unless said), "top-k" or "label"; None for the default.

    Raises:
        ConfigError: another mode, or decimals without one that has them.
    """
    match mode:
        case None:
            if decimals is not None:
                raise ConfigError("--decimals goes with --release rounded or --release top-k")
            return None
        case "rounded":
            return Release(mode="rounded", decimals=DEFAULT_DECIMALS if decimals is None else decimals)
        case "top-k":
            return Release(mode="top-k", k=k, decimals=decimals)
        case "label":
            return Release(mode="labels")
        case "full":
            return Release()
        case _:
            raise ConfigError(f"--release: expected one of {', '.join(RELEASES)}, found {mode!r}")


def budget_of(text: str | None, distinct: int | None = None, price: float | None = None) -> Budget | None:
    """Rows that a caller may ask, such as "5000" or "5000/day".

    Args:
        distinct: how many of them may be different; None for no limit of their own.
        price: of 1,000 rows, in US dollars.

    Raises:
        ConfigError: not such a text, or a choice that goes with a budget and there is none.
    """
    if text is None:
        if distinct is not None or price is not None:
            raise ConfigError("--budget-distinct and --price go with --budget")
        return None
    match = _BUDGET.fullmatch(text.strip())
    if match is None or int(match[1]) < 1:
        raise ConfigError(f"--budget: expected a number of rows, such as 5000 or 5000/day, found {text!r}")
    try:
        return Budget(
            rows=int(match[1]),
            period=cast("Period", match[2] or "ever"),
            distinct=distinct or 0,
            price_per_1000_rows=price or 0.0,
        )
    except ValueError as error:
        raise ConfigError(f"--budget: {error}") from error
