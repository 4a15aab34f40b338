"""A session as its client has it, for the tests of the table and of the service."""

from __future__ import annotations

from dataclasses import dataclass

from garrison.crypto.sessions import SessionKeys
from garrison.protocol.sealed_session import SessionHead, seal_within

START = 1_000_000.0


@dataclass
class Held:
    """A session as its client has it."""

    name: bytes
    keys: SessionKeys

    def ask(self, counter: int, body: bytes = b"body") -> bytes:
        return seal_within(self.keys, self.name, counter, SessionHead(-1, "n", int(START)), body)[0]
