"""In place of `--isolation none`, for a guard-only bundle: the guard runs in the server's own process, the model on another server.

This is no enclave. It vouches for the guard, and for neither the other server's parameters nor what becomes of the inputs there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from io import UnsupportedOperation

from garrison.attest.evidence import Evidence
from garrison.bundle.reader import verify
from garrison.enclave.card import service_card
from garrison.enclave.here import ServiceHere
from garrison.enclave.host import Launch, Pending
from garrison.enclave.service import Service
from garrison.errors import ConfigError, NotFoundError
from garrison.guard.defenses.budget import Budget
from garrison.guard.defenses.proof_of_work import ProofOfWork
from garrison.guard.pipeline import load_defense
from garrison.protocol.messages import Ask, Reply
from garrison.types import DefenseSpec, ModelFacts, Phase
from garrison.upstream.connection import NEVER, WaitingError
from garrison.upstream.scorer import UpstreamScorer

SHORT_SECONDS = 0.005
"""So long the event loop may wait for the other server; what takes longer is left to a thread."""


class Done:
    """What is there already, as a `Pending`."""

    def __init__(self, replies: list[Reply]) -> None:
        self._replies = replies

    def wait(self, seconds: float) -> bool:  # noqa: ARG002
        return True

    def fileno(self) -> int:
        raise UnsupportedOperation("nothing is to come any more")

    def is_whole(self) -> bool:
        return True

    def result(self) -> list[Reply]:
        return self._replies


def _is_repeatable(spec: DefenseSpec, facts: ModelFacts) -> bool:
    """Whether a defense may look at the same request twice before the model is asked: it remembers nothing of the first time."""
    defense = load_defense(spec)
    if defense.phase > Phase.INSPECT or isinstance(defense, Budget):
        return True
    return not (isinstance(defense, ProofOfWork) or defense.shares or defense.fresh_state(facts) is not None)


class Gateway(ServiceHere):
    """See the module's docstring.

    Raises:
        ConfigError: the bundle holds a model of its own, or there is no upstream.
        UpstreamError: the other server runs another model than the guard was made for.
    """

    def __init__(self, start: Launch) -> None:
        if start.upstream is None:
            raise ConfigError("a gateway needs the URL of the server that runs the model: --upstream URL")
        bundle = verify(start.bundle, start.trusted, start.limits)
        self._scorer = UpstreamScorer(bundle, start.upstream, start.limits)
        service = Service(
            bundle,
            key=start.key,
            tightened=start.tightened,
            callers=start.callers,
            limits=start.limits,
            signing_key=start.signing_key,
            scorer=self._scorer,
        )
        self._repeatable = all(_is_repeatable(spec, service.facts) for spec in service.chain)
        super().__init__(service, service_card(service, "none"), start.snapshots)

    @property
    def ready(self) -> bool:
        """Whether the other server answered when it was last asked."""
        return self._scorer.reachable

    def begin(self, asks: Sequence[Ask], *, cheap: bool) -> Pending | None:
        """The answers, where the other server has them within `SHORT_SECONDS`: it is waited for here no longer. Another thread costs several times
        what the hop does; where it must be, it waits for the same answer, and the request is not sent twice."""
        if not (cheap and self._repeatable):
            return None
        self._scorer.until = time.monotonic() + SHORT_SECONDS
        try:
            return Done(self._service.answer(asks))
        except WaitingError:
            return None
        finally:
            self._scorer.until = NEVER

    def evidence(self, nonce: bytes) -> Evidence:  # noqa: ARG002
        raise NotFoundError("a gateway runs without an enclave (isolation none), so it has no evidence to show")

    def sweep(self) -> None:
        """See whether the other server is back, where it was away."""
        self._scorer.probe()

    def stop(self) -> None:
        super().stop()
        self._scorer.close()
