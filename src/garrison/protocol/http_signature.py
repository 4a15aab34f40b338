"""HTTP message signatures (RFC 9421) over answers, with Content-Digest (RFC 9530): what our proof says, in the form that others can check.

    Content-Digest: sha-256=:...:
    Garrison-Statement: request=:...:, model=:...:, guard=:...:
    Signature-Input: garrison=("@status" "content-type" ...);created=...;keyid="...";alg="ed25519";nonce="...";tag="garrison"
    Signature: garrison=:...:

The statement names SHA-256 of the request's body, of the model's manifest and of the guard; time and nonce are the signature's parameters. A
client asks for it by `Accept-Signature`, and names what shall be covered. One answer, one signature: it costs more than an answer's share of a batch's one signature,
so it is made where it is asked for.

Invariant: whoever signs knows each covered value by itself; nothing is signed because somebody said so. What is covered can be written in one way only.

Not said by a signature: that the answer is f(x) (the guard may have misinformed), and anything of headers that are not covered.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from garrison.errors import MalformedRequestError, ProofError
from garrison.protocol.oip import ALL_JSON
from garrison.protocol.structured import (
    Bare,
    InnerList,
    Item,
    Token,
    read_dictionary,
    write_inner_list,
    write_item,
)

RFC9421 = "rfc9421"
LABEL = "garrison"
TAG = "garrison"
ED25519, HMAC_SHA256 = "ed25519", "hmac-sha256"
ACCEPT_HEADER = "accept-signature"
INPUT_HEADER, SIGNATURE_HEADER = "signature-input", "signature"
DIGEST_HEADER, STATEMENT_HEADER = "content-digest", "garrison-statement"
LENGTH_HEADER, TYPE_HEADER = "inference-header-content-length", "content-type"
EXPIRES_SECONDS = 300
JSON_TYPE, BINARY_TYPE = "application/json", "application/octet-stream"

_REQUEST = {"req": True}
_STATUS = "200"
RESPONSE = ("@status", TYPE_HEADER, DIGEST_HEADER, STATEMENT_HEADER, LENGTH_HEADER)
OF_REQUEST = ("@method", "@path", DIGEST_HEADER)
PARAMETERS = ("created", "expires", "keyid", "alg", "nonce", "tag")
_ALWAYS = ("created", "keyid")
_MOST_TEXT = 256

Headers = tuple[tuple[str, str], ...]


class Form(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The signature that a client wants.

    Attributes:
        label: its name in the headers.
        components: what is covered, as `identifier` writes it, in this order.
        parameters: which of `PARAMETERS`, in this order.
        tag: "" for none.
        path: of the request.
        digested: whether the request names the SHA-256 of its body in `Content-Digest`.
        algorithm: `ED25519` for the enclave's signature, `HMAC_SHA256` for the server's.
    """

    label: str
    components: tuple[str, ...]
    parameters: tuple[str, ...]
    tag: str
    path: str
    digested: bool
    algorithm: str = ED25519


class Said(NamedTuple):
    """What is said of an answer: digests of the request's body, the manifest and the guard, when, and for which nonce."""

    request: bytes
    model: bytes
    guard: bytes
    time: int
    nonce: str


class Signer(NamedTuple):
    """Who signs: names of key and algorithm, and the doing."""

    key: str
    algorithm: str
    sign: Callable[[bytes], bytes]


def hmac_signer(secret: bytes) -> Signer:
    """Signs by a secret that it shares with the client. Its key's name is the front of the secret's digest."""
    return Signer(hmac_key_name(secret), HMAC_SHA256, lambda base: hmac.digest(secret, base, "sha256"))


def hmac_key_name(secret: bytes) -> str:
    """Tells one secret from another, and nothing of it."""
    return hashlib.sha256(b"garrison hmac key\0" + secret).hexdigest()[:16]


def identifier(name: str, *, of_request: bool = False) -> str:
    """A covered component, as it stands in front of its value."""
    return write_item(Item(name, _REQUEST if of_request else {}))


