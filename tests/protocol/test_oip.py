"""The service's and the client's half of the protocol: they fit each other, and nothing malformed gets through."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.errors import GarrisonError, InputError, LimitError, MalformedRequestError, ServiceError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol import oip
from garrison.protocol.oip import ALL_JSON, InferRequest, check_outputs, decode_request, encode_response
from garrison.protocol.oip_client import decode_response, encode_request
from garrison.types import DATATYPES, NUMPY_DTYPES, Array, InputFacts, ModelFacts, Released, Task

SECRET_VALUE = 0.73519


def spec(name: str, datatype: str, shape: tuple[int, ...], *, missing: bool = False) -> InputFacts:
    dtype, n = NUMPY_DTYPES[datatype], int(np.prod(shape))
    return InputFacts(name, dtype, shape, np.zeros(n, dtype), np.ones(n, dtype), np.full(n, missing))


def model(*inputs: InputFacts) -> ModelFacts:
    return ModelFacts(Task.CLASSIFICATION, inputs, ("a", "b"), 2, np.dtype(np.float32), False, False)


IMAGE = model(spec("x", "FP32", (2, 3)))
TABLE = model(spec("age", "FP64", (1,), missing=True), spec("codes", "INT16", (3,)), spec("flag", "BOOL", (1,)))


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 2, 3], "datatype": "FP32", "data": [SECRET_VALUE] * 6} | changes


def binary_tensor(size: Any = 24, **changes: Any) -> dict[str, Any]:
    found = tensor(parameters={"binary_data_size": size}, **changes)
    del found["data"]
    return found


def read(
    message: Any, tail: bytes | None = None, facts: ModelFacts = IMAGE, limits: Limits = DEFAULT_LIMITS
) -> InferRequest:
    head = message if isinstance(message, bytes) else json.dumps(message).encode()
    return decode_request(head + (tail or b""), ALL_JSON if tail is None else len(head), facts, limits)


# --- what fits gets through ------------------------------------------------------------------------------------------


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


# --- what does not fit is refused, with a type and a reason -----------------------------------------------------------

DEEP = b'{"inputs": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BAD_JSON: dict[str, tuple[Any, type[GarrisonError], str]] = {
    "empty": (b"", MalformedRequestError, "truncated"),
    "not JSON": (b"hello", MalformedRequestError, "not an inference request"),
    "a list": (b"[]", MalformedRequestError, "Expected `object`"),
    "cut short": (b'{"inputs": [', MalformedRequestError, "truncated"),
    "something behind it": (b'{"inputs": []} x', MalformedRequestError, "trailing"),
    "a byte order mark": (b'\xef\xbb\xbf{"inputs": []}', MalformedRequestError, "invalid character"),
    "UTF-16": ('{"inputs": []}'.encode("utf-16"), MalformedRequestError, "not an inference request"),
    "no inputs": ({}, MalformedRequestError, "missing required field `inputs`"),
    "inputs not a list": ({"inputs": {}}, MalformedRequestError, "Expected `array`"),
    "not UTF-8": (b'{"inputs": [{"name": "\xff\xfe"}]}', MalformedRequestError, "utf-8"),
    "half a surrogate": (b'{"id": "\\ud800", "inputs": []}', MalformedRequestError, "surrogate"),
    "nested deeply": (DEEP, MalformedRequestError, "nested too deeply"),
    "no tensors": ({"inputs": []}, InputError, "also needs the input 'x'"),
    "unknown name": ({"inputs": [tensor(name="y")]}, InputError, "unknown input 'y'; this model takes 'x'"),
    "long unknown name": ({"inputs": [tensor(name="y" * 10**6)]}, InputError, r"unknown input 'yyy.*\.\.\."),
    "the same twice": ({"inputs": [tensor(), tensor()]}, MalformedRequestError, "given twice"),
    "one too many": ({"inputs": [tensor(), tensor(name="z")]}, InputError, "unknown input 'z'"),
    "other datatype": ({"inputs": [tensor(datatype="FP64")]}, InputError, "expected datatype FP32, found 'FP64'"),
    "BYTES": ({"inputs": [tensor(datatype="BYTES", data=["a"] * 6)]}, MalformedRequestError, "Expected `float"),
    "BYTES, binary": ({"inputs": [binary_tensor(datatype="BYTES")]}, InputError, "found 'BYTES'"),
    "unknown datatype": ({"inputs": [tensor(datatype="fp32")]}, InputError, "expected datatype FP32, found 'fp32'"),
    "one dimension short": ({"inputs": [tensor(shape=[2, 3])]}, InputError, r"expected shape \[rows, 2, 3\]"),
    "other shape": ({"inputs": [tensor(shape=[1, 3, 2])]}, InputError, r"found \[1, 3, 2\]"),
    "flattened shape": ({"inputs": [tensor(shape=[1, 6])]}, InputError, r"found \[1, 6\]"),
    "no shape": ({"inputs": [tensor(shape=[])]}, InputError, r"found \[\]"),
    "shape of text": ({"inputs": [tensor(shape=["1", 2, 3])]}, MalformedRequestError, "Expected `int`, got `str`"),
    "shape of floats": ({"inputs": [tensor(shape=[1.5, 2, 3])]}, MalformedRequestError, "Expected `int`"),
    "no rows": ({"inputs": [tensor(shape=[0, 2, 3], data=[])]}, InputError, "at least 1 row, found 0"),
    "negative rows": ({"inputs": [tensor(shape=[-1, 2, 3])]}, InputError, "at least 1 row, found -1"),
    "too many rows": ({"inputs": [tensor(shape=[10**6, 2, 3])]}, LimitError, "may have 16384 rows, found 1000000"),
    "beyond 64 bits": ({"inputs": [tensor(shape=[2**64, 2, 3])]}, LimitError, "16384 rows"),
    "product overflows": ({"inputs": [tensor(shape=[2**40, 2**40, 2**40])]}, InputError, "expected shape"),
    "a huge number": (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[' + b"9" * 5000 + b",2,3]}]}",
        MalformedRequestError,
        "range",
    ),
    "no data": ({"inputs": [tensor(data=None)]}, MalformedRequestError, "neither is given"),
    "too little data": ({"inputs": [tensor(data=[1.0] * 5)]}, MalformedRequestError, "means 6 values, found 5"),
    "too much data": ({"inputs": [tensor(data=[1.0] * 7)]}, MalformedRequestError, "means 6 values, found 7"),
    "empty data": ({"inputs": [tensor(data=[])]}, MalformedRequestError, "means 6 values, found 0"),
    "ragged": ({"inputs": [tensor(data=[[[1, 2, 3], [4, 5]]])]}, MalformedRequestError, "nested as its shape"),
    "half nested": ({"inputs": [tensor(data=[1, 2, 3, [4, 5, 6]])]}, MalformedRequestError, "means 6 values, found 4"),
    "nested late": ({"inputs": [tensor(data=[1, 2, 3, 4, 5, [6]])]}, MalformedRequestError, "one flat list"),
    "nested too deeply": ({"inputs": [tensor(data=[[[[1.0] * 3]]])]}, MalformedRequestError, "Expected `float`"),
    "text": ({"inputs": [tensor(data=["1.0"] * 6)]}, MalformedRequestError, "got `str`"),
    "booleans": ({"inputs": [tensor(data=[True] * 6)]}, MalformedRequestError, "got `bool`"),
    "null": ({"inputs": [tensor(data=[None] * 6)]}, MalformedRequestError, "got `null`"),
    "an object": ({"inputs": [tensor(data={"a": 1})]}, MalformedRequestError, "got `object`"),
    "NaN": ({"inputs": [tensor(data=[float("nan")] * 6)]}, MalformedRequestError, "invalid character"),
    "infinity": ({"inputs": [tensor(data=[float("inf")] * 6)]}, MalformedRequestError, "invalid character"),
    "beyond FP32": ({"inputs": [tensor(data=[1e39] * 6)]}, InputError, "outside the range of FP32"),
    "beyond FP64": (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2,3],"data":[1e999,1,1,1,1,1]}]}',
        MalformedRequestError,
        "out of range",
    ),
    "both forms": (
        {"inputs": [tensor(parameters={"binary_data_size": 24})]},
        MalformedRequestError,
        "either data or .* both are given",
    ),
    "binary without a header": (
        {"inputs": [binary_tensor()]},
        MalformedRequestError,
        "Inference-Header-Content-Length",
    ),
    "shared memory": (
        {"inputs": [tensor(data=None, parameters={"shared_memory_region": "r"})]},
        MalformedRequestError,
        "shared memory is not offered",
    ),
    "long id": ({"id": "i" * 257, "inputs": [tensor()]}, LimitError, "id may have 256 bytes, found 257"),
    "long id in UTF-8": ({"id": "é" * 200, "inputs": [tensor()]}, LimitError, "256 bytes, found 400"),
    "id a number": ({"id": 1, "inputs": [tensor()]}, MalformedRequestError, "Expected `str"),
    "output twice": (
        {"inputs": [tensor()], "outputs": [{"name": "a"}, {"name": "a"}]},
        MalformedRequestError,
        "asked for twice",
    ),
    "classification": (
        {"inputs": [tensor()], "outputs": [{"name": "a", "parameters": {"classification": 3}}]},
        InputError,
        "classification extension is not offered",
    ),
    "binary_data not a boolean": (
        {"inputs": [tensor()], "outputs": [{"name": "a", "parameters": {"binary_data": "yes"}}]},
        MalformedRequestError,
        "Expected `bool",
    ),
}


@pytest.mark.parametrize(("message", "kind", "reason"), BAD_JSON.values(), ids=BAD_JSON)
def test_a_bad_request_is_refused_with_a_reason(message: Any, kind: type[GarrisonError], reason: str) -> None:
    with pytest.raises(kind, match=reason) as caught:
        read(message)
    assert str(SECRET_VALUE) not in str(caught.value)
    assert len(str(caught.value)) < 400


BAD_BINARY: dict[str, tuple[Any, bytes, str]] = {
    "size too large": (binary_tensor(28), bytes(28), "are 24 bytes, but binary_data_size is 28"),
    "size too small": (binary_tensor(20), bytes(24), "are 24 bytes, but binary_data_size is 20"),
    "negative size": (binary_tensor(-24), bytes(24), "binary_data_size is -24"),
    "huge size": (binary_tensor(2**62), bytes(24), "are 24 bytes"),
    "size of text": (binary_tensor("24"), bytes(24), "Expected `int"),
    "a byte missing": (binary_tensor(), bytes(23), "only 23 bytes of the body are left"),
    "a byte too many": (binary_tensor(), bytes(25), "has 25 bytes, .* add up to 24"),
    "no tail": (binary_tensor(), b"", "only 0 bytes"),
    "a tail that nobody names": (tensor(), bytes(3), "has 3 bytes, .* add up to 0"),
}


@pytest.mark.parametrize(("found", "tail", "reason"), BAD_BINARY.values(), ids=BAD_BINARY)
def test_a_binary_part_that_lies_is_refused(found: dict[str, Any], tail: bytes, reason: str) -> None:
    with pytest.raises(MalformedRequestError, match=reason):
        read({"inputs": [found]}, tail)


@pytest.mark.parametrize("json_bytes", [-2, 10**6, 2**63])
def test_a_header_length_beyond_the_body_is_refused(json_bytes: int) -> None:
    with pytest.raises(MalformedRequestError, match="must lie between 0 and"):
        decode_request(json.dumps({"inputs": [tensor()]}).encode(), json_bytes, IMAGE, DEFAULT_LIMITS)


def test_a_header_length_that_cuts_the_json_is_refused() -> None:
    body = json.dumps({"inputs": [tensor()]}).encode()
    for json_bytes in range(len(body)):
        with pytest.raises(MalformedRequestError):
            decode_request(body, json_bytes, IMAGE, DEFAULT_LIMITS)


def table(**data: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"age": [1.5], "codes": [1, 2, 3], "flag": [True]} | data
    kinds = {"age": ("FP64", [1, 1]), "codes": ("INT16", [1, 3]), "flag": ("BOOL", [1, 1])}
    return {
        "inputs": [
            {"name": n, "datatype": kinds[n][0], "shape": kinds[n][1], "data": value} for n, value in values.items()
        ]
    }


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"codes": [1, 2, 32768]}, InputError),
        ({"codes": [1, 2, -32769]}, InputError),
        ({"codes": [1, 2, 2**80]}, InputError),
        ({"codes": [1, 2, 3.0]}, MalformedRequestError),
        ({"codes": [1, 2, True]}, MalformedRequestError),
        ({"codes": [1, 2, None]}, MalformedRequestError),
        ({"flag": [1]}, MalformedRequestError),
        ({"flag": [None]}, MalformedRequestError),
        ({"age": [True]}, MalformedRequestError),
    ],
)
def test_every_input_keeps_its_own_kind_beside_others(data: dict[str, Any], kind: type[GarrisonError]) -> None:
    assert read(table(), facts=TABLE).rows == 1
    with pytest.raises(kind):
        read(table(**data), facts=TABLE)


def test_rows_must_agree_between_inputs() -> None:
    message = table()
    message["inputs"][1] |= {"shape": [2, 3], "data": [0] * 6}
    with pytest.raises(InputError, match="equally many rows: found 1, and 2 in 'codes'"):
        read(message, facts=TABLE)


def test_a_binary_boolean_is_zero_or_one() -> None:
    facts = model(spec("x", "BOOL", (4,)))
    message = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "BOOL", "parameters": {"binary_data_size": 4}}]}
    assert read(message, b"\0\1\1\0", facts).inputs["x"].tolist() == [[False, True, True, False]]
    with pytest.raises(InputError, match="a byte 0 or 1"):
        read(message, b"\0\1\2\0", facts)


def test_the_json_part_is_limited_and_the_binary_part_is_not_counted() -> None:
    limits = Limits(request_json_bytes=200)
    with pytest.raises(LimitError, match="the JSON part may have 200 bytes"):
        read({"inputs": [tensor(data=[0.123456789] * 60, shape=[10, 2, 3])]}, limits=limits)
    rows = 100
    found = read({"inputs": [binary_tensor(24 * rows, shape=[rows, 2, 3])]}, bytes(24 * rows), limits=limits)
    assert found.rows == rows


def test_nesting_is_limited_and_a_flat_list_is_not() -> None:
    nested, flat = {"inputs": [tensor(data=[[[1, 2, 3], [4, 5, 6]]])]}, {"inputs": [tensor()]}
    assert read(nested, limits=Limits(json_depth=3)).rows == 1
    with pytest.raises(LimitError, match="nested 2 deep; send a flat one"):
        read(nested, limits=Limits(json_depth=2))
    assert read(flat, limits=Limits(json_depth=1)).rows == 1


@given(data=st.binary(max_size=200), json_bytes=st.integers(-1, 250))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_but_a_typed_error(data: bytes, json_bytes: int) -> None:
    with pytest.raises((MalformedRequestError, InputError, LimitError)):
        decode_request(data, json_bytes, IMAGE, DEFAULT_LIMITS)


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), JSON_VALUES)
@settings(max_examples=300, deadline=None)
def test_no_member_raises_anything_but_a_typed_error(member: str, value: Any) -> None:
    try:
        request = read({"inputs": [tensor(**{member: value})]})
    except (MalformedRequestError, InputError, LimitError):
        return
    assert request.inputs["x"].shape == (request.rows, 2, 3)


# --- the client trusts a server no more ------------------------------------------------------------------------------


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
