"""OpenTelemetry traces: one span a question, sent to a collector by OTLP over HTTP. Off unless asked for.

A caller's `traceparent` (W3C Trace Context) is honoured: its trace goes on here. But callers are strangers: what they want recorded is, up to `MOST_A_SECOND` spans a second; of questions
that come without one, a share. A span holds the model, the status of HTTP or gRPC and an error's code; no caller, no input, no answer, and nothing of `tracestate` or `baggage`.

Not covered: who can write to the collector can read all spans.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from garrison import __version__
from garrison.errors import ConfigError, MissingExtraError
from garrison.protocol.http_status import INTERNAL
from garrison.server.hosting import Model
from garrison.server.http_errors import Answer

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
    from opentelemetry.sdk.trace.sampling import (
        Decision,
        ParentBased,
        Sampler,
        SamplingResult,
        TraceIdRatioBased,
    )
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingExtraError("opentelemetry-sdk", "otel") from error

MOST_A_SECOND = 10.0
HEADER = "traceparent"
_MOST_HEADER = 256
_PATH = "/v1/traces"


class Limited(Sampler):
    """Takes so many spans a second, and a second's worth at once.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, a_second: float = MOST_A_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        self._a_second = self._left = a_second
        self._clock = clock
        self._at = clock()

    def should_sample(
        self,
        parent_context: Any = None,  # noqa: ARG002  the sampler's own signature
        trace_id: int = 0,  # noqa: ARG002
        name: str = "",  # noqa: ARG002
        kind: Any = None,  # noqa: ARG002
        attributes: Any = None,
        links: Any = None,  # noqa: ARG002
        trace_state: Any = None,  # noqa: ARG002
    ) -> SamplingResult:
        now = self._clock()
        self._left = min(self._a_second, self._left + (now - self._at) * self._a_second)
        self._at = now
        if self._left < 1:
            return SamplingResult(Decision.DROP)
        self._left -= 1
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes)

    def get_description(self) -> str:
        return f"garrison, at most {self._a_second:g} a second"


class Tracing:
    """Makes spans. To be used on one event loop.

    Args:
        url: of the collector, without the path; "" where `exporter` is given.
        share: of questions without a parent, 0 to 1.
        exporter: where spans go; None for the collector.

    Raises:
        ConfigError: the address is no URL.
    """

    def __init__(self, url: str, share: float, exporter: SpanExporter | None = None) -> None:
        if exporter is None and not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"operations.traces must be the URL of a collector, such as http://127.0.0.1:4318, found {url!r}"
            )
        sampler = ParentBased(TraceIdRatioBased(share), remote_parent_sampled=Limited())
        resource = Resource.create({"service.name": "garrison", "service.version": __version__})
        self._provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        out = OTLPSpanExporter(endpoint=url.rstrip("/") + _PATH) if exporter is None else exporter
        self._provider.add_span_processor(BatchSpanProcessor(out))
        self._tracer = self._provider.get_tracer("garrison", __version__)
        self._propagator = TraceContextTextMapPropagator()

    async def around(self, parents: Sequence[str], model: Model, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Do the work of an HTTP request within a span.

        Args:
            parents: the values of the question's headers `traceparent`.
        """
        with self._span(parents, model, {"http.request.method": "POST"}) as span:
            answer = await work
            span.set_attribute("http.response.status_code", answer.status)
            return answer

    async def around_call(self, parents: Sequence[str], model: Model, work: Coroutine[Any, Any, bytes]) -> bytes:
        """Do the work of a gRPC call within a span.

        Args:
            parents: as in `around`, of the call's metadata.
        """
        with self._span(parents, model, {"rpc.system": "grpc"}) as span:
            found = await work
            span.set_attribute("rpc.grpc.status_code", 0)
            return found

    @contextmanager
    def _span(self, parents: Sequence[str], model: Model, attributes: dict[str, str]) -> Iterator[trace.Span]:
        context = None
        if len(parents) == 1 and len(parents[0]) <= _MOST_HEADER:
            context = self._propagator.extract({HEADER: parents[0]})
        told: dict[str, str | int] = {"garrison.model": model.name, "garrison.version": model.version, **attributes}
        kind = trace.SpanKind.SERVER
        span = self._tracer.start_span(f"infer {model.name}", context, kind, told, record_exception=False)
        try:
            yield span
        except Exception as error:
            span.set_attribute("error.type", getattr(error, "code", INTERNAL))
            raise
        finally:
            span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
