"""OpenSSF model signing: strict on our side, and read by the tool of its authors in both directions."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.bundle.conftest import Sealed

from garrison.bundle.reader import verify
from garrison.bundle.signature import (
    open_statement,
    parse_signature,
    pre_authentication_encoding,
    root_digest,
)
from garrison.crypto.canonical import sha256_hex
from garrison.crypto.owner import OwnerKey
from garrison.errors import SignatureFormatError, SignatureInvalidError
from garrison.sealing.sign import make_statement, sign_digests

DIGESTS = {"b/c.bin": sha256_hex(b"c"), "a.bin": sha256_hex(b"a")}


@pytest.fixture(scope="module")
def owner() -> OwnerKey:
    return OwnerKey.generate()


def read(data: bytes, owner: OwnerKey) -> dict[str, str]:
    return open_statement(parse_signature(data), owner.public)


def test_what_is_signed_is_what_is_read(owner: OwnerKey) -> None:
    assert read(sign_digests(DIGESTS, owner, "model"), owner) == DIGESTS


def test_the_encoding_is_that_of_the_standard() -> None:
    """The example of DSSE's own protocol document has another payload type; the frame is the same."""
    assert pre_authentication_encoding(b"hello") == b"DSSEv1 28 application/vnd.in-toto+json 5 hello"


def test_another_key_does_not_open_it(owner: OwnerKey) -> None:
    signed = parse_signature(sign_digests(DIGESTS, owner, "model"))
    with pytest.raises(SignatureInvalidError):
        open_statement(signed, OwnerKey.generate().public)


