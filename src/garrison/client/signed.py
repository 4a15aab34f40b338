"""A client that wants answers signed in the form of HTTP (RFC 9421), and checks them.

Invariants: what the client uses of an answer is covered: its status, type, body and the length of the body's JSON part; and it is the answer to
this request: its body's digest, method and path, and a fresh nonce. A signature that covers less is refused, however well it holds.

Not covered: other headers (`RateLimit` among them), and errors, which nobody signs.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from garrison.crypto.signing import verify_ed25519
from garrison.errors import ConfigError, ProofError
from garrison.protocol.http_messages import Response
from garrison.protocol.http_signature import (
    ACCEPT_HEADER,
    DIGEST_HEADER,
    ED25519,
    HMAC_SHA256,
    LABEL,
    LENGTH_HEADER,
    RFC9421,
    STATEMENT_HEADER,
    TAG,
    content_digest,
    every_component,
    hmac_key_name,
    read_signature,
    read_statement,
    signature_base,
)
from garrison.protocol.oip_metadata import ModelKey
from garrison.protocol.structured import InnerList, Item, write_inner_list, write_item

LEAST_SECRET_BYTES = 32
_CREATED = "created"


class HttpSignatures:
    """What a client asks for, and demands.

    Args:
        secret: shared with the server, for HMAC; None for the service's signing key.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        if secret is not None and len(secret) < LEAST_SECRET_BYTES:
            raise ConfigError(f"signature_secret: expected {LEAST_SECRET_BYTES} bytes or more, found {len(secret)}")
        self._secret = secret

    def headers(self, body: bytes, nonce: str) -> dict[str, str]:
        """What goes with a request."""
        components = tuple(_parsed(c) for c in every_component(digested=True, binary=True))
        wanted = InnerList(components, {_CREATED: True, "alg": self._algorithm, "nonce": nonce, "tag": TAG})
        return {ACCEPT_HEADER: f"{LABEL}={write_inner_list(wanted)}", DIGEST_HEADER: content_digest(body)}

    def check(self, response: Response, body: bytes, path: str, nonce: str, key: ModelKey) -> None:
        """Whether an answer is the one that the service gave to this request.

        Args:
            body, path: of the request.
            key: what the server names as signing key, model and guard.

        Raises:
            ProofError: anything does not fit. The answer must not be used.
        """
        headers = response.headers
        listed, signature = read_signature(headers, LABEL)
        name, verify = self._verifier(key)
        _check_listed(listed, binary=LENGTH_HEADER in headers, nonce=nonce, name=name, algorithm=self._algorithm)
        if headers.get(DIGEST_HEADER) != content_digest(response.body):
            raise ProofError("the answer's body is not the one whose digest was signed")
        of_request = {"@method": "POST", "@path": path, DIGEST_HEADER: content_digest(body)}
        verify(signature, signature_base(listed, {**headers, "@status": str(response.status)}, of_request))
        said = read_statement(headers.get(STATEMENT_HEADER, ""))
        expected = {
            "request": hashlib.sha256(body).hexdigest(),
            "model": key.manifest_digest,
            "guard": key.guard_digest,
        }
        for what, digest in expected.items():
            if said.get(what, b"").hex() != digest:
                raise ProofError(f"the answer was signed for another {what} than this one")

    @property
    def _algorithm(self) -> str:
        return ED25519 if self._secret is None else HMAC_SHA256

    def _verifier(self, key: ModelKey) -> tuple[str, Callable[[bytes, bytes], None]]:
        secret = self._secret
        if secret is None:
            public = _public(key)
            return key.public_key, lambda signature, base: verify_ed25519(public, signature, base)

        def verify(signature: bytes, base: bytes) -> None:
            if not hmac.compare_digest(hmac.digest(secret, base, "sha256"), signature):
                raise ProofError("the answer's HMAC does not hold under the shared secret")

        return hmac_key_name(secret), verify


def http_signatures(form: str | None, secret: bytes | None) -> HttpSignatures | None:
    """What the arguments of a client ask for.

    Raises:
        ConfigError: an unknown form, or a secret without one.
    """
    if form is None:
        if secret is not None:
            raise ConfigError(f'signature_secret goes with signatures="{RFC9421}"')
        return None
    if form != RFC9421:
        raise ConfigError(f'signatures must be "{RFC9421}" or None, found {form!r}')
    return HttpSignatures(secret)


def _check_listed(listed: InnerList, *, binary: bool, nonce: str, name: str, algorithm: str) -> None:
    covered = tuple(map(write_item, listed.items))
    if covered != every_component(digested=True, binary=binary):
        raise ProofError("the answer's signature does not cover what was asked for")
    found = dict(listed.parameters)
    created = found.pop(_CREATED, None)
    expected = {"keyid": name, "alg": algorithm, "nonce": nonce, "tag": TAG}
    if found != expected or not isinstance(created, int) or isinstance(created, bool):
        wrong = next((what for what, value in expected.items() if found.get(what) != value), _CREATED)
        raise ProofError(f"the answer's signature has another {wrong} than was asked for")


def _parsed(component: str) -> Item:
    name, _, rest = component.partition(";")
    return Item(name.strip('"'), {"req": True} if rest else {})


def _public(key: ModelKey) -> bytes:
    try:
        return bytes.fromhex(key.public_key)
    except ValueError as error:
        raise ProofError("the service's key cannot be read") from error
