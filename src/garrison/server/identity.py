"""Who a caller is once that is known: its name, what its scopes cover, and until when.

A scope reads `OPERATION:MODEL` or `OPERATION:MODEL@VERSION`; the operation is `infer`, `metadata` or `attest`, and `*` stands for every one of its kind.
`*` alone covers everything. Invariant: what no scope covers is not allowed, and a scope that cannot be read covers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from garrison.errors import ConfigError

Operation = Literal["infer", "metadata", "attest"]
EVERYTHING = "*"
NEVER = float("inf")
_SCOPE = re.compile(r"(\*|infer|metadata|attest):(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:@(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class _Grant:
    operation: str
    model: str
    version: int | None

    def covers(self, model: str, version: int) -> bool:
        return self.model in {EVERYTHING, model} and self.version in {None, version}


@dataclass(frozen=True, slots=True)
class Scopes:
    """What a caller may do. See `read_scopes`."""

    grants: tuple[_Grant, ...] = ()
    everything: bool = False

    def may(self, operation: Operation, model: str, version: int) -> bool:
        return self.everything or any(
            grant.operation in {EVERYTHING, operation} and grant.covers(model, version) for grant in self.grants
        )

    def sees(self, model: str, version: int) -> bool:
        """Whether any operation is allowed: what a caller does not see is not there for it."""
        return self.everything or any(grant.covers(model, version) for grant in self.grants)


ALL = Scopes(everything=True)


def read_scopes(words: Iterable[str], *, strict: bool = True) -> Scopes:
    """Scopes from their text.

    Args:
        words: one scope each.
        strict: an unknown scope is an error; without it, as in a token that names scopes of other services too, it covers nothing.

    Raises:
        ConfigError: a scope that cannot be read.
    """
    grants = []
    for word in words:
        if word == EVERYTHING:
            return ALL
        found = _SCOPE.fullmatch(word)
        if found is not None:
            grants.append(_Grant(found[1], found[2], None if found[3] is None else int(found[3])))
        elif strict:
            raise ConfigError(
                f"a scope reads infer:MODEL, metadata:MODEL@VERSION or attest:*, or * for everything; found {word[:64]!r}"
            )
    return Scopes(tuple(grants))


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks.

    Attributes:
        name: what budgets, guard and ledger know the caller by: the name of a key, or `oidc:SUBJECT`, `cert:NAME`, `ip:ADDRESS`.
        scopes: what it may do.
        until: seconds since the epoch; it is nobody then.
    """

    name: str
    scopes: Scopes = field(default=ALL)
    until: float = NEVER


ANYONE = Identity("")
"""Who asks for what is open to all."""
