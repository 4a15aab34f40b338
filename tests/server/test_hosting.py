"""What a request may cost is known before it is read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.models import images
from tests.serving import Served

from garrison.protocol.oip import GRPC
from garrison.protocol.oip_client import encode_request


@pytest.mark.parametrize("rows", [1, 2, 37, 500])
def test_the_cost_of_a_binary_request_is_its_rows(served: Served, rows: int) -> None:
    model = served.assembly.hosting.default("mlp")
    body, json_bytes = encode_request({"image": images(rows)})
    assert model.cost(len(body), json_bytes) == rows


@pytest.mark.parametrize("rows", [1, 37, 500])
def test_the_cost_of_a_json_request_is_not_underestimated(served: Served, rows: int) -> None:
    model = served.assembly.hosting.default("mlp")
    body, json_bytes = encode_request({"image": images(rows)}, binary=False)
    assert rows <= model.cost(len(body), json_bytes) <= 6 * rows


def test_a_header_that_calls_json_data_a_head_does_not_make_it_cheap(served: Served) -> None:
    """Tensors may stand in the JSON part of a binary request too: 500 rows must not pass for one."""
    model = served.assembly.hosting.default("mlp")
    body, _ = encode_request({"image": images(500)}, binary=False)
    assert model.cost(len(body), len(body)) >= 490


def test_the_cost_of_a_message_of_grpc_is_not_underestimated(served: Served) -> None:
    """A whole number takes one byte there and up to eight as a tensor; a decimal one takes what it takes anywhere."""
    floats = served.assembly.hosting.default("mlp")
    whole = replace(floats, row_bytes=8 * 10, least_row_bytes=10)
    rows, message = 100, 100 * 10  # 100 rows of 10 numbers, each one byte
    assert whole.cost(message, GRPC) >= rows
    assert whole.cost(message, 0) < rows / 7, "the control: as bytes of tensors"
    assert floats.least_row_bytes == floats.row_bytes
    assert floats.cost(37 * floats.row_bytes, GRPC) == 37
    assert floats.cost(0, GRPC) == 1.0


def test_nothing_costs_nothing(served: Served) -> None:
    model = served.assembly.hosting.default("mlp")
    assert model.cost(0, -1) == 1.0
    assert model.cost(10, 10) == 1.0


def test_models_and_versions_are_ordered(served: Served) -> None:
    hosting = served.assembly.hosting
    assert [(model.name, model.version) for model in hosting] == [("mlp", 1), ("mlp", 2), ("plain", 1)]
    assert hosting.versions("mlp") == (1, 2)
    assert hosting.default("mlp").version == 2
