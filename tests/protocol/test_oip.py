"""The service's half of the protocol and the client's fit each other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.oip_messages import TABLE, binary_tensor, model, read, spec, tensor

from garrison.errors import InputError, LimitError, MalformedRequestError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol import oip
from garrison.protocol.oip import ALL_JSON, check_outputs, decode_request, encode_response
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.types import NUMPY_DTYPES, Released


@given(
    datatype=st.sampled_from(sorted(NUMPY_DTYPES)),
    shape=st.lists(st.integers(1, 4), max_size=3).map(tuple),
    rows=st.integers(1, 5),
    binary=st.booleans(),
    request_id=st.text(max_size=20),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_client_and_service_understand_each_other(
    datatype: str, shape: tuple[int, ...], rows: int, binary: bool, request_id: str, seed: int
) -> None:
    rng, dtype = np.random.default_rng(seed), NUMPY_DTYPES[datatype]
    if dtype.kind == "f":
        x = rng.normal(size=(rows, *shape)).astype(dtype)
    elif dtype.kind == "b":
        x = rng.integers(0, 2, size=(rows, *shape)).astype(dtype)
    else:
        info = np.iinfo(dtype)
        x = rng.integers(info.min, info.max, size=(rows, *shape), dtype=dtype, endpoint=True)
    facts = model(spec("x", datatype, shape))
    body, json_bytes = encode_request({"x": x}, binary=binary, request_id=request_id)
    assert (json_bytes == ALL_JSON) is not binary
    request = decode_request(body, json_bytes, facts, DEFAULT_LIMITS)
    found = request.inputs["x"]
    np.testing.assert_array_equal(found, x)
    assert (found.dtype, found.shape, request.rows, request.id) == (dtype, x.shape, rows, request_id)
    assert found.flags.c_contiguous
    assert found.flags.aligned

    released = Released({"x": x, "classes": np.arange(rows, dtype=np.int64).reshape(rows, 1)}, rng.random(rows) < 0.5)
    answer = decode_response(*encode_response(request, released, "m", "7"))
    for name, values in released.outputs.items():
        np.testing.assert_array_equal(answer.outputs[name], values)
        assert answer.outputs[name].dtype == values.dtype
    assert answer.uncertain == tuple(np.flatnonzero(released.uncertain))
    assert (answer.model, answer.version, answer.id) == ("m", "7", request_id)


def test_json_data_may_be_nested_or_flat() -> None:
    nested = [[[1, 2, 3], [4, 5, 6.5]]]
    flat = [1, 2, 3, 4, 5, 6.5]
    for data in (nested, flat):
        np.testing.assert_array_equal(read({"inputs": [tensor(data=data)]}).inputs["x"], np.array(nested, np.float32))


def test_several_inputs_of_several_kinds_in_json_and_mixed_with_binary() -> None:
    codes = np.array([[1, -2, 3], [4, 5, -32768]], np.int16)
    message: dict[str, Any] = {
        "inputs": [
            {"name": "flag", "shape": [2, 1], "datatype": "BOOL", "data": [True, False]},
            {"name": "codes", "shape": [2, 3], "datatype": "INT16", "data": codes.tolist()},
            {"name": "age", "shape": [2, 1], "datatype": "FP64", "data": [None, 31]},
        ]
    }
    found = read(message, facts=TABLE).inputs
    np.testing.assert_array_equal(found["flag"], [[True], [False]])
    np.testing.assert_array_equal(found["codes"], codes)
    np.testing.assert_array_equal(found["age"], [[np.nan], [31.0]])
    message["inputs"][1] = {
        "name": "codes",
        "shape": [2, 3],
        "datatype": "INT16",
        "parameters": {"binary_data_size": 12},
    }
    again = read(message, codes.tobytes(), facts=TABLE).inputs
    for name, values in found.items():
        np.testing.assert_array_equal(again[name], values)


def test_an_integer_counts_as_a_float_beside_inputs_of_other_kinds() -> None:
    message = {
        "inputs": [
            {"name": "flag", "shape": [1, 1], "datatype": "BOOL", "data": [True]},
            {"name": "codes", "shape": [1, 3], "datatype": "INT16", "data": [1, 2, 3]},
            {"name": "age", "shape": [1, 1], "datatype": "FP64", "data": [2**53 + 1]},
        ]
    }
    assert read(message, facts=TABLE).inputs["age"][0, 0] == 2.0**53


def test_what_the_protocol_allows_and_nobody_needs_is_passed_over() -> None:
    message = {
        "id": "1",
        "parameters": {"priority": 1, "sequence_id": "s", "anything": [[{"deep": 1}]]},
        "inputs": [tensor(parameters={"mine": 1}, comment="?")],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": False, "more": 1}}],
        "extra": {"a": [1, 2]},
    }
    assert read(message).rows == 1


def test_unaligned_tensors_are_copied_into_alignment() -> None:
    values = np.arange(6, dtype=np.float32)
    head = json.dumps({"inputs": [binary_tensor()]}).encode()
    for pad in range(4):
        found = read(head + b" " * pad, values.tobytes()).inputs["x"]
        assert found.flags.aligned
        np.testing.assert_array_equal(found.ravel(), values)


def test_outputs_are_chosen_ordered_and_encoded_as_asked() -> None:
    released = Released(
        {"probabilities": np.array([[0.25, 0.75]], np.float32), "classes": np.array([[1]])}, np.zeros(1, dtype=np.bool_)
    )
    wanted = [{"name": "classes"}, {"name": "probabilities", "parameters": {"binary_data": False}}]
    request = read({"inputs": [tensor()], "outputs": wanted, "parameters": {"binary_data_output": True}})
    body, json_bytes = encode_response(request, released, "m", "1")
    first, second = json.loads(body[:json_bytes])["outputs"]
    assert (first["name"], first["parameters"], body[json_bytes:]) == (
        "classes",
        {"binary_data_size": 8},
        np.int64(1).tobytes(),
    )
    assert (second["name"], second["data"]) == ("probabilities", [0.25, 0.75])
    with pytest.raises(InputError, match="unknown output 'logits'; this model gives 'probabilities', 'classes'"):
        check_outputs(read({"inputs": [tensor()], "outputs": [{"name": "logits"}]}), released.outputs)


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_a_json_part_that_was_read_before_means_the_same_and_no_more() -> None:
    facts = model(spec("x", "FP32", (2, 3)))
    message = {"inputs": [binary_tensor()], "parameters": {"binary_data_output": True}, "outputs": [{"name": "a"}]}
    first, second = (np.full(6, value, np.float32).tobytes() for value in (0.25, 0.75))
    once, again = read(message, first, facts), read(message, second, facts)
    assert (again.rows, again.outputs, again.binary_default, again.id) == (1, once.outputs, True, "")
    assert once.inputs["x"].tobytes() == first
    assert again.inputs["x"].tobytes() == second
    for tail in (first[:-1], first + b"!", b""):
        with pytest.raises(MalformedRequestError):
            read(message, tail, facts)
    with pytest.raises(LimitError):
        read(message, first, facts, Limits(request_json_bytes=8))


def test_what_names_a_request_is_not_remembered_and_memory_is_bounded() -> None:
    facts = model(spec("x", "FP32", (2, 3)))
    tail = np.zeros(6, np.float32).tobytes()
    for number in range(600):
        assert read({"inputs": [binary_tensor()], "id": f"{number}"}, tail, facts).id == f"{number}"
    assert not oip.plan_of(facts).heads
    for number in range(600):
        read({"inputs": [binary_tensor()], "other": number}, tail, facts)
    assert 0 < len(oip.plan_of(facts).heads) <= 256


def test_an_id_in_front_of_what_was_read_before_is_the_request_s_own() -> None:
    facts = model(spec("x", "FP32", (2, 3)))
    tail = np.zeros(6, np.float32).tobytes()
    rest = json.dumps({"inputs": [binary_tensor()]})[1:].encode()
    for name in (b"first", b"second", b"2f0c-4e:1_2.3"):
        head = b'{"id":"' + name + b'",' + rest
        assert decode_request(head + tail, len(head), facts, Limits()).id == name.decode()
    assert len(oip.plan_of(facts).heads) == 1
    assert decode_request(b"{" + rest + tail, len(rest) + 1, facts, Limits()).id == ""
    head = b'{"id":"second",' + rest
    with pytest.raises(LimitError):
        decode_request(head + tail, len(head), facts, Limits(string_bytes=5))


@pytest.mark.parametrize(
    ("front", "found"),
    [
        (b'{"id":"a","id":"b",', "b"),
        (b'{"id":"a","\\u0069d":"b",', "b"),
        (b'{"id":"a","id":null,', ""),
        (b'{"id":"\\u0061",', "a"),
        (b'{"id" : "a", ', "a"),
        (b'{"id":"' + "\u00e4".encode() + b'",', "\u00e4"),
    ],
)
def test_an_id_that_is_written_otherwise_is_read_in_full_each_time(front: bytes, found: str) -> None:
    facts = model(spec("x", "FP32", (2, 3)))
    tail = np.zeros(6, np.float32).tobytes()
    rest = json.dumps({"inputs": [binary_tensor()]})[1:].encode()
    plain = b'{"id":"z",' + rest
    for head in (plain, front + rest, plain, front + rest):  # whatever was remembered before
        expected = "z" if head is plain else found
        assert decode_request(head + tail, len(head), facts, Limits()).id == expected
    assert len(oip.plan_of(facts).heads) == 1


@pytest.mark.parametrize("head", [b'{"id":"a",}', b'{"id":"a",]', b'{"id":"a","', b'{"id":"a\n",'])
def test_an_id_in_front_of_no_message_is_refused(head: bytes) -> None:
    facts = model(spec("x", "FP32", (2, 3)))
    for _ in range(2):
        with pytest.raises(MalformedRequestError):
            decode_request(head, len(head), facts, Limits())
