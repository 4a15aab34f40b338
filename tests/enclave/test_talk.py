"""An error crosses the pipe as what it is."""

from __future__ import annotations

import msgspec
import pytest

from garrison.enclave.talk import FROM_WORKER, Failed, failure, raised_again
from garrison.errors import (
    BundleError,
    ChangedFileError,
    ConfigError,
    GarrisonError,
    GuardError,
    IsolationError,
    KeyFileError,
    MissingExtraError,
    StaleKeyError,
    UnavailableError,
)


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
