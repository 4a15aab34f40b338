"""Makes replies of what a batch came to: a signed answer, or what a client may be told of a refusal. Paid for by the batch where it can be."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np

from garrison.crypto.signing import AnswerSigner
from garrison.enclave.http_signing import HttpSigner
from garrison.errors import GarrisonError, InvalidAnswerError, RefusedError
from garrison.guard.caller_release import CallerReleases
from garrison.guard.defenses.release import Release
from garrison.guard.pipeline import Progress
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.protocol.oip import InferRequest
from garrison.protocol.oip_answers import AnswerWriter, BatchAnswers
from garrison.protocol.statement import StatementWriter, sign_encoded
from garrison.types import Released

OK = "ok"
_CLIENT_FAULT = "request."


class Opened(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A request that could be read, and its number in the batch of asks."""

    number: int
    ask: Ask
    request: InferRequest


class ReplyMaker:
    """Writes and signs the answers of one service.

    Args:
        signer: signs them.
        model, version: as the answers name them.
        statements: writes what is signed.
        releases: which callers get less than the chain releases.
    """

    def __init__(
        self, signer: AnswerSigner, model: str, version: str, statements: StatementWriter, releases: CallerReleases
    ) -> None:
        self._signer = signer
        self._releases = releases
        self._answers = AnswerWriter(model, version)
        self._statements = statements
        self._http = HttpSigner(signer, model, version, statements)
        self._good: dict[int, Outcome] = {}

    def sign(
        self,
        opened: Sequence[Opened],
        progress: Progress,
        released: Released,
        replies: dict[int, Reply],
        distinct: Sequence[int] = (),
    ) -> None:
        """Put a reply for each request into `replies`, under its number: one signature over all answers.

        Args:
            distinct: one entry a request: rows that are charged as not asked before; empty where they are not counted.
        """
        writers: dict[Release | None, BatchAnswers] = {}
        replaced = _replaced(progress)
        plain = not distinct and not progress.shadow
        signed: list[tuple[Opened, bytes, int, Outcome]] = []
        first = 0
        for i, item in enumerate(opened):
            rows, code = item.request.rows, progress.refused[i]
            good = plain and code is None and not (replaced and replaced[i])
            outcome = self._good_outcome(rows) if good else _outcome(progress, i, rows, replaced)
            if distinct:
                outcome = msgspec.structs.replace(outcome, distinct=distinct[i])
            if code is None:
                policy = self._releases.of(item.ask.caller)
                writer = writers.get(policy)
                if writer is None:
                    writer = writers[policy] = self._writer(policy, released)
                signed.append((item, *writer.write(item.request, first), outcome))
            else:
                replies[item.number] = _refused(code, progress.detail[i], outcome)
            first += rows
        self._sign(signed, replies)

    def _sign(self, answers: Sequence[tuple[Opened, bytes, int, Outcome]], replies: dict[int, Reply]) -> None:
        """Put answers (request, body, length of its JSON part, outcome) into `replies`, each with its proof."""
        now = int(time.time())
        write = self._statements.write
        statements = [write(item.ask.body, body, now, item.ask.nonce) for item, body, _, _ in answers]
        proofs = sign_encoded(statements, self._signer.sign)
        for (item, body, json_bytes, outcome), proof in zip(answers, proofs, strict=True):
            form = item.ask.form
            headers = () if form is None else self._http.sign(form, item.ask, body, json_bytes, now)
            replies[item.number] = Reply("", "", body, json_bytes, proof, outcome, headers)

    def _good_outcome(self, rows: int) -> Outcome:
        """Of an answer of which nothing more is to be said: the same value each time. A request has a few thousand rows at most."""
        found = self._good.get(rows)
        if found is None:
            found = self._good[rows] = Outcome(OK, rows)
        return found

    def _writer(self, policy: Release | None, released: Released) -> BatchAnswers:
        return self._answers.batch(released if policy is None else self._releases.tightened(policy, released))


def error_reply(code: str, detail: str, outcome: Outcome) -> Reply:
    """A reply that holds no answer."""
    return Reply(code, detail, b"", -1, b"", outcome)


def told(error: GarrisonError) -> Reply:
    """A reply that tells an error as it is; nothing is charged."""
    return error_reply(error.code, str(error), Outcome(code=error.code, rows=0))


def _replaced(progress: Progress) -> list[int]:
    """Rows that were replaced, one number a request; empty for none at all."""
    if True not in progress.replaced.tolist():
        return []
    batch = progress.batch
    found: list[int] = np.bincount(batch.request_of_row[progress.replaced], minlength=batch.requests).tolist()
    return found


def _outcome(progress: Progress, request: int, rows: int, replaced: Sequence[int]) -> Outcome:
    code = progress.refused[request] or OK
    charged = 0 if code.startswith(_CLIENT_FAULT) else rows
    shadow = {name: int(counts[request]) for name, counts in progress.shadow.items()}
    return Outcome(code, charged, replaced[request] if replaced else 0, shadow)


def _refused(code: str, detail: str, outcome: Outcome) -> Reply:
    """What ADMIT found is the client's own fault and is told, and that the model failed is too; any other refusal is told as a bare "refused"."""
    if code.startswith(_CLIENT_FAULT) or code == InvalidAnswerError.code:
        return error_reply(code, detail, outcome)
    return error_reply(RefusedError.code, "the service refuses this request", outcome)
