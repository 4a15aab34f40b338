"""Sealed conversations: attest the enclave, begin a session with it, seal within that, check what comes back.

Invariants: nothing of a request leaves before the evidence was found good by the policy; no session outlives the keys that were
attested; the answer is used only if it opens under the one-time key of this request, and its proof holds under the *attested* signing key, for the attested model and guard and for this
request's nonce. What the host says beside that is believed only where it costs nothing but service: it can refuse, delay and drop.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import msgspec

from garrison.attest.appraise import appraise
from garrison.attest.evidence import NONCE_BYTES, Evidence, KeySet
from garrison.attest.policy import Policy
from garrison.attest.report import Report
from garrison.client.names import caller_of
from garrison.client.sealed_session import ClientSessions, Words
from garrison.client.talk import Talk, bearer, decode, exchange, left_of
from garrison.client.working import Job
from garrison.errors import (
    AttestationError,
    ProofError,
    ReplayError,
    ServiceError,
    StaleKeyError,
    StaleSessionError,
)
from garrison.protocol.http_messages import Request
from garrison.protocol.http_status import ERRORS
from garrison.protocol.sealed import CONTENT_TYPE, read_answer
from garrison.protocol.statement import verify_answer
from garrison.types import Task

ATTESTATION_PATH = "/.well-known/garrison/attestation"
_MARGIN_SECONDS = 5.0
_ANSWER_NONCE_BYTES = 16
_MOST_MODELS = 1024


class AttestedInput(msgspec.Struct, frozen=True):
    """An input tensor, as the manifest describes it; the shape is that of one row."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class AttestedModel(msgspec.Struct, frozen=True):
    """What a client reads of the attested manifest."""

    name: str
    version: int
    task: Task
    labels: tuple[str, ...]
    inputs: tuple[AttestedInput, ...]


@dataclass(frozen=True, slots=True)
class Attested:
    """An enclave whose evidence was good enough.

    Attributes:
        keys: seal to these, and check answers under these.
        manifest_sha256, guard: what signed answers must name, in hex.
        model: from the manifest that the evidence vouches for.
        report: how the evidence was appraised.
    """

    keys: KeySet
    manifest_sha256: str
    guard: str
    model: AttestedModel
    report: Report


@dataclass(frozen=True, slots=True)
class SealedAnswer:
    """An inference response that was checked: body, length of its JSON part (-1 for all), proof, and who answered; and, of the host's word, what the
    caller has left."""

    body: bytes
    json_bytes: int
    proof: bytes
    attested: Attested
    left: dict[str, int]


