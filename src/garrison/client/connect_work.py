"""Proofs of work that a local proxy makes for clients that know of none.

The first request to a model brings no proof; when the service asks for one, the proxy learns the terms from the model's metadata, and
from then on works before each request where everybody must, else where it is asked to. The terms are the host's word: they cost work, never more than
`garrison.client.working.MOST_HASHES` a request.
"""

from __future__ import annotations

import msgspec

from garrison.client.sealed import SealedAnswer, SealedChannel, model_path
from garrison.client.talk import Talk, decode, exchange
from garrison.client.working import EVERYBODY, Job, terms_of
from garrison.errors import WorkRequiredError
from garrison.protocol.http_messages import Request
from garrison.protocol.oip import ALL_JSON
from garrison.protocol.oip_metadata import ModelMetadata, WorkMetadata

_MOST_MODELS = 1024


class _Tensor(msgspec.Struct):
    shape: tuple[int, ...]


class _Message(msgspec.Struct):
    inputs: tuple[_Tensor, ...]


class Worker:
    """Asks under seal, and works where it must.

    Args:
        channel: seals.
        caller: id of the API key, "" without one.
        headers: show the API key.
        attempts: see `garrison.client.talk.exchange`.
    """

    def __init__(self, channel: SealedChannel, caller: str, headers: dict[str, str], attempts: int) -> None:
        self._channel = channel
        self._caller = caller
        self._headers = headers
        self._attempts = attempts
        self._always: dict[tuple[str, str | None], WorkMetadata] = {}

    def ask(
        self, model: str, version: str | None, body: bytes, json_bytes: int, nonce: str | None
    ) -> Talk[SealedAnswer]:
        """See `SealedChannel.ask`.

        Raises:
            WorkRequiredError: the service wants a proof, and does not say of what kind.
        """
        known = self._always.get((model, version))
        job = None if known is None else self._job(known, body, json_bytes)
        try:
            return (yield from self._channel.ask(model, version, body, json_bytes, nonce, job))
        except WorkRequiredError:
            terms = yield from self._terms(model, version)
            if terms is None:
                raise
        if terms.who == EVERYBODY:
            if len(self._always) >= _MOST_MODELS:
                self._always.clear()
            self._always[model, version] = terms
        job = self._job(terms, body, json_bytes)
        return (yield from self._channel.ask(model, version, body, json_bytes, nonce, job))

    def _terms(self, model: str, version: str | None) -> Talk[WorkMetadata | None]:
        request = Request("GET", model_path(model, version), dict(self._headers))
        response = yield from exchange(request, self._attempts)
        return terms_of(decode(response.body, ModelMetadata, "the model's metadata"))

    def _job(self, terms: WorkMetadata, body: bytes, json_bytes: int) -> Job:
        return Job(terms, rows_of(body, json_bytes), self._caller, None)


def rows_of(body: bytes, json_bytes: int) -> int:
    """How many rows a request asks; 1 where that cannot be read, which the enclave will refuse by itself."""
    head = body if json_bytes == ALL_JSON else body[:json_bytes]
    try:
        inputs = msgspec.json.decode(head, type=_Message).inputs
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 1
    return max([1, *(tensor.shape[0] for tensor in inputs if tensor.shape)])
