"""Is the answer that a client holds in the ledger? From the answer's proof to its entry."""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from pathlib import Path

from garrison.errors import ProofError
from garrison.protocol.statement import Proof, Statement, check_signature, read_proof, receipt_of
from garrison.server.ledger.folder import chains_of
from garrison.server.ledger.reader import Row, answers_of, records_of
from garrison.server.ledger.records import Enclave

_MOST_PROOF = 65_536


def parse_proof(given: bytes) -> tuple[Proof, Statement]:
    """A proof as a client has it: the bytes of `Prediction.proofs`, or the text of the header `Garrison-Proof`.

    Raises:
        ProofError: it cannot be read.
    """
    if len(given) > _MOST_PROOF:
        raise ProofError(f"a proof has at most {_MOST_PROOF} bytes, found {len(given)}")
    try:
        return read_proof(binascii.a2b_base64(given.strip(), strict_mode=True))
    except (ValueError, ProofError):
        return _as_bytes(given)


def _as_bytes(given: bytes) -> tuple[Proof, Statement]:
    try:
        return read_proof(given)
    except ProofError as error:
        expected = "the text of the header Garrison-Proof, or the bytes of one of Prediction.proofs"
        raise ProofError(f"this is no proof of an answer; expected {expected}") from error


def find_answer(ledger: Path, proof: Proof, statement: Statement) -> Iterator[Row]:
    """The entries of the answer that a proof is of: one, where the client's nonce was fresh and the operator wrote it down.

    Raises:
        ConfigError: there is no ledger.
        LedgerError: a line cannot be read.
    """
    receipt = receipt_of(proof.statement).hex()
    for row in answers_of(ledger):
        entry = row.entry
        plain = (entry.request, entry.answer, entry.nonce) == (statement.request, statement.answer, statement.nonce)
        if plain or (entry.receipt and entry.receipt == receipt):
            yield row


def find_digest(ledger: Path, digest: str) -> Iterator[Row]:
    """The entries with this SHA-256 (hex) of a request's or an answer's body.

    Raises:
        ConfigError, LedgerError: see `find_answer`.
    """
    wanted = digest.lower()
    for row in answers_of(ledger):
        if wanted in {row.entry.request, row.entry.answer, row.entry.receipt}:
            yield row


def signer_of(ledger: Path, proof: Proof) -> str:
    """The public key (hex) of the enclave in the ledger that signed a proof; "" for none of them.

    Raises:
        ConfigError, LedgerError: see `find_answer`.
    """
    for chain in chains_of(ledger):
        for key in {record.key for record in records_of(chain) if isinstance(record, Enclave)}:
            try:
                check_signature(proof, bytes.fromhex(key))
            except (ProofError, ValueError):
                continue
            return key
    return ""
