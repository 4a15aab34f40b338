"""The enclave's signature in the form of HTTP (RFC 9421), for one answer. The enclave sees no HTTP, and signs no word of the server's.

Each value that such a signature covers follows from what is known here: the status of an answer is 200, its type and length follow from its body,
the request's method is POST, and its path must be one of this model's two. The same key signs as for proofs: what is signed there begins with a label of
ours, and here with a quotation mark, so neither can be taken for the other.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote

from garrison.crypto.signing import AnswerSigner
from garrison.protocol.http_signature import ED25519, Form, Headers, Said, Signer, signed_headers
from garrison.protocol.messages import Ask
from garrison.protocol.statement import StatementWriter


class HttpSigner:
    """Signs the answers of one model.

    Args:
        signer: the attested key.
        model, version: as paths name them.
        statements: names the model's and the guard's digests.
    """

    def __init__(self, signer: AnswerSigner, model: str, version: str, statements: StatementWriter) -> None:
        path = f"/v2/models/{quote(model, safe='')}"
        self._paths = {f"{path}/infer", f"{path}/versions/{quote(version, safe='')}/infer"}
        self._signer = Signer(signer.public_key.hex(), ED25519, signer.sign)
        self._model, self._guard = bytes.fromhex(statements.model), bytes.fromhex(statements.guard)

    def sign(self, form: Form, ask: Ask, body: bytes, json_bytes: int, now: int) -> Headers:
        """The headers that sign an answer; none where the form is not for this model, or not for this key.

        Args:
            body, json_bytes: of the answer.
            now: seconds since the epoch.
        """
        if form.path not in self._paths or form.algorithm != ED25519:
            return ()
        said = Said(hashlib.sha256(ask.body).digest(), self._model, self._guard, now, ask.nonce)
        return signed_headers(form, self._signer, said, body, json_bytes)
