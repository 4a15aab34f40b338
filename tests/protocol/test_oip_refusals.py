"""What does not fit is refused, with a type and a reason, and nothing malformed gets through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.oip_messages import IMAGE, SECRET_VALUE, TABLE, binary_tensor, model, read, spec, tensor

from garrison.errors import GarrisonError, InputError, LimitError, MalformedRequestError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol.oip import decode_request

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
