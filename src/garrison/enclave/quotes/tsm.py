"""Quotes of a confidential virtual machine through configfs-tsm (Linux 6.7; Documentation/ABI/testing/configfs-tsm).

A folder is made below `/sys/kernel/config/tsm/report`; the kernel fills it with files: `inblob` takes the report data, `outblob`
gives the quote, `provider` says who made it, and `auxblob` on SEV-SNP holds the host's table of certificates (AMD 56421, "GHCB",
SNP_GUEST_REQUEST). Making the folder takes root, so quotes are asked for before the user is dropped, or by who has not dropped it.

NOT RUN ON HARDWARE: tested against a folder that is made like the kernel's.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from garrison.attest.evidence import Quote, Technology
from garrison.enclave.quotes.device import check_bound, check_length, device_error
from garrison.errors import IsolationError

TSM_FOLDER = Path("/sys/kernel/config/tsm/report")
_ENTRY = struct.Struct("<16sII")
_CERTIFICATES = {
    "63da758d-e664-4564-adc5-f4b93be8accd": "vcek",
    "4ab7b379-bbac-4fe4-a02f-05aef327c782": "ask",
    "c0b406a4-a803-4952-9743-3fb6014cd0ae": "ark",
}


class _TsmQuoter:
    """Asks the kernel.

    Args:
        folder: where reports are asked for.
        collateral: what the operator has fetched from the vendor; handed on with every quote, and checked by who verifies it.
        make: makes a folder for one report; the kernel's does no more than `mkdir`.
        remove: takes it away again.
    """

    technology: Technology
    _provider: ClassVar[str]
    _report_data_at: ClassVar[int]

    def __init__(
        self,
        folder: Path = TSM_FOLDER,
        collateral: Mapping[str, bytes] | None = None,
        make: Callable[[Path], None] = Path.mkdir,
        remove: Callable[[Path], None] = Path.rmdir,
    ) -> None:
        if not folder.is_dir():
            raise IsolationError(f"{folder} is not there: expected a confidential virtual machine with configfs-tsm")
        self._folder, self._make, self._remove = folder, make, remove
        self._given = dict(collateral or {})

    def quote(self, report_data: bytes) -> Quote:
        check_length(report_data)
        entry = self._folder / f"garrison-{secrets.token_hex(8)}"
        try:
            self._make(entry)
            try:
                return self._ask(entry, report_data)
            finally:
                with contextlib.suppress(OSError):
                    self._remove(entry)
        except OSError as error:
            raise device_error(str(self._folder), error) from error

    def _ask(self, entry: Path, report_data: bytes) -> Quote:
        provider = (entry / "provider").read_text().strip()
        if provider != self._provider:
            raise IsolationError(f"{self._folder}: expected the provider {self._provider!r}, found {provider!r}")
        (entry / "inblob").write_bytes(report_data)
        quote = (entry / "outblob").read_bytes()
        check_bound(quote, self._report_data_at, report_data, str(self._folder))
        return Quote(technology=self.technology, quote=quote, collateral=self._given | self._collateral(entry))

    def _collateral(self, entry: Path) -> dict[str, bytes]:  # noqa: ARG002  one technology has it
        return {}


class SnpQuoter(_TsmQuoter):
    """AMD SEV-SNP. The host's certificates go with the report, where the host gives any."""

    technology: Technology = "snp"
    _provider = "sev_guest"
    _report_data_at = 0x50

    def _collateral(self, entry: Path) -> dict[str, bytes]:
        try:
            return parse_certificates((entry / "auxblob").read_bytes())
        except FileNotFoundError:
            return {}


class TdxQuoter(_TsmQuoter):
    """Intel TDX. Collateral (`dcap`) comes from Intel's service or a cache of it: by the operator, or by who verifies."""

    technology: Technology = "tdx"
    _provider = "tdx_guest"
    _report_data_at = 48 + 520  # header, then the TD report up to its report data


def parse_certificates(table: bytes) -> dict[str, bytes]:
    """The certificates of a host's table, by name: entries of (GUID, offset, length) up to one of zeros, then the bytes.

    Raises:
        IsolationError: an entry points outside the table.
    """
    found: dict[str, bytes] = {}
    for at in range(0, len(table) - _ENTRY.size + 1, _ENTRY.size):
        guid, offset, length = _ENTRY.unpack_from(table, at)
        if not any(guid):
            break
        if offset + length > len(table):
            raise IsolationError("the host's table of certificates is broken: an entry points outside it")
        if name := _CERTIFICATES.get(str(uuid.UUID(bytes_le=guid))):
            found[name] = table[offset : offset + length]
    return found
