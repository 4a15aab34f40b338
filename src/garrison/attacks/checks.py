"""Checks of an attack's parameters, in one wording. Each raises `ValueError`, which a plan shows with the attack's name."""

from __future__ import annotations

import math

import msgspec


def at_least(of: msgspec.Struct, least: int, *names: str) -> None:
    """Whole numbers that must not be below `least`."""
    for name in names:
        if getattr(of, name) < least:
            raise ValueError(f"{name} must be at least {least}, found {getattr(of, name)}")


def positive(of: msgspec.Struct, *names: str, zero: bool = False) -> None:
    """Numbers that must be finite and above 0; not below 0 where `zero`."""
    for name in names:
        value = getattr(of, name)
        if not 0 <= value < math.inf or (value == 0 and not zero):
            raise ValueError(f"{name} must be finite and {'not below' if zero else 'above'} 0, found {value}")


def share(of: msgspec.Struct, *names: str, zero: bool = False, one: bool = True) -> None:
    """Numbers that must lie between 0 and 1; 0 itself is allowed where `zero`, 1 itself where `one`."""
    for name in names:
        value = getattr(of, name)
        if not 0 <= value <= 1 or (value == 0 and not zero) or (value == 1 and not one):
            ends = f"{'at least' if zero else 'above'} 0 and {'at most' if one else 'below'} 1"
            raise ValueError(f"{name} must be {ends}, found {value}")
