from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.attest.nitro_world import p384
from tests.attest.worlds import NOW, Authority

from garrison.attest.certificates import ChainError, check_chain, check_p384, fingerprint, read_certificate

TIME = NOW.timestamp()


def check(*chain: Authority, roots: tuple[str, ...] | None = None) -> None:
    pinned = (chain[-1].fingerprint,) if roots is None else roots
    check_chain([authority.certificate for authority in chain], pinned, TIME)


def test_a_chain_holds() -> None:
    root = Authority("root", None, p384(), ca=1)
    middle = Authority("middle", root, p384(), ca=0)
    check(Authority("leaf", middle, p384()), middle, root)


def test_authorities_must_say_so() -> None:
    root = Authority("root", None, p384(), ca=1)
    for middle in (Authority("middle", root, p384()), Authority("middle", root, p384(), ca=0, usage=False)):
        with pytest.raises(ChainError, match="authority"):
            check(Authority("leaf", middle, p384()), middle, root)


def test_no_more_authorities_than_allowed() -> None:
    root = Authority("root", None, p384(), ca=0)
    middle = Authority("middle", root, p384(), ca=0)
    with pytest.raises(ChainError, match="only 0"):
        check(Authority("leaf", middle, p384()), middle, root)
    check(Authority("leaf", root, p384()), root)


def test_a_chain_needs_an_issuer_and_a_pinned_root() -> None:
    root = Authority("root", None, p384(), ca=0)
    leaf = Authority("leaf", root, p384())
    with pytest.raises(ChainError, match="no issuer"):
        check(root)
    with pytest.raises(ChainError, match="not trusted"):
        check(leaf, root, roots=())
    impostor = Authority("root", None, p384(), ca=0)
    with pytest.raises(ChainError, match="not signed"):
        check(leaf, impostor)


def test_a_root_must_sign_itself() -> None:
    above = Authority("above", None, p384(), ca=1)
    root = Authority("root", above, p384(), ca=0)
    with pytest.raises(ChainError, match="not signed"):
        check(Authority("leaf", root, p384()), root)


def test_pem_and_der() -> None:
    root = Authority("root", None, p384(), ca=0)
    assert fingerprint(read_certificate(root.pem)) == fingerprint(read_certificate(root.der)) == root.fingerprint
    for garbage in (b"", b"x", root.der[:-1], root.pem[:60], b"-----BEGIN CERTIFICATE-----\n"):
        with pytest.raises(ChainError):
            read_certificate(garbage)


def test_signatures_on_another_curve_are_refused() -> None:
    weak = Authority("weak", None, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(ChainError, match="P-384"):
        check_p384(weak.certificate, (1, 1), b"")
    strong = Authority("strong", None, p384())
    for signature in ((0, 0), (1, 1), (2**600, 1)):
        with pytest.raises(ChainError, match="does not hold"):
            check_p384(strong.certificate, signature, b"")
