"""The one table from Garrison's error codes to HTTP, for the server and for the local proxy. A code that is not in it is our own fault."""

from __future__ import annotations

from garrison.errors import (
    AuthenticationError,
    BudgetExhaustedError,
    ForbiddenError,
    GarrisonError,
    InputError,
    InvalidAnswerError,
    LimitError,
    MalformedRequestError,
    MethodError,
    NotFoundError,
    RefusedError,
    ReplayError,
    SealedRequestError,
    SealingRequiredError,
    SlowRequestError,
    StaleKeyError,
    StaleSessionError,
    ThrottledError,
    TooFastError,
    UnavailableError,
    UpstreamError,
    WorkRequiredError,
)

INTERNAL = "internal"
INTERNAL_STATUS = 500

_STATUS_OF: dict[type[GarrisonError], int] = {
    MalformedRequestError: 400,
    InputError: 400,
    SealedRequestError: 400,
    AuthenticationError: 401,
    ForbiddenError: 403,
    RefusedError: 403,
    NotFoundError: 404,
    MethodError: 405,
    SlowRequestError: 408,
    LimitError: 413,
    ReplayError: 409,
    StaleKeyError: 409,
    StaleSessionError: 409,
    SealingRequiredError: 426,
    WorkRequiredError: 428,
    BudgetExhaustedError: 429,
    ThrottledError: 429,
    TooFastError: 429,
    InvalidAnswerError: 500,
    UpstreamError: 502,
    UnavailableError: 503,
}
STATUS: dict[str, int] = {kind.code: status for kind, status in _STATUS_OF.items()} | {INTERNAL: INTERNAL_STATUS}
ERRORS: dict[str, type[GarrisonError]] = {kind.code: kind for kind in _STATUS_OF}
"""What a client raises for a code that a service told it."""
