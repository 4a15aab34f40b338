"""`--isolation sgx`: the whole server runs in an SGX enclave under Gramine (`enclave/quotes/garrison.manifest.template`).

There is no second process: the enclave's border is that of the process, and the server is within it. So the server sees what sealed
requests hold, as a part of what the hardware measures; whoever runs the machine does not.

NOT RUN ON HARDWARE: tested against a folder of plain files, with a public key infrastructure of the tests' own.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from garrison.attest.evidence import Evidence
from garrison.bundle.reader import verify
from garrison.enclave.card import service_card
from garrison.enclave.host import Launch
from garrison.enclave.levels import check_level
from garrison.enclave.quotes import Quoter
from garrison.enclave.quotes.gramine import GramineQuoter
from garrison.enclave.service import Service
from garrison.enclave.snapshots import keep_state
from garrison.guard.watching.book import Alarm
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.protocol.messages import Ask, Reply


class Gramine:
    """The service, in this process, which is the enclave.

    Args:
        quoter: asks the hardware; Gramine's pseudo-files where it is left out.

    Raises:
        IsolationError: this process does not run under Gramine with remote attestation.
    """

    ready = True

    def __init__(self, start: Launch, quoter: Quoter | None = None) -> None:
        asked = GramineQuoter(collateral=start.collateral) if quoter is None else quoter
        self._turn = threading.Lock()
        self._service = Service(
            verify(start.bundle, start.trusted, start.limits),
            key=start.key,
            tightened=start.tightened,
            callers=start.callers,
            limits=start.limits,
            quoter=asked,
            parameter_memory=start.parameter_memory,
        )
        self.card = service_card(self._service, asked.technology, technology=asked.technology)
        check_level(start.require, self.card.isolation, self.card.technology, {}, {})
        self._keeper = keep_state(self._service.caller_state, start.snapshots, self._service.manifest_digest)

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        with self._turn:
            return self._service.answer(asks)

    def alarms(self) -> Sequence[Alarm]:
        return self._service.alarms()

    def clear_alarm(self, caller: str) -> bool:
        known = self._service.clear_alarm(caller)
        if self._keeper is not None:
            self._keeper.now()
        return known

    def witness(self, ledger: bytes, at: int, head: bytes) -> SignedCheckpoint:
        return self._service.witness.sign(ledger, at, head)

    def evidence(self, nonce: bytes) -> Evidence:
        with self._turn:  # the server asks for evidence for its ledger, beside the requests of others
            return self._service.evidence(nonce, {})

    def stop(self) -> None:
        """The service lives and dies with this process; what it remembers of callers is written down."""
        if self._keeper is not None:
            self._keeper.stop()
