"""Stricter release policies for some callers, chosen by the host.

The bundle signs the least strict policy. What a caller gets under a stricter one is made of what the signed one released, so it can never tell more,
and both forms of the guard, and requests of many callers in one batch, need to know nothing of it.

Not checked: whether a caller has another account with a looser policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from garrison.errors import GuardError
from garrison.guard.base import ReleaseDefense
from garrison.guard.defenses.release import Release
from garrison.types import ANYBODY, ModelFacts, Released

Outputs = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]


class CallerReleases:
    """Which caller gets what of an answer.

    Args:
        base: the release policy of the chain that runs.
        chosen: by caller's id, or `ANYBODY`: parameters of a `Release` that is at least as strict; what is left out is as in `base`.
        facts: of the model.

    Raises:
        GuardError: a policy that is looser than `base`, or cannot work for such a model; says whose.
    """

    def __init__(self, base: ReleaseDefense, chosen: Mapping[str, Mapping[str, Any]], facts: ModelFacts) -> None:
        self._base, self._facts = base, facts
        self._policies = {caller: _policy(base, caller, asked, facts) for caller, asked in chosen.items()}
        self._anybody = self._policies.get(ANYBODY)

    @property
    def callers(self) -> Iterable[str]:
        """Who is named, `ANYBODY` among them where it is."""
        return self._policies

    def of(self, caller: str) -> Release | None:
        """The stricter policy of a caller; None for that of the chain."""
        return self._policies.get(caller, self._anybody) if self._policies else None

    def outputs(self, caller: str) -> Outputs:
        """Name, dtype and row shape of each tensor that this caller gets."""
        return (self.of(caller) or self._base).describe_outputs(self._facts)

    def tightened(self, policy: Release, released: Released) -> Released:
        """What a stricter policy lets out of what the chain's has released."""
        base = self._base
        if not released.outputs or not isinstance(base, Release):
            return released
        return Released(policy.said_of(released.outputs, base, self._facts), released.uncertain)


def _policy(base: ReleaseDefense, caller: str, asked: Mapping[str, Any], facts: ModelFacts) -> Release:
    if not isinstance(base, Release):
        raise GuardError(f"callers.{caller}: the chain's release policy {base.name!r} knows no stricter ones by caller")
    try:
        policy = msgspec.convert(_given(base, asked), Release)
        policy.check(facts)
        policy.check_tightened(base)
    except (msgspec.ValidationError, GuardError) as error:
        raise GuardError(f"callers.{caller}: {error}") from error
    return policy


def _given(base: Release, asked: Mapping[str, Any]) -> dict[str, Any]:
    kept = {"k": base.k, "decimals": base.decimals} | {
        name: value for name, value in asked.items() if value is not None
    }
    return kept | ({"decimals": None} if kept.get("mode") == "labels" else {})
