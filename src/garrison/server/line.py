"""An enclave as a front worker sees it: a pipe of its own to the one process that all front workers share."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Sequence

from garrison.attest.evidence import Evidence
from garrison.enclave.conversation import Asked, Conversation, is_at_fault
from garrison.enclave.host import ServiceCard
from garrison.errors import FrameError, UnavailableError
from garrison.limits import Limits
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.protocol.messages import Ask, Reply

_AWAY = "the enclave is being started anew; try again"


class LineEnclave:
    """See `garrison.enclave.host.Enclave`. The server starts and ends the process, and sends a fresh pipe when this one has ended.

    Args:
        lost: called when the pipe has ended, with the public key of the enclave that it led to, and whether that is at fault: it does not answer, or lies.
        evidence: asks the server for evidence; blocks.
    """

    def __init__(
        self,
        card: ServiceCard,
        pipe: socket.socket,
        limits: Limits,
        lost: Callable[[bytes, bool], None],
        evidence: Callable[[bytes], Evidence],
    ) -> None:
        self._limits = limits
        self._lost = lost
        self._evidence = evidence
        self._lock = threading.Lock()
        self._talk: Conversation | None = None
        self.card = card
        self.renew(card, pipe)

    def renew(self, card: ServiceCard, pipe: socket.socket) -> None:
        """Use another pipe from now on."""
        hung_up = select.poll()
        hung_up.register(pipe, select.POLLRDHUP)

        def broken(error: FrameError | None = None) -> None:
            with self._lock:
                if self._talk is not talk:
                    return
                self._talk = None
            talk.close()
            self._lost(card.public_key, error is not None and is_at_fault(error))

        talk = Conversation(pipe, self._limits, self._limits.enclave_seconds, broken)
        with self._lock:
            self._talk, self.card, self._hung_up, self._broken = talk, card, hung_up, broken

    @property
    def ready(self) -> bool:
        return self._talk is not None and not self._hung_up.poll(0)

    def sweep(self) -> None:
        """Notice a pipe that has ended while nobody asked anything."""
        if self._talk is not None and self._hung_up.poll(0):
            self._broken()

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        return self._present().call(asks)

    def begin(self, asks: Sequence[Ask], *, cheap: bool) -> Asked | None:  # noqa: ARG002  it sends, and waits for nothing
        return self._present().begin(asks)

    def witness(self, ledger: bytes, at: int, head: bytes, start: bytes = b"", bodies: bytes = b"") -> SignedCheckpoint:
        return self._present().witness(ledger, at, head, start, bodies)

    def evidence(self, nonce: bytes) -> Evidence:
        return self._evidence(nonce)

    def stop(self) -> None:
        with self._lock:
            talk, self._talk = self._talk, None
        if talk is not None:
            talk.close()

    def _present(self) -> Conversation:
        talk = self._talk
        if talk is None:
            raise UnavailableError(_AWAY)
        return talk
