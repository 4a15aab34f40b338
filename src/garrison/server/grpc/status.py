"""The one table from HTTP's status codes, and so from Garrison's error codes, to those of gRPC."""

from __future__ import annotations

import grpc

from garrison.protocol.http_status import STATUS

_CODES: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    426: grpc.StatusCode.FAILED_PRECONDITION,
    428: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    502: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


def status_of(code: str) -> grpc.StatusCode:
    """The status for an error code; one that is not known is our own fault."""
    return _CODES[STATUS[code]] if code in STATUS else grpc.StatusCode.INTERNAL