class SealedChannel:
    """Sealed requests to the models of one server.

    Args:
        policy: what is demanded of evidence.
        api_key: shown outside; whom it names goes inside too.
        caller: see `garrison.client.names.caller_of`.
        attempts: see `garrison.client.talk.exchange`.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        api_key: str | None,
        attempts: int,
        clock: Callable[[], float] = time.time,
        caller: str = "",
    ) -> None:
        self._policy = policy
        self._headers = bearer(api_key)
        self._attempts = attempts
        self._clock = clock
        self._sessions = ClientSessions(caller_of(api_key, caller), clock)
        self._known: dict[tuple[str, str | None], Attested] = {}

    def attested(self, model: str, version: str | None) -> Talk[Attested]:
        """The enclave behind a model; attested anew where it was not yet, or its keys are about to end.

        Raises:
            AttestationError: the evidence is not good enough, or is that of another model; carries the report.
        """
        known = self._known.get((model, version))
        if known is not None and self._clock() < known.keys.expires - _MARGIN_SECONDS:
            return known
        found = yield from self._attest(model, version)
        if len(self._known) >= _MOST_MODELS:
            self._known.clear()
        self._known[model, version] = found
        return found

    def ask(
        self,
        model: str,
        version: str | None,
        body: bytes,
        json_bytes: int,
        nonce: str | None = None,
        job: Job | None = None,
    ) -> Talk[SealedAnswer]:
        """Ask under seal; sealed anew where the enclave does not keep the session any more, has other keys by now, or opened this envelope before
        and lost it: once for each of these.

        Args:
            model, version: as in the URL; None for the newest version.
            body, json_bytes: an Open Inference Protocol request.
            nonce: bound into the signed statement; a fresh one where it is left out. That an answer belongs to this request does not
                hang on it: the one-time key sees to that.
            job: what the request has to work for; None for nothing.

        Raises:
            AttestationError: see `attested`.
            ProofError: the answer must not be used.
            RequestError, RefusedError: what the enclave says of the request.
        """
        nonce = secrets.token_hex(_ANSWER_NONCE_BYTES) if nonce is None else nonce
        work, signing = "", b""
        left: set[type[Exception]] = {StaleSessionError, StaleKeyError, ReplayError}
        while True:
            attested = yield from self.attested(model, version)
            if job is not None and attested.keys.signing != signing:
                signing = attested.keys.signing
                work = yield from job.proof(signing, body)
            words = Words(json_bytes, nonce, int(self._clock()), work, body)
            try:
                return (yield from self._ask(attested, infer_path(model, version), words))
            except (StaleSessionError, StaleKeyError, ReplayError) as error:
                if type(error) not in left:
                    raise
                left.discard(type(error))
                if isinstance(error, StaleKeyError) and self._known.get((model, version)) is attested:
                    del self._known[model, version]
                if isinstance(error, ReplayError):
                    # The server had it opened and then said 503, so that it was repeated. Sealed anew it is another request.
                    signing = b""  # and a proof of work counts once

    def _attest(self, model: str, version: str | None) -> Talk[Attested]:
        nonce = secrets.token_bytes(NONCE_BYTES)
        query = {"nonce": base64.urlsafe_b64encode(nonce).rstrip(b"=").decode(), "model": model}
        if version is not None:
            query["version"] = version
        request = Request("GET", f"{ATTESTATION_PATH}?{urlencode(query)}", dict(self._headers))
        response = yield from exchange(request, self._attempts)
        evidence = decode(response.body, Evidence, "the evidence")
        report = appraise(evidence, self._policy, nonce, self._clock()).require()
        found = decode(evidence.manifest, AttestedModel, "the attested manifest")
        if found.name != model or version not in {None, str(found.version)}:
            asked = model if version is None else f"{model} version {version}"
            raise AttestationError(f"the evidence is of {found.name} version {found.version}, not of {asked}", report)
        return Attested(evidence.keys, evidence.manifest_sha256, evidence.guard, found, report)

    def _ask(self, attested: Attested, path: str, words: Words) -> Talk[SealedAnswer]:
        keys, asked = attested.keys, self._clock()
        headers = self._headers | {"content-type": CONTENT_TYPE}
        with self._sessions.seal(keys, words) as sealed:
            try:
                response = yield from exchange(Request("POST", path, headers, sealed.envelope), self._attempts)
            except StaleSessionError:
                self._sessions.forget(keys, sealed)
                raise
            answer, content = read_answer(sealed.answer_key, response.body)
            self._sessions.take(keys, sealed, answer.grant, attested.manifest_sha256, attested.guard, asked)
        if answer.code:
            raise ERRORS.get(answer.code, ServiceError)(answer.detail)
        signed = verify_answer(answer.proof, keys.signing, request=words.body, answer=content, nonce=words.nonce)
        if (signed.model, signed.guard) != (attested.manifest_sha256, attested.guard):
            raise ProofError("the answer was signed for another model or guard than the attested one")
        return SealedAnswer(content, answer.json_bytes, answer.proof, attested, left_of(response))


def infer_path(model: str, version: str | None) -> str:
    """Where a model is asked."""
    return f"{model_path(model, version)}/infer"


def model_path(model: str, version: str | None) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"
