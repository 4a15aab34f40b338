"""An enclave for tests of sealed requests: a service with simulated evidence, in a thread of this process. Nothing is kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from garrison.attest.evidence import Evidence
from garrison.config import Config, ServerConfig
from garrison.enclave.card import service_card
from garrison.enclave.host import ServiceCard
from garrison.enclave.quotes.sim import SimQuoter
from garrison.enclave.service import Service
from garrison.limits import Limits
from garrison.protocol.messages import Ask, Reply
from garrison.server.root import assemble_enclaves, background
from tests.models import Sealed
from tests.serving import Served


class Simulated:
    """What the server would have of an enclave. Notes all that goes through the server's hands."""

    ready = True

    def __init__(self, sealed: Sealed, limits: Limits) -> None:
        self._sealed = sealed
        self._limits = limits
        self.asks: list[Ask] = []
        self.replies: list[Reply] = []
        self.attested = 0
        self.running = 0
        self.restart()

    def restart(self) -> None:
        """Another enclave in the place of this one, with keys of its own."""
        self.service = Service(self._sealed.verified(), key=self._sealed.key, limits=self._limits, quoter=SimQuoter())

    @property
    def card(self) -> ServiceCard:
        return service_card(self.service, "simulated", technology="sim")

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        self._alone(1)
        replies = self.service.answer(asks)
        self._alone(-1)
        self.asks += asks
        self.replies += replies
        return replies

    def evidence(self, nonce: bytes) -> Evidence:
        self._alone(1)
        self.attested += 1
        found = self.service.evidence(nonce, {"kept apart": ""})
        self._alone(-1)
        return found

    def stop(self) -> None:
        """Nothing to end."""

    def _alone(self, more: int) -> None:
        self.running += more
        if self.running > 1:
            raise RuntimeError("called twice at once")


@contextmanager
def serve_simulated(
    *sealed: Sealed, state: Path, limits: Limits | None = None, **server: Any
) -> Iterator[tuple[Served, list[Simulated]]]:
    config = Config(server=ServerConfig(port=0, state=str(state), **server), limits=limits or Limits())
    enclaves = [Simulated(one, config.limits) for one in sealed]
    assembly = assemble_enclaves(config, enclaves)
    with background(assembly) as url:
        yield Served(url, assembly), enclaves
