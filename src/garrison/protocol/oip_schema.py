"""What Open Inference Protocol messages look like in JSON, for `garrison.protocol.oip`. Unknown members are passed over."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

Data = TypeVar("Data")


class TensorParameters(msgspec.Struct):
    binary_data_size: int | None = None
    shared_memory_region: str | None = None


class InputTensor(msgspec.Struct, Generic[Data]):
    name: str
    shape: list[int]
    datatype: str
    parameters: TensorParameters | None = None
    data: Data | None = None


class OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: int = 0


class OutputTensor(msgspec.Struct):
    name: str
    parameters: OutputParameters | None = None


class RequestParameters(msgspec.Struct):
    binary_data_output: bool = False


class Message(msgspec.Struct, Generic[Data]):
    inputs: list[InputTensor[Data]]
    id: str | None = None
    outputs: list[OutputTensor] | None = None
    parameters: RequestParameters | None = None


class BinarySize(msgspec.Struct):
    binary_data_size: int


class AnswerTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: BinarySize | None = None
    data: list[Any] | None = None


class Answer(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[AnswerTensor]
    id: str = ""
    parameters: dict[str, str] | None = None


def json_types(dtype: np.dtype[Any], *, missing: bool) -> frozenset[type]:
    """What may stand for a value in JSON. Only where a value may be missing, null stands for it (JSON has no NaN)."""
    match dtype.kind:
        case "b":
            return frozenset({bool})
        case "f":
            return frozenset({float, type(None)} if missing else {float})
        case _:
            return frozenset({int})


def data_type(elements: frozenset[type], depth: int) -> Any:
    """A list of such elements, flat or nested up to `depth` lists: the protocol allows both."""
    ordered = sorted(elements, key=lambda kind: kind.__name__)
    element: Any = ordered[0]
    for kind in ordered[1:]:
        element = element | kind
    nested: Any = list[element]
    for _ in range(depth - 1):
        nested = list[element | nested]
    return nested
