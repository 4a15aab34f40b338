"""Every kind of answer and refusal once, before a stranger asks: what Python and its libraries load at first use must be there before the
enclave is confined, because nothing can be opened afterwards. Run again under confinement it shows that no step forbids too much.

    drill(service.answer_plain, manifest.inputs, limits)

Nothing of it stays: the keys that its sealed requests are for are thrown away, nothing is charged, and its callers' name is nobody's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np

from garrison.attest.evidence import KeySet
from garrison.bundle.manifest import InputSpec
from garrison.enclave.keys import KeyRing
from garrison.enclave.mail import Mail
from garrison.enclave.replies import error_reply
from garrison.enclave.sessions import Sessions
from garrison.errors import InputError, IsolationError, RequestError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.protocol.oip_client import encode_request
from garrison.protocol.sealed import RequestHead, read_answer, seal_request
from garrison.protocol.sealed_session import Bound, Offer, SessionHead, seal_within
from garrison.runtime.runner import example_inputs
from garrison.types import Array

Answer = Callable[[Sequence[Ask]], list[Reply]]

CALLER = "drill"
_INTERNAL = "internal"
_NOTHING = Outcome("drill", 0)
_UNLIMITED = -1
_DEEP = b'{"inputs":' + b"[" * 4096


def drill(answer: Answer, inputs: tuple[InputSpec, ...], limits: Limits) -> None:
    """Ask once in every way.

    Args:
        answer: of a service; takes plain requests.
        inputs: what its model takes.
        limits: the service's.

    Raises:
        IsolationError: the service fails on one of them; its log says where.
    """
    keys = _throw_away_keys()
    mail = Mail(keys, Sessions(bytes(32), "", "", limits=limits), limits, sealing_required=False)
    for ask in (*_plain(inputs, limits), *_sealed(keys.offered(), inputs)):
        _ask_once(mail, ask, answer)
    _sessions(keys.offered(), inputs, lambda ask: _ask_once(mail, ask, answer))


def _ask_once(mail: Mail, ask: Ask, answer: Answer) -> Reply | None:
    """The sealed reply; None where the request did not open."""
    try:
        letter = mail.open(ask)
    except RequestError:
        return None
    refused = letter.refused
    (reply,) = answer([letter.ask]) if refused is None else [error_reply(refused.code, str(refused), _NOTHING)]
    if reply.code == _INTERNAL:
        raise IsolationError("the service fails on a request of its own: the log of the enclave says where")
    return mail.close(letter, reply)


def _plain(inputs: tuple[InputSpec, ...], limits: Limits) -> Iterator[Ask]:
    row = example_inputs(inputs, 1)
    for body in (b"", b"{", b"[]", b'{"inputs":[]}', b'{"inputs":7}', b"\xff", _DEEP):
        yield _ask((body, _UNLIMITED))
    for binary in (True, False):
        for rows in (row, example_inputs(inputs, 2), *_wrong(inputs, row)):
            with suppress(InputError):  # JSON has no infinity
                yield _ask(encode_request(rows, binary=binary))
        yield _ask(encode_request(row, binary=binary, outputs=["no such output"]))
        yield _ask(encode_request(row, binary=binary, request_id="x" * (limits.string_bytes + 1)))
        yield _ask(encode_request(row, binary=binary), remaining=0)
    body, json_bytes = encode_request(row)
    yield _ask((body[:-1], json_bytes))
    yield _ask((body, len(body) + 1))
    yield _ask(_of_rows(body[:json_bytes], limits.request_rows + 1))


def _wrong(inputs: tuple[InputSpec, ...], row: dict[str, Array]) -> Iterator[dict[str, Array]]:
    """Another shape, type, name; out of range, not a number."""
    for spec in inputs:
        x = row[spec.name]
        yield {**row, spec.name: x[:, None]}
        yield {**row, spec.name: x[:0]}
        yield {**row, spec.name: x.astype(np.float64 if x.dtype != np.float64 else np.float32)}
        yield {"no such input": x}
        values = (
            (np.nan, np.inf, -1e30) if x.dtype.kind == "f" else (np.iinfo(x.dtype).max,) if x.dtype.kind in "iu" else ()
        )
        for value in values:
            yield {**row, spec.name: np.full_like(x, value)}


def _of_rows(head: bytes, rows: int) -> tuple[bytes, int]:
    """The same request, which says that it has other rows."""
    message = msgspec.json.decode(head)
    for tensor in message["inputs"]:
        tensor["shape"][0] = rows
    found = msgspec.json.encode(message)
    return found, len(found)


def _ask(body: tuple[bytes, int], remaining: int = _UNLIMITED) -> Ask:
    return Ask(CALLER, remaining, *body)


def _throw_away_keys() -> KeyRing:
    log = logging.getLogger(KeyRing.__module__)
    before = log.level
    log.setLevel(logging.WARNING)  # these keys are offered to nobody
    try:
        return KeyRing(bytes(32), limits=DEFAULT_LIMITS)
    finally:
        log.setLevel(before)


def _sealed(keys: KeySet, inputs: tuple[InputSpec, ...]) -> Iterator[Ask]:
    """A good one, and every way in which one is not."""
    body, json_bytes = encode_request(example_inputs(inputs, 1))
    head = RequestHead(CALLER, json_bytes, "n", bytes(32), int(time.time()))

    def envelope(content: bytes = body, epoch: int = keys.epoch, **inside: Any) -> bytes:
        return seal_request(keys.suite, keys.hpke, epoch, msgspec.structs.replace(head, **inside), content)

    good = envelope()
    envelopes = [
        *(good, good, good[:-1] + bytes([good[-1] ^ 1]), good[:20], b"", b"junk" * 9),
        *(envelope(epoch=keys.epoch + 1), envelope(b"{"), envelope(answer_key=b"short"), envelope(caller="another")),
        *(envelope(time=0), envelope(nonce="\n"), envelope(json_bytes=len(body) + 1)),
    ]
    for found in envelopes:
        yield Ask(CALLER, _UNLIMITED, found, sealed=True)


def _sessions(keys: KeySet, inputs: tuple[InputSpec, ...], ask: Callable[[Ask], Reply | None]) -> None:
    """A session from its first request to its last refusals."""
    body, json_bytes = encode_request(example_inputs(inputs, 1))
    offer, key, now = Offer(keys.suite), bytes(32), int(time.time())
    head = RequestHead(CALLER, json_bytes, "n", key, now, "", offer.content)
    ask(Ask(CALLER, _UNLIMITED, _first(keys, msgspec.structs.replace(head, offer=b"short"), body), sealed=True))
    first = _first(keys, head, body)
    reply = ask(Ask(CALLER, _UNLIMITED, first, sealed=True))
    grant = None if reply is None else read_answer(key, reply.body)[0].grant
    if grant is None:
        raise IsolationError("the service grants no session: the log of the enclave says why")
    within = offer.take(grant, first, Bound(keys.signing, "", "", CALLER))
    later = SessionHead(json_bytes, "n", now)
    good, _ = seal_within(within, grant.session, 0, later, body)
    stale, _ = seal_within(within, bytes(16), 1, later, body)
    old, _ = seal_within(within, grant.session, 1, msgspec.structs.replace(later, time=0), body)
    for envelope in (good, good, good[:-1] + bytes([good[-1] ^ 1]), good[:40], stale, old):
        ask(Ask(CALLER, _UNLIMITED, envelope, sealed=True))


def _first(keys: KeySet, head: RequestHead, body: bytes) -> bytes:
    return seal_request(keys.suite, keys.hpke, keys.epoch, head, body)