_LENGTH = identifier(LENGTH_HEADER)


def content_digest(body: bytes) -> str:
    """The header over a body (RFC 9530)."""
    return f"sha-256={write_item(Item(hashlib.sha256(body).digest()))}"


def check_content_digest(header: str, body: bytes) -> None:
    """Whether the digests that a header names are the body's; those of algorithms that are not known here are left out.

    Raises:
        ValueError: one is not, or the header is none.
    """
    for name, member in read_dictionary(header).items():
        known = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}.get(name)
        if known is not None and (not isinstance(member, Item) or member.value != known(body).digest()):
            raise ValueError(f"the {name} of the body is another one")


def every_component(*, digested: bool, binary: bool) -> tuple[str, ...]:
    """What our own client asks for, and a server that signs unasked covers: all that can be.

    Args:
        digested: see `Form`.
        binary: whether the answer's JSON part has a length.
    """
    response = RESPONSE if binary else RESPONSE[:-1]
    request = OF_REQUEST if digested else OF_REQUEST[:-1]
    return (*map(identifier, response), *(identifier(name, of_request=True) for name in request))


def read_form(accept: str, path: str, *, digested: bool) -> Form:
    """The signature that `Accept-Signature` asks for. It always tells when it was made and by which key; a key that is asked for is not looked up.

    Raises:
        MalformedRequestError: it cannot be read, or asks for what cannot be covered here.
    """
    try:
        ((label, wanted),) = read_dictionary(accept).items()
        if not isinstance(wanted, InnerList):
            raise TypeError("expected a list of components in parentheses")
        components = tuple(_component(item, digested=digested) for item in wanted.items)
        if identifier(DIGEST_HEADER) not in components or len(set(components)) != len(components):
            raise ValueError('"content-digest" must be covered, and nothing twice')
        parameters = dict(wanted.parameters)
        algorithm, tag = parameters.get("alg", ED25519), parameters.get("tag", "")
        if set(parameters) - set(PARAMETERS) or algorithm not in {ED25519, HMAC_SHA256}:
            raise ValueError(f"known parameters are {', '.join(PARAMETERS)}; alg is {ED25519} or {HMAC_SHA256}")
        if any(isinstance(value, Token) for value in parameters.values()):
            raise ValueError("words without quotes are no strings")
        if not isinstance(tag, str) or len(tag) > _MOST_TEXT or len(label) > _MOST_TEXT:
            raise ValueError("label and tag must be short strings")
    except (TypeError, ValueError) as error:
        raise MalformedRequestError(
            f"the header {ACCEPT_HEADER} asks for no signature that can be made: {error}"
        ) from error
    named = tuple(dict.fromkeys((*parameters, *_ALWAYS)))
    return Form(label, components, named, tag, path, digested, str(algorithm))


def wanted_nonce(accept: str) -> str:
    """The nonce that `Accept-Signature` names; "" for none, or where it cannot be read."""
    try:
        members = read_dictionary(accept).values()
    except ValueError:
        return ""
    found = [member.parameters.get("nonce") for member in members]
    return found[0] if len(found) == 1 and type(found[0]) is str else ""  # a token is no string here


def signed_headers(form: Form, signer: Signer, said: Said, body: bytes, json_bytes: int) -> Headers:
    """The headers that sign an answer. The length of its JSON part is covered where it has one.

    Args:
        body, json_bytes: of the answer.
    """
    headers = dict(answer_headers(json_bytes))
    components = [c for c in form.components if c != _LENGTH or LENGTH_HEADER in headers]
    headers |= {DIGEST_HEADER: content_digest(body), STATEMENT_HEADER: write_statement(said)}
    of_request = {"@method": "POST", "@path": form.path, DIGEST_HEADER: f"sha-256={write_item(Item(said.request))}"}
    listed = InnerList(tuple(map(_item, components)), _parameters(form, signer, said))
    base = signature_base(listed, headers, of_request)
    signature = write_item(Item(signer.sign(base)))
    return (
        (DIGEST_HEADER, headers[DIGEST_HEADER]),
        (STATEMENT_HEADER, headers[STATEMENT_HEADER]),
        (INPUT_HEADER, f"{form.label}={write_inner_list(listed)}"),
        (SIGNATURE_HEADER, f"{form.label}={signature}"),
    )