def edit_envelope(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edited(data: bytes) -> bytes:
        found = json.loads(data)
        change(found)
        return json.dumps(found).encode()

    return edited


def loose_base64(text: str) -> str:
    """Another spelling of the same bytes: unused bits set in the last digit before the padding."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body = text.rstrip("=")
    other = body[:-1] + digits[digits.index(body[-1]) + 1] + "=" * (len(text) - len(body))
    assert base64.b64decode(other) == base64.b64decode(text)
    return other


def loosen_payload(found: dict[str, Any]) -> None:
    envelope = found["dsseEnvelope"]
    while not envelope["payload"].endswith("="):
        pytest.fail("the payload's length must leave padding")
    envelope["payload"] = loose_base64(envelope["payload"])


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d + b" x",
        lambda d: d[:-1],
        lambda _: b"",
        lambda _: b"null",
        lambda d: b"\xff" + d,
        lambda _: b"[" * 100_000,
        lambda d: d.replace(b'"keyid":""', b'"keyid":"","keyid":""'),
        edit_envelope(lambda e: e.update(extra=1)),
        edit_envelope(lambda e: e.update(mediaType="application/vnd.dev.sigstore.bundle.v0.2+json")),
        edit_envelope(lambda e: e["dsseEnvelope"].update(payloadType="text/plain")),
        edit_envelope(lambda e: e["dsseEnvelope"]["signatures"].append(e["dsseEnvelope"]["signatures"][0])),
        edit_envelope(lambda e: e["dsseEnvelope"]["signatures"].clear()),
        edit_envelope(lambda e: e["dsseEnvelope"]["signatures"][0].update(keyid="x")),
        edit_envelope(lambda e: e["dsseEnvelope"]["signatures"][0].update(sig="!" * 8)),
        edit_envelope(lambda e: e["dsseEnvelope"].update(payload=e["dsseEnvelope"]["payload"] + "\n")),
        edit_envelope(lambda e: e["verificationMaterial"]["tlogEntries"].append({})),
        edit_envelope(lambda e: e["verificationMaterial"].pop("tlogEntries")),
        edit_envelope(lambda e: e["verificationMaterial"]["publicKey"].pop("hint")),
        edit_envelope(lambda e: e["verificationMaterial"]["publicKey"].update(hint="F" * 64)),
        edit_envelope(lambda e: e["verificationMaterial"].update(certificate={"rawBytes": "AA=="})),
    ],
)
def test_another_form_of_the_file_is_refused(owner: OwnerKey, change: Callable[[bytes], bytes]) -> None:
    good = sign_digests(DIGESTS, owner, "model")
    read(json.dumps(json.loads(good)).encode(), owner)  # white space alone is no difference
    with pytest.raises(SignatureFormatError) as caught:
        read(change(good), owner)
    assert caught.value.file == "model.sig"


def test_base64_in_another_spelling_is_refused(owner: OwnerKey) -> None:
    name = next(n for n in ("m", "mm", "mmm") if len(make_statement(DIGESTS, n)) % 3)
    good = sign_digests(DIGESTS, owner, name)
    read(good, owner)
    with pytest.raises(SignatureFormatError, match="canonical"):
        read(edit_envelope(loosen_payload)(good), owner)


def edit_statement(change: Callable[[dict[str, Any]], object], owner: OwnerKey) -> bytes:
    """A statement of another form, properly signed."""
    statement = json.loads(make_statement(DIGESTS, "model"))
    change(statement)
    payload = json.dumps(statement).encode()
    envelope = json.loads(sign_digests(DIGESTS, owner, "model"))
    envelope["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature = owner.sign(pre_authentication_encoding(payload))
    envelope["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(envelope).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(extra=1),
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
        lambda s: s["subject"].append(s["subject"][0]),
        lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
        lambda s: s["predicate"]["resources"].reverse(),
        lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][-1]),
        lambda s: s["predicate"]["resources"][0].update(algorithm="blake2b"),
        lambda s: s["predicate"]["resources"][0].update(digest="0"),
        lambda s: s["predicate"]["serialization"].update(method="shards", shard_size=1),
        lambda s: s["predicate"]["serialization"].update(method="shards"),
        lambda s: s["predicate"]["serialization"].update(hash_type="blake3"),
    ],
)
def test_another_statement_is_refused_though_it_is_signed(
    owner: OwnerKey, change: Callable[[dict[str, Any]], object]
) -> None:
    assert read(edit_statement(lambda s: s["subject"][0].update(name="renamed"), owner), owner) == DIGESTS
    with pytest.raises(SignatureFormatError):
        read(edit_statement(change, owner), owner)


def test_reversed_files_are_refused_even_with_the_right_root(owner: OwnerKey) -> None:
    def reverse(statement: dict[str, Any]) -> None:
        resources = statement["predicate"]["resources"]
        resources.reverse()
        statement["subject"][0]["digest"]["sha256"] = root_digest([r["digest"] for r in resources])

    with pytest.raises(SignatureFormatError, match="sorted"):
        read(edit_statement(reverse, owner), owner)


# The tool of the format's authors, as its users run it


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *arguments], capture_output=True, text=True, check=False
    )


def test_the_tool_verifies_what_we_sign(sealed: Sealed, tmp_path: Path) -> None:
    public = tmp_path / "owner.pub"
    public.write_bytes(sealed.owner.public.pem)
    arguments = ["verify", "key", str(sealed.path), "--signature", str(sealed.path / "model.sig"), "--public_key"]
    told = tool(*arguments, str(public))
    assert told.returncode == 0, told.stderr
    (sealed.path / "graph.onnx").write_bytes(b"changed")
    assert tool(*arguments, str(public)).returncode != 0


def test_we_verify_what_the_tool_signs(sealed: Sealed, tmp_path: Path) -> None:
    private, signature = tmp_path / "owner.key", sealed.path / "model.sig"
    private.write_bytes(sealed.owner.to_pem())
    signature.unlink()
    told = tool("sign", "key", str(sealed.path), "--private_key", str(private), "--signature", str(signature))
    assert told.returncode == 0, told.stderr
    assert verify(sealed.path, [sealed.owner.public]).manifest == sealed.manifest
    (sealed.path / ".gitignore").write_text("the tool ignores this file; we do not")
    with pytest.raises(Exception, match="not signed"):
        verify(sealed.path, [sealed.owner.public])
