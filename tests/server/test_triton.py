"""An unmodified `tritonclient[http]` works, with binary tensors and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from tests.models import CLASSES, images
from tests.serving import Bundles, Served

from garrison.enclave.service import Service

httpclient = pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def triton(served: Served) -> Iterator[Any]:
    client = httpclient.InferenceServerClient(urlsplit(served.url).netloc)
    yield client
    client.close()


def infer_input(x: np.ndarray[Any, Any], *, binary: bool) -> Any:
    found = httpclient.InferInput("image", list(x.shape), "FP32")
    found.set_data_from_numpy(x, binary_data=binary)
    return found


def test_health_and_metadata(triton: Any) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("mlp")
    assert triton.is_model_ready("mlp", "1")
    assert not triton.is_model_ready("mlp", "9")
    assert not triton.is_model_ready("nope")
    assert triton.get_server_metadata()["name"] == "garrison"
    metadata = triton.get_model_metadata("mlp", "1")
    assert metadata["inputs"][0]["shape"] == [-1, 1, 8, 8]
    assert [entry["name"] for entry in triton.get_model_repository_index()] == ["mlp", "mlp", "plain"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_infer(triton: Any, bundles: Bundles, binary_in: bool, binary_out: bool | None) -> None:
    x = images(3)
    sealed = bundles.sealed["mlp-1"]
    expected = Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]
    outputs = None
    if binary_out is not None:
        outputs = [httpclient.InferRequestedOutput("probabilities", binary_data=binary_out)]
    result = triton.infer(
        "mlp",
        [infer_input(x, binary=binary_in)],
        model_version="1",
        outputs=outputs,
        request_id="mine",
        priority=1,
        timeout=1000,
    )
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
    assert result.as_numpy("probabilities").shape == (3, CLASSES)
    assert result.get_response()["id"] == "mine"


def test_asynchronous_requests(triton: Any) -> None:
    waiting = [triton.async_infer("plain", [infer_input(images(k), binary=True)]) for k in range(1, 9)]
    assert [request.get_result().as_numpy("classes").shape for request in waiting] == [(k, 1) for k in range(1, 9)]


@pytest.mark.parametrize(
    ("model", "x", "status", "says"),
    [
        ("nope", images(1), "404", "unknown model"),
        ("mlp", images(1)[:, :, :4], "400", "expected shape"),
        ("mlp", images(1) + 5, "400", "outside the range"),
    ],
)
def test_errors_are_told(triton: Any, model: str, x: np.ndarray[Any, Any], status: str, says: str) -> None:
    with pytest.raises(httpclient.InferenceServerException, match=says) as caught:
        triton.infer(model, [infer_input(x, binary=True)])
    assert caught.value.status() == status


def test_compressed_requests_are_refused_with_a_reason(triton: Any) -> None:
    with pytest.raises(httpclient.InferenceServerException, match="compressed"):
        triton.infer("mlp", [infer_input(images(1), binary=True)], request_compression_algorithm="gzip")
