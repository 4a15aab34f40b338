"""The log of an enclave's process: passed on, bounded, and nobody waits for it."""

from __future__ import annotations

import os

import pytest
from tests.stalls import PATIENT_SECONDS

from garrison.enclave import log_relay
from garrison.enclave.log_relay import MOST_BYTES, relay


def test_what_is_written_is_passed_on_and_the_thread_ends() -> None:
    found: list[bytes] = []
    theirs, log = relay(found.append)
    os.write(theirs, b"one\n")
    os.write(theirs, b"two\n")
    os.close(theirs)
    log.join(PATIENT_SECONDS)
    assert not log.is_alive()
    assert b"".join(found) == b"one\ntwo\n"


def test_too_much_at_once_is_left_out_and_said() -> None:
    found: list[bytes] = []
    theirs, log = relay(found.append)
    os.set_blocking(theirs, True)
    for _ in range(2 * MOST_BYTES // 1024):
        os.write(theirs, b"x" * 1024)
    os.close(theirs)
    log.join(PATIENT_SECONDS)
    text = b"".join(found)
    assert text.count(b"x") == MOST_BYTES
    assert b"%d bytes of the enclave's log are left out" % MOST_BYTES in text


def test_after_a_while_it_is_passed_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_relay, "PERIOD_SECONDS", 0.0)
    found: list[bytes] = []
    theirs, log = relay(found.append)
    os.set_blocking(theirs, True)
    for _ in range(3 * MOST_BYTES // 1024):
        os.write(theirs, b"x" * 1024)
    os.close(theirs)
    log.join(PATIENT_SECONDS)
    assert b"".join(found).count(b"x") == 3 * MOST_BYTES


def test_a_closed_standard_error_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = os.open(os.devnull, os.O_RDONLY)
    monkeypatch.setattr(log_relay, "_STANDARD_ERROR", closed)
    log_relay._to_standard_error(b"nobody reads this")
    os.close(closed)
