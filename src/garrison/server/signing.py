"""Answers signed in the form of HTTP (RFC 9421): who asks for one, by the header `Accept-Signature` or by the server's setting, gets one.

Ed25519 signatures are the enclave's. An HMAC is the server's own, by a secret that it shares with clients: it costs a fraction, says that nothing was changed between
server and client, and vouches for no enclave. A request's `Content-Digest`, where it has one, is checked.
"""

from __future__ import annotations

import binascii
from pathlib import Path

from garrison.bundle.private import why_not_private
from garrison.config import ServerConfig
from garrison.errors import ConfigError, MalformedRequestError
from garrison.protocol.http_signature import (
    ACCEPT_HEADER,
    HMAC_SHA256,
    LABEL,
    PARAMETERS,
    RFC9421,
    TAG,
    Form,
    Said,
    Signer,
    check_content_digest,
    content_digest,
    every_component,
    hmac_signer,
    read_form,
    signed_headers,
    wanted_nonce,
)
from garrison.protocol.messages import Reply
from garrison.protocol.statement import read_proof
from garrison.server.http_errors import Answer

LEAST_SECRET_BYTES = 32
_UNASKED = tuple(name for name in PARAMETERS if name != "expires")


class Signatures:
    """Which answers of a server are signed in this form, and how.

    Args:
        always: also those whose clients do not ask for it.
        secret: shared with clients, for HMAC; None for none.
    """

    def __init__(self, *, always: bool = False, secret: bytes | None = None) -> None:
        self._always = always
        self._hmac: Signer | None = None if secret is None else hmac_signer(secret)

    def form(self, accept: str | None, digest: str | None, path: str, body: bytes) -> Form | None:
        """The signature that is wanted; None for none.

        Args:
            accept, digest: the headers `Accept-Signature` and `Content-Digest`.
            path: of the request.

        Raises:
            MalformedRequestError: the body is not the one whose digest is named, or no such signature can be made.
        """
        if digest is not None:
            _check_digest(digest, body)
        if accept is None and not self._always:
            return None
        digested = digest is not None and digest.strip() == content_digest(body)
        if accept is None:
            return Form(LABEL, every_component(digested=digested, binary=True), _UNASKED, TAG, path, digested)
        form = read_form(accept, path, digested=digested)
        if form.algorithm == HMAC_SHA256 and self._hmac is None:
            raise MalformedRequestError(
                f"the header {ACCEPT_HEADER} asks for {HMAC_SHA256}, and this server shares no secret"
            )
        return form

    @staticmethod
    def nonce(nonce: str | None, accept: str | None) -> str | None:
        """The client's nonce: that of its header, or the one that `Accept-Signature` names.

        Raises:
            MalformedRequestError: both are there, and differ.
        """
        wanted = wanted_nonce(accept) if accept is not None else ""
        if not wanted:
            return nonce
        if nonce is not None and nonce != wanted:
            raise MalformedRequestError(f"the header {ACCEPT_HEADER} names another nonce than garrison-nonce")
        return wanted

    def signed(self, answer: Answer, form: Form | None, reply: Reply) -> Answer:
        """The answer with its signature, where one is wanted and there is an answer."""
        if form is None or reply.code:
            return answer
        headers = reply.signed
        if form.algorithm == HMAC_SHA256 and self._hmac is not None:
            headers = signed_headers(form, self._hmac, _said(reply), reply.body, reply.json_bytes)
        return Answer(answer.status, [*answer.headers, *headers], answer.body)


def signatures_of(server: ServerConfig) -> Signatures:
    """What the settings say.

    Raises:
        ConfigError: the file with the secret cannot be used.
    """
    secret = None
    if server.signature_secret:
        path = Path(server.signature_secret)
        if why := why_not_private(path):
            raise ConfigError(f"server.signature_secret: {why}")
        secret = _secret(path)
    return Signatures(always=server.signatures == RFC9421, secret=secret)


def _secret(path: Path) -> bytes:
    try:
        found = binascii.a2b_base64(path.read_bytes().strip(), strict_mode=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"server.signature_secret: {path} must be a file with base64: {error}") from error
    if len(found) < LEAST_SECRET_BYTES:
        raise ConfigError(
            f"server.signature_secret: expected {LEAST_SECRET_BYTES} bytes or more, found {len(found)}; "
            "`head -c 32 /dev/urandom | base64` makes them"
        )
    return found


def _check_digest(digest: str, body: bytes) -> None:
    try:
        check_content_digest(digest, body)
    except ValueError as error:
        raise MalformedRequestError(f"the header content-digest does not fit the body: {error}") from error


def _said(reply: Reply) -> Said:
    """What the enclave's own proof says."""
    _, found = read_proof(reply.proof)
    request, model, guard = map(bytes.fromhex, (found.request, found.model, found.guard))
    return Said(request, model, guard, found.time, found.nonce)