def answer_headers(json_bytes: int) -> Headers:
    """What says how an answer's body is to be read."""
    if json_bytes == ALL_JSON:
        return ((TYPE_HEADER, JSON_TYPE),)
    return (TYPE_HEADER, BINARY_TYPE), (LENGTH_HEADER, str(json_bytes))


def write_statement(said: Said) -> str:
    """The header that says what was asked of whom."""
    parts = (("request", said.request), ("model", said.model), ("guard", said.guard))
    return ", ".join(f"{name}={write_item(Item(value))}" for name, value in parts)


def read_statement(header: str) -> dict[str, bytes]:
    """The digests in such a header, by name.

    Raises:
        ProofError: it is none.
    """
    try:
        found = read_dictionary(header)
    except ValueError as error:
        raise ProofError(f"the header {STATEMENT_HEADER} cannot be read: {error}") from error
    return {
        name: item.value for name, item in found.items() if isinstance(item, Item) and isinstance(item.value, bytes)
    }


def signature_base(listed: InnerList, response: Mapping[str, str], request: Mapping[str, str]) -> bytes:
    """What is signed (RFC 9421, section 2.5).

    Args:
        listed: components and parameters.
        response: values by name of header, in lower case; `@status` is 200 where it is not among them.
        request: the same for components with `req`, derived ones with their "@".

    Raises:
        ProofError: a component that has no value, or one that is not ASCII.
    """
    lines = []
    for item in listed.items:
        source = request if item.parameters.get("req") is True else response
        name = str(item.value)
        value = source.get(name, _STATUS if name == "@status" and source is response else None)
        if value is None:
            raise ProofError(f"the signature covers {write_item(item)}, which is not there")
        lines.append(f"{write_item(item)}: {value.strip()}")
    lines.append(f'"@signature-params": {write_inner_list(listed)}')
    try:
        return "\n".join(lines).encode("ascii")
    except UnicodeEncodeError as error:
        raise ProofError("the signature covers what is not ASCII") from error


def read_signature(headers: Mapping[str, str], label: str) -> tuple[InnerList, bytes]:
    """What a signature covers, and its bytes.

    Raises:
        ProofError: it is not there, or cannot be read.
    """
    try:
        listed = read_dictionary(headers.get(INPUT_HEADER, "")).get(label)
        signature = read_dictionary(headers.get(SIGNATURE_HEADER, "")).get(label)
    except ValueError as error:
        raise ProofError(f"the answer's signature cannot be read: {error}") from error
    if not isinstance(listed, InnerList) or not isinstance(signature, Item) or not isinstance(signature.value, bytes):
        raise ProofError("the answer came without the signature that was asked for")
    return listed, signature.value


def _component(item: Item, *, digested: bool) -> str:
    name, of_request = item.value, dict(item.parameters) == _REQUEST
    known = OF_REQUEST if of_request else RESPONSE
    if type(name) is not str or (item.parameters and not of_request) or name not in known:  # a token is no string here
        raise ValueError(f"{write_item(item)} cannot be covered here")
    if of_request and name == DIGEST_HEADER and not digested:
        raise ValueError(f"{write_item(item)}: the request itself must name the sha-256 of its body")
    return identifier(str(name), of_request=of_request)


def _item(component: str) -> Item:
    name, _, rest = component.partition(";")
    return Item(name.strip('"'), _REQUEST if rest else {})


def _parameters(form: Form, signer: Signer, said: Said) -> dict[str, Bare]:
    known: dict[str, Bare] = {
        "created": said.time,
        "expires": said.time + EXPIRES_SECONDS,
        "keyid": signer.key,
        "alg": signer.algorithm,
        "nonce": said.nonce,
        "tag": form.tag,
    }
    return {name: known[name] for name in form.parameters}
