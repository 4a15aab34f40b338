"""The one table from Garrison's error codes to HTTP, for the server and for the local proxy. A code that is not in it is our own fault."""

from __future__ import annotations

from garrison.errors import (
    AuthenticationError,
    BudgetExhaustedError,
    InputError,
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
    ThrottledError,
    UnavailableError,
    UpstreamError,
    WorkRequiredError,
)

INTERNAL = "internal"
INTERNAL_STATUS = 500

STATUS: dict[str, int] = {
    MalformedRequestError.code: 400,
    InputError.code: 400,
    SealedRequestError.code: 400,
    AuthenticationError.code: 401,
    RefusedError.code: 403,
    NotFoundError.code: 404,
    MethodError.code: 405,
    SlowRequestError.code: 408,
    LimitError.code: 413,
    ReplayError.code: 409,
    StaleKeyError.code: 409,
    SealingRequiredError.code: 426,
    WorkRequiredError.code: 428,
    BudgetExhaustedError.code: 429,
    ThrottledError.code: 429,
    INTERNAL: INTERNAL_STATUS,
    UpstreamError.code: 502,
    UnavailableError.code: 503,
}
