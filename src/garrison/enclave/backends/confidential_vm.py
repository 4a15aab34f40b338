"""`--isolation snp`, `--isolation tdx`: a confined process in a confidential virtual machine, whose hardware vouches for it.

The whole guest is what the hardware measures and protects: its kernel, the server, and the process. Within it, the process is kept apart
from the server as `--isolation process` keeps it. The server asks the hardware, because that takes root; it cannot slip in other
keys than those of the report data without being part of the measured guest, which a client's policy lists.

NOT RUN ON HARDWARE: the quote makers are tested against folders that are made like the kernel's, this composition with a public key
infrastructure of the tests' own.
"""

from __future__ import annotations

from garrison.enclave.backends.process import ProcessEnclave
from garrison.enclave.host import Launch
from garrison.enclave.quotes.tsm import SnpQuoter, TdxQuoter


class SnpVm(ProcessEnclave):
    """AMD SEV-SNP."""

    def __init__(self, start: Launch) -> None:
        super().__init__(start, SnpQuoter(collateral=start.collateral))


class TdxVm(ProcessEnclave):
    """Intel TDX."""

    def __init__(self, start: Launch) -> None:
        super().__init__(start, TdxQuoter(collateral=start.collateral))
