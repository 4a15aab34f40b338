"""What a started service says of itself, whatever isolates it."""

from __future__ import annotations

from collections.abc import Mapping

from garrison.enclave.host import OutputSpec, ServiceCard
from garrison.enclave.service import Service
from garrison.guard.defenses.budget import Budget
from garrison.types import DATATYPES


def service_card(
    service: Service, isolation: str, *, technology: str = "", capabilities: Mapping[str, str] | None = None
) -> ServiceCard:
    """The card of a service.

    Args:
        isolation: what keeps it apart from the server.
        technology: of its evidence, "" where it gives none.
        capabilities: as they were probed.
    """
    budget = service.armed("budget")
    rows, period = (budget.rows, budget.period) if isinstance(budget, Budget) else (0, "")
    return ServiceCard(
        manifest_json=service.manifest_json,
        manifest_digest=service.manifest_digest,
        guard_digest=service.guard_digest,
        chain=service.chain,
        outputs=tuple(OutputSpec(name, DATATYPES[dtype], shape) for name, dtype, shape in service.outputs()),
        budget_rows=rows,
        budget_period=period,
        public_key=service.public_key,
        isolation=isolation,
        guard_form=service.guard_form,
        parameters=service.parameters,
        technology=technology,
        capabilities=dict(capabilities or {}),
        keeps_state=service.caller_state.kept,
    )
