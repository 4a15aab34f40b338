"""Signatures in the form of HTTP: the RFC's own vectors, another implementation, and what may be asked for."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageSigner,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    algorithms,
)

from garrison.errors import MalformedRequestError, ProofError
from garrison.protocol.http_signature import (
    ED25519,
    HMAC_SHA256,
    LABEL,
    RFC9421,
    TAG,
    Form,
    Said,
    Signer,
    answer_headers,
    check_content_digest,
    content_digest,
    every_component,
    hmac_signer,
    read_form,
    read_signature,
    read_statement,
    signature_base,
    signed_headers,
    wanted_nonce,
)
from garrison.protocol.structured import InnerList, read_dictionary

# RFC 9421, appendix B.1.4 and B.1.5: keys that everybody knows.
TEST_KEY_ED25519 = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF
-----END PRIVATE KEY-----
"""
TEST_SHARED_SECRET = base64.b64decode(
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
)
# Appendix B.2: the request that all vectors sign.
REQUEST = {
    "date": "Tue, 20 Apr 2021 02:07:55 GMT",
    "content-type": "application/json",
    "content-length": "18",
    "@method": "POST",
    "@path": "/foo",
    "@authority": "example.com",
}
BODY, ASKED, SECRET = b'{"model_name":"m"}', b"what was asked", bytes(range(32))
PATH = "/v2/models/m/infer"
SAID = Said(bytes(32), b"m" * 32, b"g" * 32, 1_700_000_000, "a nonce")


def listed_in(text: str) -> InnerList:
    (found,) = read_dictionary(f"x={text}").values()
    assert isinstance(found, InnerList)
    return found


def test_the_rfcs_vector_for_ed25519() -> None:
    """Appendix B.2.6; such a signature has one value only."""
    listed = listed_in(
        '("date" "@method" "@path" "@authority" "content-type" "content-length");created=1618884473;keyid="test-key-ed25519"'
    )
    key = load_pem_private_key(TEST_KEY_ED25519, None)
    assert isinstance(key, Ed25519PrivateKey)
    expected = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    assert base64.b64encode(key.sign(signature_base(listed, REQUEST, {}))).decode() == expected


def test_the_rfcs_vector_for_hmac() -> None:
    """Appendix B.2.5."""
    listed = listed_in('("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"')
    found = hmac.digest(TEST_SHARED_SECRET, signature_base(listed, REQUEST, {}), "sha256")
    assert base64.b64encode(found).decode() == "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="


def test_the_rfcs_content_digests() -> None:
    """RFC 9530, appendix A and section 2."""
    body = b'{"hello": "world"}'
    assert content_digest(body) == "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:"
    sha512 = "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:"
    for good in (sha512, f"{content_digest(body)}, {sha512}", "md5=:AAAA:", f"md5=:AAAA:, {sha512}"):
        check_content_digest(good, body)
    for wrong in (
        sha512,
        content_digest(body),
        f"md5=:AAAA:, {sha512}",
        "sha-256=1",
        "sha-256=(1)",
        "sha-256=:A:",
        "!",
    ):
        with pytest.raises(ValueError, match=r"."):
            check_content_digest(wrong, body + b" ")


class Message:
    """What the other implementation takes for a request or an answer."""

    def __init__(
        self, headers: Mapping[str, str], *, status: int | None = None, request: Message | None = None
    ) -> None:
        self.headers = {name.title(): value for name, value in headers.items()}
        self.method, self.url = "POST", f"https://models.example{PATH}"
        if status is not None:
            self.status_code, self.request = status, request


class Keys(HTTPSignatureKeyResolver):
    def __init__(self, key: Any) -> None:
        self._key = key

    def resolve_public_key(self, key_id: str) -> Any:
        return self._key

    def resolve_private_key(self, key_id: str) -> Any:
        return self._key


def ed25519() -> tuple[Signer, Ed25519PublicKey]:
    key = Ed25519PrivateKey.generate()
    return Signer("some key", ED25519, key.sign), key.public_key()


@pytest.mark.parametrize("algorithm", [ED25519, HMAC_SHA256])
@pytest.mark.parametrize("json_bytes", [-1, 5])
def test_another_implementation_finds_our_signature_good(algorithm: str, json_bytes: int) -> None:
    signer, public = ed25519()
    key: Any = public
    theirs: Any = algorithms.ED25519
    if algorithm == HMAC_SHA256:
        signer, key, theirs = hmac_signer(SECRET), SECRET, algorithms.HMAC_SHA256
    components = every_component(digested=True, binary=True)
    form = Form(LABEL, components, ("created", "keyid", "alg", "nonce", "tag"), TAG, PATH, True, algorithm)
    said = SAID._replace(request=base64.b64decode(content_digest(ASKED)[9:-1]), time=int(time.time()))
    headers = dict(signed_headers(form, signer, said, BODY, json_bytes)) | dict(answer_headers(json_bytes))
    request = Message({"content-digest": content_digest(ASKED)})
    verifier = HTTPMessageVerifier(signature_algorithm=theirs, key_resolver=Keys(key))
    (found,) = verifier.verify(Message(headers, status=200, request=request))
    assert (found.label, found.algorithm) == (LABEL, theirs)
    covered = {c for c in components if json_bytes >= 0 or "inference-header" not in c}
    assert covered <= set(found.covered_components)
    assert (found.parameters["nonce"], found.parameters["tag"]) == ("a nonce", TAG)
    changed = headers | {"content-type": "text/plain"}
    with pytest.raises((InvalidSignature, HTTPMessageSignaturesException)):
        verifier.verify(Message(changed, status=200, request=request))


