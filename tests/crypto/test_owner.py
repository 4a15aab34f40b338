from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from garrison.crypto.canonical import canonical_json
from garrison.crypto.owner import OwnerKey, OwnerPublicKey, key_commitment
from garrison.errors import KeyFileError


def test_a_key_survives_its_file() -> None:
    key = OwnerKey.generate()
    for passphrase in (None, b"correct horse"):
        again = OwnerKey.from_pem(key.to_pem(passphrase), passphrase)
        assert again.public.fingerprint == key.public.fingerprint
        assert OwnerPublicKey.from_pem(key.public.pem).verify(again.sign(b"message"), b"message")
        assert not key.public.verify(again.sign(b"message"), b"messagf")


def test_an_encrypted_key_does_not_hold_the_plain_one() -> None:
    key = OwnerKey.generate()
    assert b"ENCRYPTED" in key.to_pem(b"secret")
    assert b"ENCRYPTED" not in key.to_pem()


@pytest.mark.parametrize(("written", "read"), [(b"one", b"two"), (b"one", None), (None, b"one")])
def test_a_wrong_passphrase_is_told(written: bytes | None, read: bytes | None) -> None:
    with pytest.raises(KeyFileError):
        OwnerKey.from_pem(OwnerKey.generate().to_pem(written), read)


def test_other_kinds_of_keys_are_refused() -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(KeyFileError, match="P-256"):
        OwnerKey.from_pem(pem)
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(KeyFileError, match="P-256"):
        OwnerPublicKey.from_pem(
            public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
    with pytest.raises(KeyFileError):
        OwnerPublicKey.from_pem(b"not a key")


def test_misinformation_keys_are_one_a_model() -> None:
    key = OwnerKey.generate()
    assert key.misinformation_key("a") == OwnerKey.from_pem(key.to_pem()).misinformation_key("a")
    assert key.misinformation_key("a") != key.misinformation_key("b")
    assert key.misinformation_key("a") != OwnerKey.generate().misinformation_key("a")
    assert key_commitment(key.misinformation_key("a")) != key_commitment(key.misinformation_key("b"))


def test_canonical_json_does_not_depend_on_order() -> None:
    assert (
        canonical_json({"b": 1.5, "a": ["x", 2]})
        == canonical_json({"a": ["x", 2], "b": 1.5})
        == b'{"a":["x",2],"b":1.5}'
    )
