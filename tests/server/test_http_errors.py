"""The one table from codes to HTTP, and what it never shows."""

from __future__ import annotations

import json

import pytest

from garrison import errors
from garrison.errors import GarrisonError, InputError
from garrison.protocol.http_status import STATUS
from garrison.server.http_errors import answer_of, error_answer


def test_every_request_error_has_a_status_of_its_own_fault() -> None:
    for kind in errors.RequestError.__subclasses__():
        assert 400 <= STATUS[kind.code] < 500, kind


@pytest.mark.parametrize("code", ["internal", "bundle.changed_file", "guard.invalid", "", "nonsense"])
def test_what_is_not_the_clients_fault_is_not_told(code: str) -> None:
    answer = error_answer(code, "the secret lies in /root")
    assert answer.status == 500
    assert json.loads(answer.body) == {"error": "the service failed on this request", "code": "internal"}


def test_an_error_of_ours_without_a_place_in_the_table_is_a_500() -> None:
    assert answer_of(GarrisonError("a path: /root")).status == 500
    assert b"/root" not in answer_of(GarrisonError("a path: /root")).body
    told = answer_of(InputError("expected FP32"))
    assert (told.status, json.loads(told.body)["error"]) == (400, "expected FP32")
