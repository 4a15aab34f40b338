"""What the server and an enclave's process say to each other over their pipe, and how an error crosses it.

One message of the host, one of the worker, in turn. `Start` comes first and once; `Ready` or `Failed` answers it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from garrison.attest.evidence import Evidence
from garrison.enclave.host import ServiceCard
from garrison.errors import BundleError, FrameError, GarrisonError, IsolationError
from garrison.guard.drifting.report import DriftReport
from garrison.guard.watching.book import Alarm
from garrison.limits import MIB, Limits
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.protocol.messages import Ask, Reply

_REPLY_FACTOR = 4
_ASK_OVERHEAD_BYTES = 4096
LONG_BYTES = 1 << 15
"""A body of so many bytes costs less where it is not put into the message, and taken out again."""


class Start(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, kw_only=True):
    """`garrison.enclave.host.Launch`, in a form that goes through a pipe.

    Attributes:
        bundle: the folder's path; the worker opens it before it gives up its rights.
        trusted: public keys, PEM.
        user: number of the user to become, where it can.
    """

    bundle: str
    trusted: tuple[bytes, ...]
    key: bytes | None
    tightened: dict[str, dict[str, Any]]
    limits: Limits
    parameter_memory: int | None
    user: int
    callers: dict[str, dict[str, Any]] = {}


class Call(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, omit_defaults=True):
    """A batch to be answered.

    Attributes:
        behind: by number, the asks whose body is long and stands behind the message, in this order, and how many bytes it has; `body` is empty there.
    """

    asks: list[Ask]
    behind: dict[int, int] = {}


class Attest(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A wish for evidence."""

    nonce: bytes


class Resume(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The latest snapshot of caller state, or None, and a key of the host's; before the first `Call`. `Resumed` answers it."""

    snapshot: bytes | None
    key: bytes


class Take(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A wish for a snapshot of caller state."""


class List(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A wish for the alarms of callers. `Listed` answers it."""


class Clear(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Forget what is known of a caller. `Cleared` answers it."""

    caller: str


class Witness(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A wish for a signed checkpoint of the server's ledger. `Witnessed` answers it. See `garrison.enclave.witness.Witness.sign`."""

    ledger: bytes
    at: int
    head: bytes
    start: bytes = b""
    bodies: bytes = b""


class AskDrift(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A wish for what `drift` has found. `DriftTold` answers it."""


class Ready(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The service runs. `mend`: by capability that is not there, why and what would help."""

    card: ServiceCard
    mend: dict[str, str]


class Failed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """An error raised on purpose, for the host to raise again."""

    code: str
    message: str
    file: str | None = None


class Answered(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    replies: list[Reply]


class Attested(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    evidence: Evidence


class Resumed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Requests may come."""


class Taken(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A sealed snapshot; None where nothing has changed."""

    snapshot: bytes | None


class Listed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    alarms: tuple[Alarm, ...]


class Cleared(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Whether anything was known."""

    known: bool


class Witnessed(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    signed: SignedCheckpoint


class DriftTold(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The report; None where the chain has no `drift`."""

    report: DriftReport | None


FromHost = Start | Call | Attest | Resume | Take | List | Clear | AskDrift | Witness
FromWorker = Ready | Failed | Answered | Attested | Resumed | Taken | Listed | Cleared | Witnessed | DriftTold
FROM_HOST: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(FromHost)
FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
MOST_START_BYTES = 16 * MIB


def parted(asks: Sequence[Ask]) -> tuple[Call, list[bytes]]:
    """A batch as it is sent: the message, and what stands behind it."""
    long = {number: len(ask.body) for number, ask in enumerate(asks) if len(ask.body) >= LONG_BYTES}
    if not long:
        return Call(list(asks)), []
    bare = [msgspec.structs.replace(ask, body=b"") if number in long else ask for number, ask in enumerate(asks)]
    return Call(bare, long), [asks[number].body for number in long]


def whole(call: Call, take: Callable[[int], bytes]) -> Call:
    """A batch as it was before it was sent.

    Args:
        take: the next so many bytes of what stands behind the message.

    Raises:
        FrameError: the message lies about what stands behind it; or as `take` does.
    """
    if not call.behind:
        return call
    asks = list(call.asks)
    for number, length in call.behind.items():
        if not 0 <= number < len(asks) or asks[number].body:
            raise FrameError("a batch tells of a body that none of its requests is without")
        asks[number] = msgspec.structs.replace(asks[number], body=take(length))
    return Call(asks)


def most_call_bytes(limits: Limits) -> int:
    """Longest message to a worker: all bodies that the server holds at once; a snapshot of caller state is shorter."""
    return max(
        MOST_START_BYTES,
        limits.queue_bytes + limits.queue_requests * _ASK_OVERHEAD_BYTES,
    )


def most_answer_bytes(limits: Limits) -> int:
    """Longest message of a worker. Answers may be longer than questions: many classes, in JSON."""
    return _REPLY_FACTOR * most_call_bytes(limits)


def failure(error: GarrisonError) -> Failed:
    """The message for an error."""
    return Failed(error.code, str(error), getattr(error, "file", None))


def raised_again(failed: Failed) -> GarrisonError:
    """The error that a worker met, of the same class and with the same message."""
    kind = _KINDS.get(failed.code)
    if kind is None:
        return IsolationError(f"the enclave failed: {failed.message}")
    error = kind.__new__(kind)
    error.args = (failed.message,)
    if isinstance(error, BundleError):
        error.file = failed.file
    return error


def _by_code(kind: type[GarrisonError]) -> dict[str, type[GarrisonError]]:
    found: dict[str, type[GarrisonError]] = {}
    for child in kind.__subclasses__():
        found = _by_code(child) | found
    return found | {kind.code: kind}


_KINDS = _by_code(GarrisonError)