def test_we_find_another_implementations_signature_good() -> None:
    key = Ed25519PrivateKey.generate()
    message = Message({"content-digest": content_digest(BODY)}, status=200)
    signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=Keys(key))
    signer.sign(
        message,
        key_id="k",
        label="theirs",
        covered_component_ids=("@status", "content-digest"),
        use_existing_digest=True,
    )
    headers = {name.lower(): value for name, value in message.headers.items()}
    listed, signature = read_signature(headers, "theirs")
    key.public_key().verify(signature, signature_base(listed, headers, {}))


def test_what_is_signed_is_what_is_asked_for() -> None:
    accept = 'sig1=("content-digest" "@path";req "@status");nonce="n-1";tag="t";expires;alg="ed25519"'
    form = read_form(accept, PATH, digested=False)
    assert form.components == ('"content-digest"', '"@path";req', '"@status"')
    signer, public = ed25519()
    headers = dict(signed_headers(form, signer, SAID._replace(nonce=wanted_nonce(accept)), BODY, -1))
    listed, signature = read_signature(headers, "sig1")
    assert dict(listed.parameters) == {
        "nonce": "n-1",
        "tag": "t",
        "expires": SAID.time + 300,
        "alg": ED25519,
        "created": SAID.time,
        "keyid": "some key",
    }
    public.verify(signature, signature_base(listed, headers, {"@path": PATH}))
    assert read_statement(headers["garrison-statement"]) == {
        "request": bytes(32),
        "model": b"m" * 32,
        "guard": b"g" * 32,
    }


@pytest.mark.parametrize(
    "accept",
    [
        *(
            "",
            "sig",
            "sig=1",
            'sig=("@status")',
            'sig=("content-digest" "content-digest")',
            "sig=(content-digest)",
            "!",
        ),
        *('sig=("content-digest" "x-other")', 'sig=("content-digest" "@query")', 'sig=("content-digest";sf)'),
        *(
            'sig=("content-digest");alg="rsa-pss-sha512"',
            'sig=("content-digest");what="x"',
            'sig=("content-digest");tag=1',
        ),
        *('a=("content-digest"), b=("content-digest")', 'sig=("content-digest" "content-digest";req)'),
        *(
            f'sig=("content-digest");tag="{"t" * 300}"',
            'sig=("content-digest";req;bs)',
            'sig=("content-digest" "@status";req)',
        ),
    ],
)
def test_what_cannot_be_made_is_told(accept: str) -> None:
    with pytest.raises(MalformedRequestError, match="accept-signature"):
        read_form(accept, PATH, digested=False)


def test_the_requests_digest_can_be_covered_where_the_request_names_it() -> None:
    accept = 'sig=("content-digest" "content-digest";req)'
    assert read_form(accept, PATH, digested=True).components == ('"content-digest"', '"content-digest";req')


def test_a_component_that_is_not_there_is_no_signature() -> None:
    with pytest.raises(ProofError, match="not there"):
        signature_base(listed_in('("content-digest")'), {}, {})
    for headers in ({}, {"signature-input": 'garrison=("a")'}, {"signature-input": "!", "signature": "!"}):
        with pytest.raises(ProofError):
            read_signature(headers, LABEL)
    with pytest.raises(ProofError, match="statement"):
        read_statement("!")


def test_the_name_of_a_secret_does_not_tell_it() -> None:
    assert hmac_signer(SECRET).key != hmac_signer(SECRET + b"x").key
    assert SECRET.hex() not in hmac_signer(SECRET).key
    assert RFC9421 == "rfc9421"


def test_a_word_without_quotes_is_no_nonce_and_no_tag() -> None:
    """It is a string of another type, which cannot be handed to the enclave: one such request failed all others of its batch."""
    assert wanted_nonce('sig=("content-digest");nonce=abc') == ""
    assert wanted_nonce('sig=("content-digest");nonce="abc"') == "abc"
    for parameter in ("nonce=abc", "tag=abc", "alg=ed25519"):
        with pytest.raises(MalformedRequestError, match="accept-signature"):
            read_form(f'sig=("content-digest");{parameter}', PATH, digested=False)


def test_what_is_not_ascii_is_no_signature() -> None:
    with pytest.raises(ProofError, match="ASCII"):
        signature_base(listed_in('("content-type")'), {"content-type": "\u00e9"}, {})
