"""What the server calls a client: the name goes into sealed requests and proofs of work, so that nobody can hand them in for somebody else.

    gk_alice_...       alice            an API key of the server's own
    a signed token     oidc:SUBJECT     its claim `sub`; where the server is set to another claim, the caller says it
    a certificate      cert:NAME        the caller says it
    none of these      ""               an address, which names nobody

Not checked: the token. The server does that; a name that is not the one it comes to is refused inside the enclave.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from garrison.errors import ConfigError

_OURS = "gk_"
_SUBJECT = "oidc:"
_DOTS = 2
_MOST_TOKEN = 16_384


class _Claims(msgspec.Struct):
    sub: str


def caller_of(api_key: str | None, given: str = "") -> str:
    """The name under which the server knows who shows this key or token.

    Args:
        given: said by who makes the client; counts before all else.

    Raises:
        ConfigError: the name cannot be known.
    """
    if given:
        if not (given.isascii() and given.isprintable()) or " " in given:
            raise ConfigError("caller must be the name that the server knows you by, such as oidc:alice or cert:alice")
        return given
    if api_key is None:
        return ""
    head, _, secret = api_key.rpartition("_")
    if head.startswith(_OURS) and head[len(_OURS) :] and secret:
        return head[len(_OURS) :]
    if api_key.count(".") == _DOTS and not api_key.startswith(_OURS):
        return _SUBJECT + _subject(api_key)
    raise ConfigError(
        "expected an API key like gk_NAME_SECRET, as `garrison keys add` prints it, or a signed token; for anything else give caller="
    )


def known_as(api_key: str | None, given: str = "") -> str:
    """As `caller_of`; "" where the name cannot be known, for who does not need it."""
    try:
        return caller_of(api_key, given)
    except ConfigError:
        return given


def _subject(token: str) -> str:
    payload = token.split(".")[1]
    try:
        if len(token) > _MOST_TOKEN:
            raise ValueError("it is too long")
        data = base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
        found = msgspec.json.decode(data, type=_Claims).sub
    except (ValueError, binascii.Error, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise ConfigError(
            "the token has no subject that can be read; give caller=, the name that the server knows you by"
        ) from error
    if not found:
        raise ConfigError("the token's subject is empty; give caller=, the name that the server knows you by")
    return found
