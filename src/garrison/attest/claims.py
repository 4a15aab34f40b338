"""What a quote says, once its signature holds."""

from __future__ import annotations

import msgspec


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """The same for all technologies.

    Attributes:
        report_data: the bytes that the enclave chose.
        measurement: the program, in lower-case hex; several registers are joined by ":".
        time: seconds since the epoch, UTC, at which the document says it was made; None where it does not say.
    """

    report_data: bytes
    measurement: str
    time: float | None = None
