"""An error crosses the pipe as what it is."""

from __future__ import annotations

import msgspec
import pytest

from garrison.enclave.talk import FROM_HOST, FROM_WORKER, LONG_BYTES, Call, Failed, failure, parted, raised_again, whole
from garrison.errors import (
    BundleError,
    ChangedFileError,
    ConfigError,
    FrameError,
    GarrisonError,
    GuardError,
    IsolationError,
    KeyFileError,
    MissingExtraError,
    StaleKeyError,
    UnavailableError,
)
from garrison.protocol.messages import Ask


@pytest.mark.parametrize(
    "error",
    [
        ChangedFileError("expected another digest", file="graph.onnx"),
        BundleError("no such folder"),
        GuardError("a host may only tighten"),
        KeyFileError("wrong key"),
        MissingExtraError("torch", "torch"),
        StaleKeyError("attest again"),
        UnavailableError("later"),
        ConfigError("unknown"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_it_is_the_same_error_on_the_other_side(error: GarrisonError) -> None:
    crossed = FROM_WORKER.decode(msgspec.msgpack.encode(failure(error)))
    assert isinstance(crossed, Failed)
    again = raised_again(crossed)
    assert type(again) is type(error)
    assert (str(again), again.code) == (str(error), error.code)
    assert getattr(again, "file", None) == getattr(error, "file", None)


def test_an_unknown_code_is_still_an_error() -> None:
    assert isinstance(raised_again(Failed("from.the.future", "what?")), IsolationError)


def test_long_bodies_stand_behind_a_batch_and_come_back_to_their_asks() -> None:
    bodies = [b"short", b"a" * LONG_BYTES, b"", b"b" * (LONG_BYTES + 1)]
    asks = [Ask("caller", k, body, nonce=str(k)) for k, body in enumerate(bodies)]
    sent, behind = parted(asks)
    assert behind == [bodies[1], bodies[3]]
    message = msgspec.msgpack.encode(sent)
    assert len(message) < LONG_BYTES
    crossed = FROM_HOST.decode(message)
    assert isinstance(crossed, Call)
    rest = memoryview(b"".join(behind))

    def take(length: int) -> bytes:
        nonlocal rest
        taken, rest = bytes(rest[:length]), rest[length:]
        return taken

    assert whole(crossed, take).asks == asks
    assert not rest


@pytest.mark.parametrize("behind", [{1: 4}, {-1: 4}, {0: 4, 1: 4}], ids=["no such ask", "before the first", "too many"])
def test_a_batch_that_lies_about_what_stands_behind_it_is_refused(behind: dict[int, int]) -> None:
    with pytest.raises(FrameError, match="none of its requests is without"):
        whole(Call([Ask("caller", -1, b"")], behind), bytes)
    with pytest.raises(FrameError, match="none of its requests is without"):
        whole(Call([Ask("caller", -1, b"has one")], {0: 4}), bytes)
