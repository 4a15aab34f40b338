"""What a client demands of an answer's tensors, against a server that names them itself."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.client.outputs import prediction_of
from garrison.errors import ServiceError
from garrison.protocol.oip_client import InferAnswer
from garrison.protocol.oip_metadata import ModelExtras, ModelMetadata, TensorMetadata
from garrison.types import Array, Task


def metadata(*shape: int) -> ModelMetadata:
    extras = ModelExtras(
        version="1",
        task=Task.CLASSIFICATION,
        labels=("a", "b"),
        ranges={},
        manifest_digest="",
        guard_digest="",
        budget_rows=0,
        budget_period="day",
    )
    output = TensorMetadata("probabilities", "FP32", (-1, *shape))
    return ModelMetadata(name="m", inputs=(), outputs=(output,), garrison=extras)


def check(values: Array) -> None:
    answer = InferAnswer("m", "1", {"probabilities": values}, ())
    prediction_of(answer, len(values), metadata(*values.shape[1:]), b"", proved=False)


def test_probabilities_of_another_rank_than_a_list_a_row_are_refused() -> None:
    check(np.full((3, 2), 0.5, np.float32))
    for shape in ((3,), (3, 2, 1)):
        with pytest.raises(ServiceError, match="a list of them a row"):
            check(np.full(shape, 0.5, np.float32))
