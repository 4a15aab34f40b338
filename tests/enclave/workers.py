"""Real workers for the tests of the `process` backend."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.models import Sealed
from tests.stalls import PATIENT_SECONDS

from garrison.enclave.backends.process import ProcessEnclave
from garrison.enclave.host import Launch
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.types import Array


def question(x: Array) -> Ask:
    body, json_bytes = encode_request({"image": x})
    return Ask("caller", -1, body, json_bytes)


@contextmanager
def enclave(sealed: Sealed, **more: object) -> Iterator[ProcessEnclave]:
    started = ProcessEnclave(Launch(sealed.path, [sealed.owner.public], sealed.key, **more))  # type: ignore[arg-type]
    try:
        yield started
    finally:
        started.stop()


def wait_until(good: object, seconds: float = PATIENT_SECONDS) -> float:
    """How long it took until it was so."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if callable(good) and good():
            return time.monotonic() - start
        time.sleep(0.01)
    raise AssertionError(f"it was not so within {seconds} s")
