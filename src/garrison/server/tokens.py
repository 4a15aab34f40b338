"""Bearer tokens of an identity provider: JSON Web Tokens (RFC 7519), signed (RFC 7515), checked as RFC 8725 asks.

    1 size and form     one compact JWS, bounded
    2 key               by the header's `kid`, from the issuer's own set; what the token itself says of keys (`jwk`, `jku`, `x5c`) is not looked at
    3 signature         by an algorithm of the list, which fits the kind of key: `none` and HMAC are never in it
    4 claims            issuer and audience as set; not expired, not before its time; `exp` must be there
    5 who and what      subject claim to the caller's name, scope claim to scopes

Invariants: nothing is believed before step 3; whatever cannot be read refuses. A token that was found good is remembered until it ends or the issuer's keys
change. Not checked: whether the issuer has revoked a token before it ends; keep their lives short.
"""

from __future__ import annotations

import base64
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import msgspec

from garrison.config import OidcConfig
from garrison.errors import AuthenticationError, UnavailableError
from garrison.server.identity import Identity, read_scopes
from garrison.server.jwks import MOST_KID, Keys, jose

MOST_BYTES = 8192
SUBJECT = "oidc:"
"""What the id of a caller begins with who showed a token."""
_MOST_SUBJECT = 200
_DOTS = 2
_BAD = "the token is not good: {}"
_WAIT = "the issuer's keys are being read; try again"


class _Header(msgspec.Struct):
    alg: str
    kid: str | None = None
    crit: Any = None


class Tokens:
    """Tells whose a token is.

    Args:
        settings: whose tokens are taken; its issuer must not be empty.
        clock: seconds since the epoch.

    Raises:
        ConfigError, MissingExtraError: see `garrison.server.jwks.Keys`.
    """

    def __init__(self, settings: OidcConfig, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self._jose = jose()
        self.keys = Keys(settings)
        if "EdDSA" in settings.algorithms:  # RFC 9864 renamed it; issuers still say it
            warnings.filterwarnings("ignore", message="EdDSA is deprecated")
        self._registry = self._jose.jws.JWSRegistry(algorithms=list(settings.algorithms), strict_check_header=False)
        self._registry.max_header_length = MOST_BYTES
        claims: Any = {
            "iss": {"essential": True, "value": settings.issuer},
            "aud": {"essential": True, "value": settings.audience},
            "exp": {"essential": True},
        }
        self._claims = claims

    def identify(self, token: str) -> Identity:
        """Whose the token is.

        Raises:
            AuthenticationError: it is not good.
            UnavailableError: the issuer's keys are not known just now.
        """
        if len(token) > MOST_BYTES or not token.isascii() or token.count(".") != _DOTS:
            raise AuthenticationError(_BAD.format(f"expected a signed token of at most {MOST_BYTES} characters"))
        if not self.keys.usable:
            self.keys.refresh()
            raise UnavailableError("the issuer's keys cannot be had just now, so no token is good; try again")
        key = self._key(self._header(token))
        try:
            claims = self._jose.jwt.decode(
                token, key, algorithms=list(self._settings.algorithms), registry=self._registry
            ).claims
            leeway = math.ceil(self._settings.leeway_seconds)
            self._jose.jwt.JWTClaimsRegistry(int(self._clock()), leeway, **self._claims).validate(claims)
        except (self._jose.errors.JoseError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            # Types alone: a library's message may repeat what is in the token.
            raise AuthenticationError(_BAD.format(type(error).__name__.removesuffix("Error"))) from error
        return self._identity(claims)

    def _header(self, token: str) -> _Header:
        try:
            data = _decode(token.partition(".")[0])
            header = msgspec.json.decode(data, type=_Header)
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise AuthenticationError(_BAD.format("its header cannot be read")) from error
        if header.alg not in self._settings.algorithms:
            raise AuthenticationError(_BAD.format("its algorithm is not allowed"))
        if header.crit is not None:
            raise AuthenticationError(_BAD.format("it demands extensions that are not known"))
        if header.kid is not None and len(header.kid) > MOST_KID:
            raise AuthenticationError(_BAD.format("its key id is too long"))
        return header

    def _key(self, header: _Header) -> Any:
        key = self.keys.of(header.kid)
        if key is not None:
            if key.get("alg") not in {None, header.alg}:
                raise AuthenticationError(_BAD.format("its algorithm is not its key's"))
            return key
        if self.keys.look_for():
            raise UnavailableError(_WAIT)
        raise AuthenticationError(_BAD.format("its key is not one of the issuer's"))

    def _identity(self, claims: dict[str, Any]) -> Identity:
        subject, ends = claims.get(self._settings.subject), claims.get("exp")
        if not (isinstance(subject, str) and 0 < len(subject) <= _MOST_SUBJECT and subject.isascii()):
            raise AuthenticationError(_BAD.format("its subject cannot be used"))
        if not all(mark.isprintable() and mark != " " for mark in subject):
            raise AuthenticationError(_BAD.format("its subject cannot be used"))
        if isinstance(ends, bool) or not isinstance(ends, int | float) or not math.isfinite(ends):
            raise AuthenticationError(_BAD.format("its end cannot be read"))
        scopes = read_scopes((*self._settings.scopes, *self._told(claims)), strict=False)
        return Identity(SUBJECT + subject, scopes, ends + self._settings.leeway_seconds)

    def _told(self, claims: dict[str, Any]) -> list[str]:
        """The words of the scope claim: one string with spaces between them (RFC 8693), or a list."""
        told = claims.get(self._settings.scope, "") if self._settings.scope else ""
        if isinstance(told, str):
            return told.split()
        if isinstance(told, list) and all(isinstance(word, str) for word in told):
            return told
        raise AuthenticationError(_BAD.format("its scopes cannot be read"))


def _decode(part: str) -> bytes:
    return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
