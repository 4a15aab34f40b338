"""A caller's trace goes on here; strangers cannot have everything recorded; a span holds no input and no caller."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision
from tests.models import images
from tests.serving import Bundles, serve

from garrison.config import OperationsConfig
from garrison.errors import ConfigError
from garrison.server.operations import open_tracing
from garrison.server.tracing import Limited, Tracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_spans_of_questions(bundles: Bundles, tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    with serve(bundles, "mlp-1", state=tmp_path) as served:
        assert served.assembly.rsgi.tracing is None, "off unless asked for"
        tracing = served.assembly.rsgi.tracing = Tracing("", 0.0, spans)
        assert served.infer(traceparent=PARENT).status_code == 200
        assert served.infer(images(1) * 9, traceparent=PARENT).status_code == 400
        for header in ("nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", "x" * 5_000):
            assert served.infer(traceparent=header).status_code == 200
        tracing._provider.force_flush()
        found = spans.get_finished_spans()
    assert len(found) == 2
    first = found[0]
    assert f"{first.context.trace_id:032x}" == PARENT.split("-")[1]
    assert first.parent is not None
    assert first.parent.is_remote
    assert set(first.attributes or {}) == {
        "garrison.model",
        "garrison.version",
        "http.request.method",
        "http.response.status_code",
    }
    assert (found[1].attributes or {})["http.response.status_code"] == 400


def taken(limited: Limited) -> bool:
    return limited.should_sample().decision is Decision.RECORD_AND_SAMPLE


def test_strangers_cannot_have_everything_recorded() -> None:
    now = [0.0]
    limited = Limited(10.0, lambda: now[0])
    assert sum(taken(limited) for _ in range(100)) == 10
    now[0] += 0.5
    assert sum(taken(limited) for _ in range(100)) == 5


def test_a_share_of_the_others(bundles: Bundles, tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    with serve(bundles, "mlp-1", state=tmp_path) as served:
        served.assembly.rsgi.tracing = Tracing("", 1.0, spans)
        served.infer()
        served.infer(traceparent=PARENT[:-1] + "0")
        served.assembly.rsgi.tracing._provider.force_flush()
    assert len(spans.get_finished_spans()) == 1, "who says no is not recorded"


def test_an_address_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="collector"):
        open_tracing(OperationsConfig(traces="localhost:4318"))
    assert open_tracing(OperationsConfig()) is None


def test_spans_of_calls(bundles: Bundles, tmp_path: Path) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    spans = InMemorySpanExporter()
    with serve(bundles, "mlp-1", state=tmp_path, grpc_port=0) as served:
        beside = served.assembly.grpc
        assert beside is not None
        tracing = beside.tracing = Tracing("", 0.0, spans)
        client, asked = triton.InferenceServerClient(beside.address), []
        for rows in (images(3), images(1) * 9):
            asked.append(triton.InferInput("image", list(rows.shape), "FP32"))
            asked[-1].set_data_from_numpy(rows)
        client.infer("mlp", asked[:1])
        client.infer("mlp", asked[:1], headers={"traceparent": PARENT})
        with pytest.raises(triton.InferenceServerException):
            client.infer("mlp", asked[1:], headers={"traceparent": PARENT})
        client.close()
        tracing._provider.force_flush()
        found = spans.get_finished_spans()
    assert [f"{span.context.trace_id:032x}" for span in found] == [PARENT.split("-")[1]] * 2
    good, bad = (dict(span.attributes or {}) for span in found)
    assert good == {
        "garrison.model": "mlp",
        "garrison.version": 1,
        "rpc.system": "grpc",
        "rpc.grpc.status_code": 0,
    }
    assert bad["error.type"] == "request.input"
