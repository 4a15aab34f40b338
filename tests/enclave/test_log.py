"""The enclave's log tells the host where something failed, and not on what."""

from __future__ import annotations

import logging

import pytest

from garrison.enclave.log import PlacesOnly

SECRET = "4111 1111 1111 1111"


def failed() -> logging.LogRecord:
    try:
        try:
            float(SECRET)
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError as error:
        return logging.LogRecord(
            "name", logging.ERROR, "file", 1, "a batch failed", (), (KeyError, error, error.__traceback__)
        )
    raise AssertionError("nothing was raised")


def test_the_message_of_an_exception_is_left_out_and_its_place_is_told() -> None:
    record = failed()
    text = PlacesOnly("%(message)s").format(record)
    assert SECRET not in text
    assert text.startswith("a batch failed\nKeyError")
    assert "ValueError" in text
    assert "test_log.py" in text
    assert "in failed" in text


def test_control_the_usual_form_tells_it() -> None:
    assert SECRET in logging.Formatter("%(message)s").format(failed())


def test_an_exception_that_is_its_own_cause_ends() -> None:
    error = ValueError(SECRET)
    error.__cause__ = error
    text = PlacesOnly().formatException((ValueError, error, None))
    assert SECRET not in text


@pytest.mark.parametrize("info", [(None, None, None)])
def test_no_exception_at_all(info: tuple[None, None, None]) -> None:
    assert PlacesOnly().formatException(info) == ""
