"""Who makes quotes: a new technology is one file here and one line below."""

from __future__ import annotations

import importlib
from typing import Protocol

from garrison.attest.evidence import Quote, Technology


class Quoter(Protocol):
    """Asks the hardware under this enclave to sign 64 bytes."""

    @property
    def technology(self) -> Technology: ...

    def quote(self, report_data: bytes) -> Quote:
        """A quote over `REPORT_DATA_BYTES` bytes.

        Raises:
            IsolationError: the device is not there, or does not answer as it should.
        """
        ...


QUOTERS: dict[Technology, str] = {
    "sim": "garrison.enclave.quotes.sim:SimQuoter",
    "snp": "garrison.enclave.quotes.tsm:SnpQuoter",
    "tdx": "garrison.enclave.quotes.tsm:TdxQuoter",
    "sgx": "garrison.enclave.quotes.gramine:GramineQuoter",
    "nitro": "garrison.enclave.quotes.nitro:NitroQuoter",
}


def make_quoter(technology: Technology) -> Quoter:
    """The quoter of a technology, on this machine's own device.

    Raises:
        IsolationError: the device is not there.
        MissingExtraError: the technology needs a package that is not installed.
    """
    module, _, attribute = QUOTERS[technology].partition(":")
    quoter: Quoter = getattr(importlib.import_module(module), attribute)()
    return quoter
