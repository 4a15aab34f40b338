"""The one way around a signed guard, for measuring what the guard is worth. Never a default, logged at each use."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from garrison.types import DefenseSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UnsafeGuardOverride:
    """Replaces the signed chain, in this process only. A server never accepts one.

    Attributes:
        chain: the chain to run instead.
        reason: why, for the log.
    """

    chain: tuple[DefenseSpec, ...]
    reason: str

    def use(self) -> tuple[DefenseSpec, ...]:
        """The replacing chain; writes a warning to the log."""
        names = ", ".join(f"{s.name}{' (shadow)' if s.shadow else ''}" for s in self.chain)
        logger.warning("the signed guard is overridden by [%s]: %s", names, self.reason)
        return self.chain
