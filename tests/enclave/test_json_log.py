"""JSON lines: whole, one a line, and without the message of an exception, which may quote an input."""

from __future__ import annotations

import json
import logging
import os

import pytest

from garrison.enclave.log import JSON, VARIABLE, JsonLines
from garrison.enclave.program import clean_environment


def line_of(message: str, *words: object, error: Exception | None = None) -> str:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("garrison.x", logging.WARNING, "file", 1, message, words, info)
    return JsonLines().format(record)


def test_a_line_is_one_object_whatever_is_in_it() -> None:
    text = line_of("caller %a says\n%s", "a\x1b[2J\u2028", '"} {"level":"CRITICAL')
    assert "\n" not in text
    assert "\x1b" not in text
    found = json.loads(text)
    assert found["level"] == "WARNING"
    assert found["message"].endswith('{"level":"CRITICAL')
    assert found["process"] == os.getpid()
    assert found["time"].endswith("Z")


def test_an_exception_is_told_by_its_place_alone() -> None:
    try:
        raise ValueError("could not read 0.123456789")
    except ValueError as error:
        found = json.loads(line_of("failed", error=error))
    assert "0.123456789" not in json.dumps(found)
    assert "ValueError" in found["exception"]
    assert __file__ in found["exception"]


def test_an_enclave_is_told_and_nothing_else_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert VARIABLE not in clean_environment(0)
    monkeypatch.setenv(VARIABLE, JSON)
    monkeypatch.setenv("SECRET_OF_THE_HOST", "x")
    environment = clean_environment(0)
    assert environment[VARIABLE] == JSON
    assert "SECRET_OF_THE_HOST" not in environment
