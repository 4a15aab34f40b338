"""What the server and the enclave say to each other. A fixed schema, so that it can go through a pipe as it is.

The server hands over a request's body as it came; it is read inside. So a plain and a sealed request take the same way, and
the code that reads what strangers send runs where it can do the least harm.
"""

from __future__ import annotations

import msgspec

from garrison.protocol.http_signature import Form, Headers


class Ask(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One request, as it came in.

    Attributes:
        caller: id of the caller whom the server authenticated.
        remaining: rows that this caller may still ask, -1 for no limit.
        body: an Open Inference Protocol inference request.
        json_bytes: length of the JSON part of `body` (binary tensor extension), -1 where all of it is JSON, -2 where it is a message of gRPC.
        nonce: the client's, bound into the signed statement; may be empty.
        sealed: `body` is a sealed envelope (see `garrison.protocol.sealed`), which only the enclave can open; `json_bytes` and
            `nonce` stand inside it then. The reply's body is sealed to the client too, and so is every refusal after opening.
        fresh: rows that this caller has not asked before and may still ask, -1 for no limit.
        work: the request's proof of work (see `garrison.protocol.work`); "" for none. Stands inside a sealed envelope.
        form: the HTTP message signature that is wanted beside the proof; None for none.
    """

    caller: str
    remaining: int
    body: bytes
    json_bytes: int = -1
    nonce: str = ""
    sealed: bool = False
    fresh: int = -1
    work: str = ""
    form: Form | None = None


class Outcome(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What happened, for the ledger; never shown to the client.

    Attributes:
        code: the true code: "ok", or why the request was refused.
        rows: rows to be charged; 0 where the request never was admitted.
        replaced: rows whose answer a defense changed.
        shadow: by shadow defense, rows that it would have changed or refused.
        distinct: of the rows to be charged, those that the caller had not asked before; counted where distinct rows are limited.
        receipt: of a sealed request, what its client finds the entry by (see `garrison.protocol.statement.receipt_of`).
    """

    code: str
    rows: int
    replaced: int = 0
    shadow: dict[str, int] = {}
    distinct: int = 0
    receipt: bytes = b""


class Reply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The answer to one `Ask`.

    Attributes:
        code: "" where `body` holds an answer, else the error code that the client may see.
        detail: what the client may read about the error.
        body: an Open Inference Protocol inference response; empty for an error.
        json_bytes: length of the JSON part of `body`, -1 where all of it is JSON, -2 where it is a message of gRPC.
        proof: the signed statement over this answer (see `garrison.protocol.statement`), empty for an error.
        outcome: for the ledger and the budget.
        signed: the headers of an HTTP message signature over this answer, where it was wanted.
    """

    code: str
    detail: str
    body: bytes
    json_bytes: int
    proof: bytes
    outcome: Outcome
    signed: Headers = ()
