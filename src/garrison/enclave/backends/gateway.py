"""In place of `--isolation none`, for a guard-only bundle: the guard runs in the server's own process, the model on another server.

This is no enclave. It vouches for the guard, and for neither the other server's parameters nor what becomes of the inputs there.
"""

from __future__ import annotations

from collections.abc import Sequence

from garrison.attest.evidence import Evidence
from garrison.bundle.reader import verify
from garrison.enclave.card import service_card
from garrison.enclave.host import Launch, Pending
from garrison.enclave.service import Service
from garrison.enclave.snapshots import keep_state
from garrison.errors import ConfigError, NotFoundError
from garrison.guard.watching.book import Alarm
from garrison.protocol.messages import Ask, Reply
from garrison.upstream.scorer import UpstreamScorer


class Gateway:
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
        self._service = Service(
            bundle,
            key=start.key,
            tightened=start.tightened,
            callers=start.callers,
            limits=start.limits,
            signing_key=start.signing_key,
            scorer=self._scorer,
        )
        self.card = service_card(self._service, "none")
        self._keeper = keep_state(self._service.caller_state, start.snapshots, self._service.manifest_digest)

    @property
    def ready(self) -> bool:
        """Whether the other server answered when it was last asked."""
        return self._scorer.reachable

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        return self._service.answer(asks)

    def begin(self, asks: Sequence[Ask]) -> Pending | None:  # noqa: ARG002
        """Never at once: another server is waited for, which the event loop must not do."""
        return None

    def alarms(self) -> Sequence[Alarm]:
        return self._service.alarms()

    def clear_alarm(self, caller: str) -> bool:
        known = self._service.clear_alarm(caller)
        if self._keeper is not None:
            self._keeper.now()
        return known

    def evidence(self, nonce: bytes) -> Evidence:  # noqa: ARG002
        raise NotFoundError("a gateway runs without an enclave (isolation none), so it has no evidence to show")

    def sweep(self) -> None:
        """See whether the other server is back, where it was away."""
        self._scorer.probe()

    def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.stop()
        self._scorer.close()
