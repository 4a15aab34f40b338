"""`--isolation none`: the service runs in the server's own process. This is no enclave and protects no input from the server."""

from __future__ import annotations

from garrison.attest.evidence import Evidence
from garrison.bundle.reader import verify
from garrison.enclave.card import service_card
from garrison.enclave.here import ServiceHere
from garrison.enclave.host import Launch
from garrison.enclave.service import Service
from garrison.errors import IsolationError, NotFoundError


class NoIsolation(ServiceHere):
    """The service, in this process."""

    ready = True

    def __init__(self, start: Launch) -> None:
        bundle = verify(start.bundle, start.trusted, start.limits)
        if bundle.manifest.require_sealed:
            raise IsolationError(
                f"{start.bundle}: its owner demands sealed requests, which only an enclave can open: "
                "choose another --isolation than none"
            )
        service = Service(
            bundle,
            key=start.key,
            tightened=start.tightened,
            callers=start.callers,
            limits=start.limits,
            parameter_memory=start.parameter_memory,
            signing_key=start.signing_key,
        )
        service.load_ahead()
        super().__init__(service, service_card(service, "none"), start.snapshots)

    def evidence(self, nonce: bytes) -> Evidence:  # noqa: ARG002
        raise NotFoundError("this service runs without an enclave (isolation none), so it has no evidence to show")

    def stop(self) -> None:
        """The thread that loads ends, too."""
        self._service.stop_loading()
        super().stop()
