"""Signs a folder in the OpenSSF model-signing format, key mode; `garrison.bundle.signature` describes and reads it.

data = sign_digests({"graph.onnx": sha256_hex(graph)}, owner, name="fashion")     # the bytes of model.sig
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import msgspec

from garrison.bundle.manifest import SIGNATURE_FILE
from garrison.bundle.signature import (
    MEDIA_TYPE,
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Digest,
    Envelope,
    EnvelopeSignature,
    KeyHint,
    Predicate,
    Resource,
    Serialization,
    SigstoreBundle,
    Statement,
    Subject,
    VerificationMaterial,
    pre_authentication_encoding,
    root_digest,
)
from garrison.crypto.owner import OwnerKey


def make_statement(digests: Mapping[str, str], name: str) -> bytes:
    """The in-toto statement over the files of a folder.

    Args:
        digests: SHA-256 in hex by path relative to the folder, with "/" between its parts.
        name: what the folder is called; for people, nothing is decided by it.
    """
    ordered = sorted(digests, key=lambda path: path.split("/"))
    statement = Statement(
        type_=STATEMENT_TYPE,
        subject=[Subject(name=name, digest=Digest(sha256=root_digest([digests[path] for path in ordered])))],
        predicate_type=PREDICATE_TYPE,
        predicate=Predicate(
            resources=[Resource(name=path, digest=digests[path], algorithm="sha256") for path in ordered],
            serialization=Serialization(
                method="files", hash_type="sha256", allow_symlinks=False, ignore_paths=[SIGNATURE_FILE]
            ),
        ),
    )
    return msgspec.json.encode(statement)


def sign_digests(digests: Mapping[str, str], owner: OwnerKey, name: str) -> bytes:
    """The content of `model.sig` for a folder with these files; the signature file itself is not among them."""
    payload = make_statement(digests, name)
    signature = owner.sign(pre_authentication_encoding(payload))
    envelope = Envelope(
        payload=_base64(payload),
        payload_type=PAYLOAD_TYPE,
        signatures=[EnvelopeSignature(sig=_base64(signature), keyid="")],
    )
    material = VerificationMaterial(public_key=KeyHint(hint=owner.public.fingerprint), tlog_entries=[])
    return msgspec.json.encode(
        SigstoreBundle(media_type=MEDIA_TYPE, verification_material=material, dsse_envelope=envelope)
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
