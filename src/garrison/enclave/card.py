"""What a started service says of itself, whatever isolates it."""

from __future__ import annotations

from collections.abc import Mapping

from garrison.enclave.host import OutputSpec, ServiceCard, WorkTerms
from garrison.enclave.service import Service
from garrison.guard.base import Defense
from garrison.guard.defenses.budget import Budget
from garrison.guard.defenses.proof_of_work import ProofOfWork
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
    if not isinstance(budget, Budget):
        budget = None
    return ServiceCard(
        manifest_json=service.manifest_json,
        manifest_digest=service.manifest_digest,
        guard_digest=service.guard_digest,
        chain=service.chain,
        outputs=_outputs(service),
        outputs_of={caller: _outputs(service, caller) for caller in service.caller_releases.callers},
        budget_rows=0 if budget is None else budget.rows,
        budget_period="" if budget is None else budget.period,
        budget_distinct=0 if budget is None else budget.distinct,
        price_per_1000_rows=0.0 if budget is None else budget.price_per_1000_rows,
        work=_work(service.armed(ProofOfWork.name)),
        public_key=service.public_key,
        isolation=isolation,
        guard_form=service.guard_form,
        parameters=service.parameters,
        technology=technology,
        capabilities=dict(capabilities or {}),
        keeps_state=service.caller_state.kept,
    )


def _outputs(service: Service, caller: str | None = None) -> tuple[OutputSpec, ...]:
    return tuple(OutputSpec(name, DATATYPES[dtype], shape) for name, dtype, shape in service.outputs(caller))


def _work(asked: Defense | None) -> WorkTerms | None:
    if not isinstance(asked, ProofOfWork):
        return None
    return WorkTerms(asked.bits, asked.window_seconds, asked.who)
