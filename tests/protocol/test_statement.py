from __future__ import annotations

import hashlib

import msgspec
import pytest

from garrison.crypto.canonical import canonical_json
from garrison.crypto.signing import AnswerSigner
from garrison.errors import ProofError
from garrison.protocol import statement
from garrison.protocol.statement import (
    Proof,
    Statement,
    StatementWriter,
    digests_in,
    sign_batch,
    sign_encoded,
    statement_in,
    verify_answer,
)


def statements(n: int) -> list[Statement]:
    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    return [
        Statement(digest(b"q%d" % i), digest(b"a%d" % i), "m" * 64, "g" * 64, 1_700_000_000, f"n{i}") for i in range(n)
    ]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 31, 32, 33])
def test_every_answer_of_a_batch_verifies_with_one_signature(n: int) -> None:
    signer, calls = AnswerSigner(), []
    proofs = sign_batch(statements(n), lambda message: calls.append(message) or signer.sign(message))  # type: ignore[func-returns-value]
    assert len(calls) == 1
    for i, proof in enumerate(proofs):
        found = verify_answer(proof, signer.public_key, request=b"q%d" % i, answer=b"a%d" % i, nonce=f"n{i}")
        assert found.model == "m" * 64


def test_nothing_to_sign() -> None:
    assert sign_batch([], AnswerSigner().sign) == []


def test_every_flipped_bit_is_found() -> None:
    signer = AnswerSigner()
    proof = sign_batch(statements(5), signer.sign)[2]
    for offset in range(len(proof)):
        for bit in (1, 128):
            bad = bytearray(proof)
            bad[offset] ^= bit
            with pytest.raises(ProofError):
                verify_answer(bytes(bad), signer.public_key, request=b"q2", answer=b"a2", nonce="n2")


@pytest.mark.parametrize(
    ("request_", "answer", "nonce"), [(b"q1", b"a2", "n2"), (b"q2", b"a1", "n2"), (b"q2", b"a2", "n1"), (b"", b"", "")]
)
def test_a_swapped_part_is_found(request_: bytes, answer: bytes, nonce: str) -> None:
    signer = AnswerSigner()
    proof = sign_batch(statements(5), signer.sign)[2]
    with pytest.raises(ProofError, match="the signed"):
        verify_answer(proof, signer.public_key, request=request_, answer=answer, nonce=nonce)


def test_another_key_is_refused() -> None:
    proof = sign_batch(statements(1), AnswerSigner().sign)[0]
    with pytest.raises(ProofError, match="does not hold"):
        verify_answer(proof, AnswerSigner().public_key, request=b"q0", answer=b"a0", nonce="n0")


@pytest.mark.parametrize("path", [(), (b"x" * 32,), (b"x" * 32,) * 9])
def test_a_path_of_the_wrong_length_is_refused(path: tuple[bytes, ...]) -> None:
    signer = AnswerSigner()
    proof = msgspec.msgpack.decode(sign_batch(statements(5), signer.sign)[2], type=Proof)
    forged = msgspec.msgpack.encode(Proof(proof.statement, proof.index, proof.size, path, proof.signature))
    with pytest.raises(ProofError):
        verify_answer(forged, signer.public_key, request=b"q2", answer=b"a2", nonce="n2")


@pytest.mark.parametrize("upstream", ["", 'http://a/"b"\\'])
@pytest.mark.parametrize("nonce", ["", "plain", 'a "quoted" \\ one', "\x7f%s%b"])
def test_a_statement_that_is_written_short_is_the_canonical_one(nonce: str, upstream: str) -> None:
    request, answer = hashlib.sha256(b"q").hexdigest(), hashlib.sha256(b"a").hexdigest()
    whole = canonical_json(Statement(request, answer, "m" * 64, "%d" * 32, 17, nonce, upstream))
    assert StatementWriter("m" * 64, "%d" * 32, upstream).write(b"q", b"a", 17, nonce) == whole


@pytest.mark.parametrize("nonce", ["", "n" * 43, "n" * 70_000])
@pytest.mark.parametrize("n", [1, 5])
def test_digests_are_read_out_of_a_proof_wherever_they_stand(
    nonce: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = hashlib.sha256(b"q").hexdigest(), hashlib.sha256(b"a").hexdigest()
    writer = StatementWriter("m" * 64, "g" * 64)
    written = [writer.write(b"q", b"a", 17, nonce)] * n
    turned = [msgspec.json.encode(msgspec.json.decode(one), order="sorted") for one in written]
    decoded: list[bytes] = []
    read_proof = statement.read_proof
    monkeypatch.setattr(statement, "read_proof", lambda proof: decoded.append(proof) or read_proof(proof))  # type: ignore[func-returns-value]
    assert [digests_in(proof) for proof in sign_encoded(written, AnswerSigner().sign)] == [digests] * n
    assert len(decoded) == (n if len(nonce) > 65_535 else 0)
    decoded.clear()
    assert [digests_in(proof) for proof in sign_encoded(turned, AnswerSigner().sign)] == [digests] * n
    assert len(decoded) == n


@pytest.mark.parametrize("n", [1, 3])
def test_the_statement_in_a_proof_is_what_was_signed(n: int) -> None:
    written = [canonical_json(statement) for statement in statements(n)]
    assert [statement_in(proof) for proof in sign_encoded(written, AnswerSigner().sign)] == written


@pytest.mark.parametrize("proof", [b"", b"garbage", b"g" * 300])
def test_there_is_no_statement_in_garbage(proof: bytes) -> None:
    with pytest.raises(ProofError, match="cannot be read"):
        statement_in(proof)


@pytest.mark.parametrize("proof", [b"", b"garbage", b"g" * 300])
def test_there_are_no_digests_in_garbage(proof: bytes) -> None:
    with pytest.raises(ProofError, match="cannot be read"):
        digests_in(proof)
