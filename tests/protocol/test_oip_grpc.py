"""Requests and answers over gRPC, against messages that the protocol-buffers library reads and writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from garrison.errors import GarrisonError, InputError, LimitError, MalformedRequestError, RequestError
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol.oip import ALL_JSON, GRPC, InferRequest
from garrison.protocol.oip_client import encode_request
from garrison.protocol.oip_grpc import decode_any, decode_message, encode_message, model_of
from garrison.types import Array, InputFacts, ModelFacts, Released, Task

pb = pytest.importorskip("tritonclient.grpc.service_pb2")

NAMED = ("mlp", "1")
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
DTYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"} | {
    name: name.lower() for name in CONTENTS if "INT" in name
}


def facts(datatype: str = "FP32", shape: tuple[int, ...] = (2, 3)) -> ModelFacts:
    dtype, n = np.dtype(DTYPES[datatype]), int(np.prod(shape))
    low = np.zeros(n, dtype) if dtype.kind == "b" else np.full(n, -100 if dtype.kind != "u" else 0, dtype)
    high = np.ones(n, dtype) if dtype.kind == "b" else np.full(n, 100, dtype)
    spec = InputFacts("image", dtype, shape, low, high, np.zeros(n, np.bool_))
    return ModelFacts(Task.CLASSIFICATION, (spec,), ("a", "b"), 2, np.dtype(np.float32), False, False)


def message(x: Array, datatype: str = "FP32", *, raw: bool = True, **more: Any) -> Any:
    found = pb.ModelInferRequest(**({"model_name": "mlp"} | more))
    tensor = found.inputs.add(name="image", datatype=datatype)
    tensor.shape.extend(x.shape)
    if raw:
        found.raw_input_contents.append(x.tobytes())
    else:
        getattr(tensor.contents, CONTENTS[datatype]).extend(x.ravel().tolist())
    return found


def read(found: Any, of: ModelFacts | None = None, limits: Limits = DEFAULT_LIMITS) -> InferRequest:
    return decode_message(found.SerializeToString(), of or facts(), *NAMED, limits)


@pytest.mark.parametrize("datatype", sorted(DTYPES))
@pytest.mark.parametrize("raw", [True, False])
def test_every_datatype(datatype: str, raw: bool) -> None:
    rng = np.random.default_rng(1)
    dtype = np.dtype(DTYPES[datatype])
    x = rng.integers(0, 2 if datatype == "BOOL" else 100, (3, 2, 3)).astype(dtype)
    if dtype.kind in "if":
        x = -x
    if datatype == "FP16" and not raw:
        pytest.skip("the protocol has no typed contents for it")
    request = read(message(x, datatype, raw=raw, id="7"), facts(datatype))
    assert (request.id, request.rows, request.grpc, request.binary_default) == ("7", 3, True, raw)
    found = request.inputs["image"]
    assert found.dtype == dtype
    assert found.flags.c_contiguous
    assert found.flags.aligned
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("raw", [True, False])
def test_answers_are_as_the_library_writes_them(raw: bool) -> None:
    request = read(message(np.zeros((2, 2, 3), np.float32), raw=raw, id="x"))
    outputs: dict[str, Array] = {
        "probabilities": np.array([[0.25, 0.75], [1e-9, 1]], np.float32),
        "classes": np.array([[1], [-3]], np.int64),
        "marks": np.array([[True], [False]]),
    }
    data = encode_message(request, Released(outputs, np.array([False, True])), *NAMED)
    answer = pb.ModelInferResponse.FromString(data)
    assert answer.SerializeToString(deterministic=True) == data, "who kept only the message can check the proof"
    assert (answer.model_name, answer.model_version, answer.id) == ("mlp", "1", "x")
    assert answer.parameters["garrison_uncertain_rows"].string_param == "1"
    assert [list(tensor.shape) for tensor in answer.outputs] == [[2, 2], [2, 1], [2, 1]]
    if raw:
        assert list(answer.raw_output_contents) == [x.tobytes() for x in outputs.values()]
    else:
        np.testing.assert_array_equal(answer.outputs[0].contents.fp32_contents, outputs["probabilities"].ravel())
        assert list(answer.outputs[1].contents.int64_contents) == [1, -3]
        assert list(answer.outputs[2].contents.bool_contents) == [True, False]


def test_outputs_that_are_asked_for_come_in_their_order() -> None:
    asked = message(np.zeros((1, 2, 3), np.float32))
    for name in ("classes", "probabilities"):
        asked.outputs.add(name=name)
    outputs: dict[str, Array] = {"probabilities": np.zeros((1, 2), np.float32), "classes": np.zeros((1, 1), np.int64)}
    answer = pb.ModelInferResponse.FromString(
        encode_message(read(asked), Released(outputs, np.zeros(1, np.bool_)), *NAMED)
    )
    assert [tensor.name for tensor in answer.outputs] == ["classes", "probabilities"]


X = np.zeros((2, 2, 3), np.float32)


def twice(found: Any) -> Any:
    found.inputs.add().CopyFrom(found.inputs[0])
    found.raw_input_contents.append(X.tobytes())
    return found


def changed(**fields: Any) -> Any:
    found = message(X)
    for name, value in fields.items():
        setattr(found.inputs[0], name, value)
    return found


def shaped(*shape: int) -> Any:
    found = message(X)
    del found.inputs[0].shape[:]
    found.inputs[0].shape.extend(shape)
    return found


def with_parameter(name: str) -> Any:
    found = message(X)
    found.inputs[0].parameters[name].string_param = "region"
    return found


def classified() -> Any:
    found = message(X)
    found.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    return found


def both() -> Any:
    found = message(X)
    found.inputs[0].contents.fp32_contents.extend([0.0] * 12)
    return found


def neither() -> Any:
    found = message(X)
    del found.raw_input_contents[:]
    return found


def short() -> Any:
    found = message(X)
    found.raw_input_contents[0] = X.tobytes()[:-1]
    return found


def of_another_type() -> Any:
    found = message(X, raw=False)
    found.inputs[0].contents.fp64_contents.append(1.0)
    return found


@pytest.mark.parametrize(
    ("found", "kind", "words"),
    [
        (message(X, model_name="other"), InputError, "this is model 'mlp'"),
        (message(X, model_version="2"), InputError, "version '1'"),
        (twice(message(X)), MalformedRequestError, "given twice"),
        (changed(name="other"), InputError, "unknown input 'other'"),
        (changed(datatype="FP64"), InputError, "expected datatype FP32"),
        (shaped(2, 6), InputError, "expected shape"),
        (shaped(0, 2, 3), InputError, "at least 1 row"),
        (shaped(-1, 2, 3), InputError, "at least 1 row"),
        (shaped(2**40, 2, 3), LimitError, "split it"),
        (shaped(3, 2, 3), MalformedRequestError, "are 72 bytes"),
        (with_parameter("shared_memory_region"), InputError, "not offered"),
        (classified(), InputError, "not offered"),
        (both(), MalformedRequestError, "and in raw_input_contents"),
        (neither(), MalformedRequestError, "values in contents or in raw_input_contents"),
        (short(), MalformedRequestError, "has 47"),
        (of_another_type(), InputError, "another type"),
        (message(X[:, :1], raw=False), InputError, "expected shape"),
        (pb.ModelInferRequest(model_name="mlp"), InputError, "also needs"),
        (message(X, id="x" * 300), LimitError, "id"),
    ],
)
def test_what_is_refused(found: Any, kind: type[GarrisonError], words: str) -> None:
    with pytest.raises(kind, match=words):
        read(found)


def test_whole_numbers_out_of_range() -> None:
    found = message(np.full((1, 2, 3), 200), "INT8", raw=False)
    with pytest.raises(InputError, match="outside the range of INT8"):
        read(found, facts("INT8"))
    wrong = message(np.zeros((1, 2, 3), np.bool_), "BOOL", raw=False)
    data = wrong.SerializeToString().replace(b"\x0a\x06" + b"\0" * 6, b"\x0a\x06" + b"\2" * 6)
    with pytest.raises(InputError, match="a BOOL is 0 or 1"):
        decode_message(data, facts("BOOL"), *NAMED, DEFAULT_LIMITS)


def test_numbers_one_a_field_are_read_too() -> None:
    tensor = b"\x0a\x05image\x12\x04FP32" + b"\x18\x01\x18\x02\x18\x03" + b"\x2a\x1e" + (b"\x35" + b"\0\0\x80\x3f") * 6
    data = b"\x0a\x03mlp\x2a" + bytes([len(tensor)]) + tensor
    assert read_bytes(data).inputs["image"].tolist() == [[[1.0] * 3] * 2]


def read_bytes(data: bytes) -> InferRequest:
    return decode_message(data, facts(), *NAMED, DEFAULT_LIMITS)


def test_the_server_reads_the_name_alone() -> None:
    data = message(X, model_version="4").SerializeToString()
    assert model_of(data, DEFAULT_LIMITS) == ("mlp", "4")
    assert model_of(data[:8] + b"\x2a\x02\xff\xff", DEFAULT_LIMITS) == ("mlp", "4"), "what follows is not looked at"
    with pytest.raises(LimitError):
        model_of(message(X, model_name="x" * 300).SerializeToString(), DEFAULT_LIMITS)
    with pytest.raises(MalformedRequestError):
        model_of(b"\x0a\x7fmlp", DEFAULT_LIMITS)


def test_which_form_it_is_is_said_beside_it() -> None:
    body, length = encode_request({"image": X})
    assert not decode_any(body, length, facts(), NAMED, DEFAULT_LIMITS).grpc
    assert decode_any(message(X).SerializeToString(), GRPC, facts(), NAMED, DEFAULT_LIMITS).grpc
    with pytest.raises(MalformedRequestError):
        decode_any(message(X).SerializeToString(), ALL_JSON, facts(), NAMED, DEFAULT_LIMITS)


@pytest.mark.parametrize("raw", [True, False])
def test_changed_bytes_are_read_or_refused(raw: bool) -> None:
    """No byte that a stranger changes does more than change the numbers, or is refused with a typed error."""
    data = bytearray(message(np.ones((2, 2, 3), np.float32), raw=raw, id="abc").SerializeToString())
    rng = np.random.default_rng(5)
    refused = 0
    for _ in range(600):
        mine = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            mine[int(rng.integers(len(mine)))] = int(rng.integers(256))
        mine = mine[: int(rng.integers(1, len(mine) + 1))] if rng.random() < 0.3 else mine
        try:
            found = read_bytes(bytes(mine))
        except RequestError:
            refused += 1
            continue
        assert found.inputs["image"].shape == (found.rows, 2, 3)
    assert refused > 200


def test_a_shape_is_short() -> None:
    found = message(np.zeros((1, 2, 3), np.float32))
    found.inputs[0].shape.extend([1] * DEFAULT_LIMITS.string_bytes)
    with pytest.raises(LimitError, match="shape"):
        read(found)
