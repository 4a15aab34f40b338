"""`--isolation none`: the service runs in the server's own process. This is no enclave and protects no input from the server."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.attest.evidence import Evidence
from garrison.bundle.reader import verify
from garrison.enclave.card import service_card
from garrison.enclave.host import Launch
from garrison.enclave.service import Service
from garrison.enclave.snapshots import keep_state
from garrison.errors import IsolationError, NotFoundError
from garrison.guard.drifting.report import DriftReport
from garrison.guard.watching.book import Alarm
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.protocol.messages import Ask, Reply


class NoIsolation:
    """The service, in this process."""

    ready = True

    def __init__(self, start: Launch) -> None:
        bundle = verify(start.bundle, start.trusted, start.limits)
        if bundle.manifest.require_sealed:
            raise IsolationError(
                f"{start.bundle}: its owner demands sealed requests, which only an enclave can open: "
                "choose another --isolation than none"
            )
        self._service = Service(
            bundle,
            key=start.key,
            tightened=start.tightened,
            callers=start.callers,
            limits=start.limits,
            parameter_memory=start.parameter_memory,
            signing_key=start.signing_key,
        )
        self._service.load_ahead()
        self.card = service_card(self._service, "none")
        self._keeper = keep_state(self._service.caller_state, start.snapshots, self._service.manifest_digest)

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        return self._service.answer(asks)

    def alarms(self) -> Sequence[Alarm]:
        return self._service.alarms()

    def drift(self) -> DriftReport | None:
        return self._service.drift()

    def clear_alarm(self, caller: str) -> bool:
        known = self._service.clear_alarm(caller)
        if self._keeper is not None:
            self._keeper.now()
        return known

    def witness(self, ledger: bytes, at: int, head: bytes) -> SignedCheckpoint:
        return self._service.witness.sign(ledger, at, head)

    def evidence(self, nonce: bytes) -> Evidence:  # noqa: ARG002
        raise NotFoundError("this service runs without an enclave (isolation none), so it has no evidence to show")

    def stop(self) -> None:
        """The service lives and dies with this process; what it remembers of callers is written down, and the thread that loads ends."""
        self._service.stop_loading()
        if self._keeper is not None:
            self._keeper.stop()
