"""The client's half of the protocol: it trusts a server no more than a server trusts a client."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tests.protocol.oip_messages import model, spec

from garrison.errors import InputError, ServiceError
from garrison.limits import DEFAULT_LIMITS
from garrison.protocol.oip import decode_request
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.types import DATATYPES, NUMPY_DTYPES, Array


def answer(**changes: Any) -> bytes:
    output: dict[str, Any] = {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.5]}
    return json.dumps({"model_name": "m", "outputs": [output | changes]}).encode()


@pytest.mark.parametrize(
    ("body", "json_bytes"),
    [
        (b"", -1),
        (b"{}", -1),
        (answer(), 10**6),
        (answer(datatype="BYTES"), -1),
        (answer(shape=[-1, 2]), -1),
        (answer(shape=[1, 3]), -1),
        (answer(data=["a", "b"]), -1),
        (answer(data=[[1], [2, 3]]), -1),
        (answer(data=None, parameters={"binary_data_size": 8}), -1),
        (answer() + b"xx", len(answer())),
        (b'{"model_name":"m","outputs":[],"parameters":{"garrison_uncertain_rows":"a"}}', -1),
        (b'{"model_name":"m","outputs":[],"parameters":{"garrison_uncertain_rows":7}}', -1),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_service_error(body: bytes, json_bytes: int) -> None:
    with pytest.raises(ServiceError):
        decode_response(body, json_bytes)


def test_what_json_cannot_hold_is_not_sent() -> None:
    with pytest.raises(InputError, match="infinity"):
        encode_request({"x": np.array([[np.inf]], np.float32)}, binary=False)
    with pytest.raises(InputError, match="dtype"):
        encode_request({"x": np.array([["a"]])})


def test_missing_values_survive_both_forms() -> None:
    facts = model(spec("x", "FP32", (2,), missing=True))
    x: Array = np.array([[np.nan, 1.0]], np.float32)
    for binary in (True, False):
        request = decode_request(*encode_request({"x": x}, binary=binary), facts, DEFAULT_LIMITS)
        np.testing.assert_array_equal(request.inputs["x"], x)


def test_the_tables_of_datatypes_mirror_each_other() -> None:
    assert {DATATYPES[dtype]: dtype for dtype in NUMPY_DTYPES.values()} == NUMPY_DTYPES
