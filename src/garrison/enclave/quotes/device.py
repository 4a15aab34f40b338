"""What the quote makers share: how a device's failure is told, and a look at whether the quote is over what was asked."""

from __future__ import annotations

from garrison.attest.evidence import REPORT_DATA_BYTES
from garrison.errors import IsolationError


def check_length(report_data: bytes) -> None:
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError(f"expected {REPORT_DATA_BYTES} bytes of report data, found {len(report_data)}")


def check_bound(quote: bytes, offset: int, report_data: bytes, device: str) -> None:
    """Raise `IsolationError` unless the report data stands in the quote: two who ask one device at a time may get each other's."""
    if quote[offset : offset + REPORT_DATA_BYTES] != report_data:
        raise IsolationError(f"{device} gave a quote over other report data than was asked for; ask again")


def device_error(device: str, error: OSError) -> IsolationError:
    return IsolationError(f"{device}: no quote could be had ({error.strerror or error}); is this that kind of machine?")
