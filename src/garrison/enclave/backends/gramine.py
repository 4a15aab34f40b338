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
from garrison.enclave.here import ServiceHere
from garrison.enclave.host import Launch
from garrison.enclave.levels import check_level
from garrison.enclave.quotes import Quoter
from garrison.enclave.quotes.gramine import GramineQuoter
from garrison.enclave.service import Service
from garrison.protocol.messages import Ask, Reply


class Gramine(ServiceHere):
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
        service = Service(
            verify(start.bundle, start.trusted, start.limits),
            key=start.key,
            tightened=start.tightened,
            callers=start.callers,
            limits=start.limits,
            quoter=asked,
            parameter_memory=start.parameter_memory,
        )
        card = service_card(service, asked.technology, technology=asked.technology)
        check_level(start.require, card.isolation, card.technology, {}, {})
        super().__init__(service, card, start.snapshots)

    def call(self, asks: Sequence[Ask]) -> list[Reply]:
        with self._turn:
            return super().call(asks)

    def evidence(self, nonce: bytes) -> Evidence:
        with self._turn:  # the server asks for evidence for its ledger, beside the requests of others
            return self._service.evidence(nonce, {})
