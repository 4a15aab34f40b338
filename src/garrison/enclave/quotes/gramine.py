"""Quotes of an SGX enclave under Gramine, through its pseudo-files (Gramine documentation, "Attestation and secret provisioning"):
`/dev/attestation/user_report_data` takes the report data, `/dev/attestation/quote` gives the quote.

The manifest template beside this file (`garrison.manifest.template`) asks for DCAP and no debug. NOT RUN ON HARDWARE: tested against
a folder of plain files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from garrison.attest.evidence import Quote, Technology
from garrison.enclave.quotes.device import check_bound, check_length, device_error
from garrison.errors import IsolationError

ATTESTATION_FOLDER = Path("/dev/attestation")
MANIFEST_TEMPLATE = Path(__file__).with_name("garrison.manifest.template")
_REPORT_DATA_AT = 48 + 320  # header, then the enclave's report up to its report data


class GramineQuoter:
    """Asks Gramine.

    Args:
        folder: where its pseudo-files are.
        collateral: what the operator has fetched from the vendor (`dcap`); handed on with every quote.
    """

    technology: Technology = "sgx"

    def __init__(self, folder: Path = ATTESTATION_FOLDER, collateral: Mapping[str, bytes] | None = None) -> None:
        kind = folder / "attestation_type"
        try:
            found = kind.read_text().strip()
        except OSError as error:
            raise device_error(str(kind), error) from error
        if found != "dcap":
            raise IsolationError(
                f"{kind}: expected 'dcap', found {found!r}; set sgx.remote_attestation in the manifest"
            )
        self._folder, self._given = folder, dict(collateral or {})

    def quote(self, report_data: bytes) -> Quote:
        check_length(report_data)
        try:
            (self._folder / "user_report_data").write_bytes(report_data)
            quote = (self._folder / "quote").read_bytes()
        except OSError as error:
            raise device_error(str(self._folder), error) from error
        check_bound(quote, _REPORT_DATA_AT, report_data, str(self._folder))
        return Quote(technology="sgx", quote=quote, collateral=self._given)
