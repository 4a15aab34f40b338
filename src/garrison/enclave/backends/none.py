"""`--isolation none`: the service runs in the server's own process. This is no enclave and protects no input from the server."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.attest.evidence import Evidence
from garrison.bundle.reader import verify
from garrison.enclave.host import Launch, OutputSpec, ServiceCard
from garrison.enclave.service import Service
from garrison.errors import NotFoundError
from garrison.guard.defenses.budget import Budget
from garrison.protocol.messages import Ask, Reply
from garrison.types import DATATYPES


class NoIsolation:
    """The service, in this process."""

    def __init__(self, start: Launch) -> None:
        bundle = verify(start.bundle, start.trusted, start.limits)
        self._service = Service(bundle, key=start.key, tightened=start.tightened, limits=start.limits)
        self.card = service_card(self._service, "none")

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        return self._service.answer(asks)

    def evidence(self, nonce: bytes) -> Evidence:  # noqa: ARG002
        raise NotFoundError("this service runs without an enclave (isolation none), so it has no evidence to show")

    def stop(self) -> None:
        """Nothing to end: the service lives and dies with this process."""


def service_card(service: Service, isolation: str) -> ServiceCard:
    """What a service says of itself."""
    budget = service.armed("budget")
    rows, period = (budget.rows, budget.period) if isinstance(budget, Budget) else (0, "")
    return ServiceCard(
        manifest_json=service.manifest.encode(),
        manifest_digest=service.manifest_digest,
        guard_digest=service.guard_digest,
        chain=service.chain,
        outputs=tuple(OutputSpec(name, DATATYPES[dtype], shape) for name, dtype, shape in service.outputs()),
        budget_rows=rows,
        budget_period=period,
        public_key=service.public_key,
        isolation=isolation,
    )
