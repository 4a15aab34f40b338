"""Documents of an AWS Nitro enclave, from its security module: one ioctl on `/dev/nsm` that carries CBOR both ways (Linux
`include/uapi/linux/nsm.h`; AWS "Nitro Secure Module" API).

The report data goes into `user_data`. NOT RUN ON HARDWARE: tested against a stand-in for the ioctl.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from garrison.attest.evidence import Quote, Technology
from garrison.enclave.quotes.device import check_length, device_error
from garrison.errors import IsolationError, MissingExtraError

NSM_DEVICE = Path("/dev/nsm")
NSM_IOCTL_RAW = 0xC0200A00
"""_IOWR(0x0A, 0x0, struct nsm_raw), of 32 bytes."""
RESPONSE_BYTES = 0x3000


Value = TypeVar("Value", bytes, str)


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class NsmMessage(ctypes.Structure):
    """What the ioctl takes: where the request lies, and where the response goes; the kernel puts its length there."""

    _fields_ = (("request", IoVec), ("response", IoVec))


class NitroQuoter:
    """Asks the security module.

    Args:
        device: its path.
        ioctl: (descriptor, number, message) as `fcntl.ioctl`.
    """

    technology: Technology = "nitro"

    def __init__(self, device: Path = NSM_DEVICE, ioctl: Callable[[int, int, Any], Any] = fcntl.ioctl) -> None:
        if not device.exists():
            raise IsolationError(f"{device} is not there: expected a Nitro enclave")
        self._cbor = _package()
        self._device, self._ioctl = device, ioctl

    def quote(self, report_data: bytes) -> Quote:
        check_length(report_data)
        found = self._ask("Attestation", {"user_data": report_data, "nonce": None, "public_key": None})
        return Quote(technology="nitro", quote=self._field(found, "document", bytes))

    def measurement(self) -> bytes:
        """PCR0, over the whole image of the enclave; all zero in debug mode.

        Raises:
            IsolationError: the module does not answer.
        """
        return self._field(self._ask("DescribePCR", {"index": 0}), "data", bytes)

    def name(self) -> str:
        """What the module calls the enclave that it belongs to.

        Raises:
            IsolationError: the module does not answer.
        """
        return self._field(self._ask("DescribeNSM", None), "module_id", str)

    def _ask(self, request: str, fields: dict[str, Any] | None) -> dict[str, Any]:
        """A request, and the fields of its response; one without fields is its bare name."""
        question = request if fields is None else {request: fields}
        try:
            answer = self._cbor.loads(self._exchange(self._cbor.dumps(question)))
        except OSError as error:
            raise device_error(str(self._device), error) from error
        except self._cbor.CBORDecodeError as error:
            raise IsolationError(f"{self._device} gave no CBOR") from error
        found = answer if isinstance(answer, dict) else {}
        inner = found.get(request)
        return inner if isinstance(inner, dict) else {"Error": found["Error"]} if "Error" in found else {}

    def _field(self, found: dict[str, Any], name: str, kind: type[Value]) -> Value:
        value = found.get(name)
        if not isinstance(value, kind):
            raise IsolationError(f"{self._device} refused: {found.get('Error', f'no {name}')}")
        return value

    def _exchange(self, question: bytes) -> bytes:
        asked = ctypes.create_string_buffer(question, len(question))
        told = ctypes.create_string_buffer(RESPONSE_BYTES)
        message = NsmMessage(
            request=IoVec(ctypes.addressof(asked), len(question)),
            response=IoVec(ctypes.addressof(told), RESPONSE_BYTES),
        )
        descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._ioctl(descriptor, NSM_IOCTL_RAW, message)
        finally:
            os.close(descriptor)
        return told.raw[: min(message.response.length, RESPONSE_BYTES)]


def _package() -> Any:
    try:
        import cbor2
    except ImportError as error:
        raise MissingExtraError("cbor2", "attest") from error
    return cbor2
