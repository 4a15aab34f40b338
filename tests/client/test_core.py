"""The conversations without a network: what is sent, what is tried again, what is believed."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from garrison.client.core import Core
from garrison.client.prediction import Prediction, join
from garrison.client.talk import Pause, Talk, Unreachable, Work
from garrison.errors import (
    ConfigError,
    GarrisonError,
    LimitError,
    NotFoundError,
    ProofError,
    ServiceError,
    UnavailableError,
)
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.http_status import ERRORS, INTERNAL, STATUS
from garrison.protocol.oip_client import encode_request
from garrison.server.http_errors import error_answer

METADATA = {
    "name": "m",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "p", "datatype": "FP32", "shape": [-1, 1]}],
}


def core(*, attempts: int = 3, verify: bool = False) -> Core:
    return Core(api_key="gk_a_b", model="m", version=None, attempts=attempts, verify=verify)


def ok(value: Any) -> Response:
    return Response(200, {}, msgspec.json.encode(value))


def play(talk: Talk[Any], *answers: Response | Unreachable) -> tuple[Any, list[Request | Pause | Work]]:
    """Run a conversation with these answers; its result and all that it did."""
    waiting, did = list(answers), []
    try:
        step = next(talk)
        while True:
            did.append(step)
            step = talk.send(None if isinstance(step, Pause) else waiting.pop(0))
    except StopIteration as end:
        assert not waiting, "it asked less than expected"
        return end.value, did


def unavailable() -> Response:
    answer = error_answer(UnavailableError.code, "later")
    return Response(answer.status, dict(answer.headers), answer.body)


def test_it_tries_again_with_growing_pauses() -> None:
    found, did = play(core().metadata(), Unreachable("refused"), unavailable(), ok(METADATA))
    assert found.name == "m"
    pauses = [step.seconds for step in did if isinstance(step, Pause)]
    assert len(pauses) == 2
    assert pauses[1] > pauses[0]


def test_it_gives_up_after_so_many_attempts() -> None:
    with pytest.raises(UnavailableError, match="2 attempts: refused"):
        play(core(attempts=2).metadata(), Unreachable("refused"), Unreachable("refused"))
    with pytest.raises(UnavailableError, match="later"):
        play(core(attempts=1).metadata(), unavailable())


def test_what_is_not_worth_a_second_try_is_not_tried_again() -> None:
    for code in set(STATUS) - {UnavailableError.code}:
        answer = error_answer(code, "why")
        response = Response(answer.status, dict(answer.headers), answer.body)
        kind = ERRORS.get(code, ServiceError)
        with pytest.raises(kind, match="why" if code != INTERNAL else "failed"):
            play(core().metadata(), response)


def test_every_code_that_a_server_may_show_has_its_type() -> None:
    assert set(STATUS) - {INTERNAL} == set(ERRORS)
    assert all(issubclass(kind, GarrisonError) and kind.code == code for code, kind in ERRORS.items())


DEEP = b'{"error": "e", "more": ' + b"[" * 5000 + b"]" * 5000 + b"}"


def test_an_answer_that_is_nested_without_end_is_a_service_error() -> None:
    with pytest.raises(ServiceError, match="cannot be read"):
        play(core().metadata(), Response(200, {}, DEEP))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff", b'{"code": "request.input"}', DEEP])
def test_an_error_without_an_explanation_is_a_service_error(body: bytes) -> None:
    with pytest.raises(ServiceError, match="status 500"):
        play(core().metadata(), Response(500, {}, body))


def test_metadata_is_asked_for_once_and_the_key_is_sent() -> None:
    client = core()
    _, did = play(client.metadata(), ok(METADATA))
    assert isinstance(did[0], Request)
    assert (did[0].path, did[0].headers) == ("/v2/models/m", {"authorization": "Bearer gk_a_b"})
    assert play(client.metadata())[1] == []


def answer_for(rows: int, **changes: Any) -> Response:
    output = {"name": "p", "datatype": "FP32", "shape": [rows, 1], "data": [0.5] * rows}
    return ok({"model_name": "m", "model_version": "1", "outputs": [output]} | changes)


def test_a_caller_who_sees_no_model_is_told_so() -> None:
    nameless = Core(api_key="gk_a_b", model=None, version=None, attempts=1, verify=False)
    with pytest.raises(NotFoundError, match="shows this caller no model"):
        play(nameless.metadata(), ok([]))


def test_long_inputs_are_split() -> None:
    x = np.zeros((10, 2), np.float32)
    found, did = play(core().predict(x, rows_a_request=4), ok(METADATA), answer_for(4), answer_for(4), answer_for(2))
    assert found.rows == 10
    sent = [step.body for step in did if isinstance(step, Request) and step.method == "POST"]
    assert sent == [encode_request({"x": x[i : i + 4]})[0] for i in (0, 4, 8)]


def test_answers_that_do_not_fit_the_question_are_refused() -> None:
    x = np.zeros((4, 2), np.float32)
    bad = [
        answer_for(3),
        answer_for(4, parameters={"garrison_uncertain_rows": "4"}),
        answer_for(4, parameters={"garrison_uncertain_rows": "-1"}),
        Response(200, {"inference-header-content-length": "-1"}, answer_for(4).body),
        Response(200, {"inference-header-content-length": "9" * 5000}, answer_for(4).body),
        answer_for(4, outputs=[{"name": "p", "datatype": "FP32", "shape": [], "data": [0.5]}]),
        answer_for(4, outputs=[{"name": "p", "datatype": "FP32", "shape": [0, 10**30], "data": []}]),
        *(
            answer_for(4, outputs=[{"name": "classes", "datatype": "INT64", "shape": [4, 1], "data": [0, 1, 0, named]}])
            for named in (-1, -99)
        ),
    ]
    for response in bad:
        with pytest.raises(ServiceError):
            play(core().predict(x), ok(METADATA), response)


def test_a_class_that_the_model_does_not_have_is_refused() -> None:
    extras = {"version": "1", "task": "classification", "labels": ["a", "b"], "ranges": {}}
    known = METADATA | {
        "outputs": [{"name": "classes", "datatype": "INT64", "shape": [-1, 1]}],
        "garrison": extras | {"manifest_digest": "", "guard_digest": "", "budget_rows": 0, "budget_period": ""},
    }

    def named(number: int) -> Prediction:
        output = {"name": "classes", "datatype": "INT64", "shape": [1, 1], "data": [number]}
        found, _ = play(core().predict(np.zeros((1, 2), np.float32)), ok(known), answer_for(1, outputs=[output]))
        return found  # type: ignore[no-any-return]

    assert named(1).class_labels == ("b",)
    for number in (2, -1):
        with pytest.raises(ServiceError, match="expected 0 to 1"):
            named(number)


@pytest.mark.parametrize("key", ["gk_a_secret\n", "gk_a_s\xe9cret", "", "gk_a_sec ret", "gk_a_secret\x00"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Core(api_key=key, model="m", version=None, attempts=1, verify=False)
    assert "secret" not in str(caught.value)


def test_a_model_that_changes_between_two_requests_is_noticed() -> None:
    x = np.zeros((8, 2), np.float32)
    with pytest.raises(ServiceError, match="changed its model"):
        play(core().predict(x, rows_a_request=4), ok(METADATA), answer_for(4), answer_for(4, model_version="2"))


@pytest.mark.parametrize("keys", [[], [{"name": "m", "version": "2"}], [{"name": "o", "version": "1"}]])
def test_without_a_key_for_the_model_nothing_is_proved(keys: list[dict[str, str]]) -> None:
    extra = {"public_key": "00", "isolation": "none", "manifest_digest": "", "guard_digest": ""}
    document = ok({"keys": [key | extra for key in keys]})
    with pytest.raises(ProofError, match="0 signing keys"):
        play(core(verify=True).predict(np.zeros((1, 2), np.float32)), ok(METADATA), document)


def test_a_limit_error_is_not_mistaken_for_something_else() -> None:
    answer = error_answer(LimitError.code, "a body may have 5 bytes")
    with pytest.raises(LimitError, match="5 bytes"):
        play(core().metadata(), Response(answer.status, dict(answer.headers), answer.body))


def test_a_prediction_of_top_k_has_classes_and_no_whole_vector() -> None:
    classes = np.array([[3, 1], [0, 2]])
    part = Prediction(
        {"classes": classes, "probabilities": np.array([[0.7, 0.2], [0.6, 0.3]])},
        ("a", "b", "c"),
        np.zeros(2, dtype=np.bool_),
        proved=False,
        model="m",
        model_version="1",
    )
    both = join([part, part])
    assert both.probabilities is None
    assert both.classes.tolist() == [3, 0, 3, 0]
    assert both.class_labels == ("3", "a", "3", "a")
    assert both.first_values is not None
    assert both.first_values.tolist() == [0.7, 0.6, 0.7, 0.6]


def test_a_model_without_classes_says_so() -> None:
    part = Prediction(
        {"values": np.zeros((1, 1))}, (), np.zeros(1, dtype=np.bool_), proved=False, model="m", model_version="1"
    )
    with pytest.raises(ServiceError, match="no classes; it answers values"):
        _ = part.classes
