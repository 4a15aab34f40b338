"""A service in the server's own process: what the backends without a second process have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from garrison.enclave.host import ServiceCard
from garrison.enclave.service import Service
from garrison.enclave.snapshots import keep_state
from garrison.guard.drifting.report import DriftReport
from garrison.guard.watching.book import Alarm
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.protocol.messages import Ask, Reply


class ServiceHere:
    """Answers, alarms, drift and signatures of a service that lives and dies with this process.

    Args:
        snapshots: folder where what the guard remembers of callers outlives it; None to keep the latest in memory alone.
    """

    def __init__(self, service: Service, card: ServiceCard, snapshots: Path | None) -> None:
        self._service = service
        self.card = card
        self._keeper = keep_state(service.caller_state, snapshots, service.manifest_digest)

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        return self._service.answer(asks)

    def alarms(self) -> Sequence[Alarm]:
        return self._service.alarms()

    def clear_alarm(self, caller: str) -> bool:
        known = self._service.clear_alarm(caller)
        if self._keeper is not None:
            self._keeper.now()
        return known

    def drift(self) -> DriftReport | None:
        return self._service.drift()

    def witness(self, ledger: bytes, at: int, head: bytes, start: bytes = b"", bodies: bytes = b"") -> SignedCheckpoint:
        return self._service.witness.sign(ledger, at, head, start, bodies)

    def stop(self) -> None:
        """What is remembered of callers is written down."""
        if self._keeper is not None:
            self._keeper.stop()
