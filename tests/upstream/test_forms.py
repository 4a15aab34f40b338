from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from garrison.errors import InputError, ServiceError
from garrison.protocol.oip import ALL_JSON
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.types import Array
from garrison.upstream import forms
from garrison.upstream.forms import AnswerForms, QuestionForms

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("number", ["garrison-1", "garrison-99999", "garrison"])
@pytest.mark.parametrize(
    "inputs",
    [
        {"x": ROWS},
        {"x": ROWS[:1], "y": np.array([[True]])},
        {"garrison": ROWS.astype(np.float16), 'a "quoted" \\ name': ROWS[:, 1:]},
        {"x": ROWS.T},
    ],
)
def test_a_question_is_written_as_by_json(inputs: dict[str, Array], number: str) -> None:
    written = QuestionForms("garrison")
    for rows in (inputs, {name: x + x for name, x in inputs.items()}):
        assert written.write(rows, number) == encode_request(rows, outputs=("garrison",), request_id=number)


def test_questions_of_other_rows_types_and_names_are_told_apart() -> None:
    written = QuestionForms("out")
    for x in (ROWS, ROWS[:1], ROWS.astype(np.float64), ROWS.view(np.int32), ROWS.reshape(1, 6)):
        for name in ("x", "y"):
            assert written.write({name: x}, "garrison-7") == encode_request(
                {name: x}, outputs=("out",), request_id="garrison-7"
            )
    with pytest.raises(InputError):
        written.write({"x": ROWS.astype(np.complex64)}, "garrison-8")


def answer(number: str, values: Array = ROWS, **more: Any) -> tuple[bytes, int]:
    """A whole answer, and the length of its JSON part."""
    tensor = {"name": "p", "datatype": "FP32", "shape": values.shape, "parameters": {"binary_data_size": values.nbytes}}
    head = msgspec.json.encode({"model_name": "m", "id": number, "outputs": [tensor], **more})
    return head + values.tobytes(), len(head)


def learned(body: bytes, json_bytes: int, number: str) -> AnswerForms:
    known = AnswerForms()
    known.learn(body, json_bytes, number, decode_response(body, json_bytes).outputs["p"])
    return known


def test_an_answer_in_known_words_is_read_as_by_json() -> None:
    known = learned(*answer("garrison-9"), "garrison-9")
    for number, values in (("garrison-9", ROWS), ("garrison-10", -ROWS), ("garrison-123456", ROWS + np.inf)):
        body, json_bytes = answer(number, values)
        found = known.read(body, json_bytes, number)
        assert found is not None
        np.testing.assert_array_equal(found, decode_response(body, json_bytes).outputs["p"])
        assert found.dtype == np.float32
        assert found.shape == (2, 3)
        assert not found.flags.writeable


OTHER_WORDS: dict[str, tuple[bytes, int]] = {
    "an answer to another question": answer("garrison-8"),
    "an answer to a question whose number begins alike": answer("garrison-99"),
    "another model": answer("garrison-9", model_name="n"),
    "another shape": answer("garrison-9", ROWS.T.copy()),
    "more words": answer("garrison-9", parameters={}),
    "fewer numbers": (answer("garrison-9")[0][:-1], answer("garrison-9")[1]),
    "more numbers": (answer("garrison-9")[0] + b"\0", answer("garrison-9")[1]),
    "a length of its JSON that is too small": (answer("garrison-9")[0], answer("garrison-9")[1] - 1),
    "a length of its JSON that is too large": (answer("garrison-9")[0], answer("garrison-9")[1] + 1),
    "no length of its JSON": (answer("garrison-9")[0], ALL_JSON),
    "nothing": (b"", 0),
}


@pytest.mark.parametrize("what", OTHER_WORDS)
def test_other_words_are_left_to_json(what: str) -> None:
    known = learned(*answer("garrison-4"), "garrison-4")
    assert known.read(*OTHER_WORDS[what], "garrison-9") is None
    assert known.read(*answer("garrison-9"), "garrison-9") is not None, "control: the words that are known"


def test_an_id_that_stands_elsewhere_too_is_not_learned() -> None:
    body, json_bytes = answer("garrison-4", model_name="garrison-4")
    other = body.replace(b'"garrison-4"', b'"garrison-5"', 1)
    assert decode_response(other, json_bytes).id == "garrison-4", "control: to JSON it answers the last question"
    known = learned(body, json_bytes, "garrison-4")
    assert known.read(other, json_bytes, "garrison-5") is None


def test_an_id_that_is_written_with_an_escape_is_not_learned() -> None:
    body, _ = answer("garrison-4", model_name="garrison-4")
    head, numbers = body[: -ROWS.nbytes], body[-ROWS.nbytes :]
    head = head.replace(b'"id":"garrison-4"', b'"id":"\\u0067arrison-4"')
    body, json_bytes = head + numbers, len(head)
    assert decode_response(body, json_bytes).id == "garrison-4"
    known = learned(body, json_bytes, "garrison-4")
    other = body.replace(b'"garrison-4"', b'"garrison-5"')
    assert decode_response(other, json_bytes).id == "garrison-4", "control: to JSON it answers the last question"
    assert known.read(other, json_bytes, "garrison-5") is None


def test_numbers_in_json_are_not_learned() -> None:
    head = msgspec.json.encode(
        {
            "model_name": "m",
            "id": "garrison-4",
            "outputs": [{"name": "p", "datatype": "FP32", "shape": [1], "data": [2.0]}],
        }
    )
    known = learned(head, len(head), "garrison-4")
    assert known.read(head, len(head), "garrison-4") is None
    with pytest.raises(ServiceError):
        decode_response(head + ROWS.tobytes()[:4], len(head))
    assert known.read(head + ROWS.tobytes()[:4], len(head), "garrison-4") is None


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_MOST_FORMS", 3)
    known, written = AnswerForms(), QuestionForms("p")
    for rows in range(1, 11):
        x = np.zeros((rows, 2), np.float32)
        body, json_bytes = answer("garrison-4", x)
        known.learn(body, json_bytes, "garrison-4", x)
        assert known.read(body, json_bytes, "garrison-4") is not None
        assert written.write({"x": x}, "garrison-4") == encode_request(
            {"x": x}, outputs=("p",), request_id="garrison-4"
        )
        assert len(known._layouts) <= 3
        assert len(written._around) <= 3
    body, json_bytes = answer("garrison-4", ROWS, parameters={"long": "a" * 4096})
    long = learned(body, json_bytes, "garrison-4")
    assert long.read(body, json_bytes, "garrison-4") is None
    assert not long._layouts
