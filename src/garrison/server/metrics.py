"""What Prometheus reads: `/metrics` on an address of its own, for who runs the server and never for its clients.

Counting is not done here (`garrison.server.tally`); a scrape puts the numbers of all processes into words. So counters are right with several front workers, and go on where one
of them dies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from garrison.bundle.manifest import parse_manifest
from garrison.enclave.host import Enclave
from garrison.errors import ConfigError, MissingExtraError
from garrison.server.drift_watch import DriftWatch
from garrison.server.tally import ROWS, SECONDS, Counted, ModelCount, added

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtraError("prometheus-client", "metrics") from error

Source = Callable[[], Iterable[Counted]]
_MODEL = ("model", "version")
_SECONDS = 5.0


class Metrics(Collector):
    """See the module's docstring.

    Args:
        source: what the processes have counted.
        enclaves: whose readiness and restarts are told; none where front workers run the models.
        watch: what was found of drift and of alarms; None where nobody looks.
    """

    def __init__(self, source: Source, enclaves: Sequence[Enclave], watch: DriftWatch | None) -> None:
        self._source, self._watch = source, watch
        self._enclaves = [(parse_manifest(e.card.manifest_json), e) for e in enclaves]

    def collect(self) -> Iterator[Any]:
        counted = added(self._source())
        yield from _of_requests(counted.models)
        yield from _of_batches(counted.models)
        errors = CounterMetricFamily(
            "garrison_errors", "Requests refused before they reached a model.", labels=["code"]
        )
        for code, count in sorted(counted.errors.items()):
            errors.add_metric([code], count)
        yield errors
        yield GaugeMetricFamily("garrison_in_flight", "Requests that are being answered.", counted.in_flight)
        yield from self._of_enclaves()
        if self._watch is not None:
            yield from _of_drift(self._watch)
            yield from _of_alarms(self._watch)

    def _of_enclaves(self) -> Iterator[Any]:
        ready = GaugeMetricFamily("garrison_ready", "Whether the model's enclave would answer now.", labels=_MODEL)
        restarts = CounterMetricFamily(
            "garrison_enclave_restarts", "Enclaves that took a dead one's place.", labels=_MODEL
        )
        for manifest, enclave in self._enclaves:
            labels = [manifest.name, str(manifest.version)]
            ready.add_metric(labels, float(enclave.ready))
            restarts.add_metric(labels, getattr(enclave, "restarts", 0))
        yield ready
        yield restarts


def _of_requests(models: Sequence[ModelCount]) -> Iterator[Any]:
    requests = CounterMetricFamily(
        "garrison_requests", "Requests by true code; sealed ones by none.", labels=(*_MODEL, "code")
    )
    rows = CounterMetricFamily("garrison_rows", "Rows charged.", labels=_MODEL)
    replaced = CounterMetricFamily("garrison_replaced_rows", "Rows whose answer a defense changed.", labels=_MODEL)
    shadow = CounterMetricFamily(
        "garrison_shadow_rows", "Rows that a defense in shadow would have changed.", labels=(*_MODEL, "defense")
    )
    dismissed = CounterMetricFamily("garrison_dismissed_requests", "Requests that waited for too long.", labels=_MODEL)
    for model in models:
        labels = [model.name, str(model.version)]
        for code, count in sorted(model.codes.items()):
            requests.add_metric([*labels, code], count)
        for defense, count in sorted(model.shadow.items()):
            shadow.add_metric([*labels, defense], count)
        rows.add_metric(labels, model.rows)
        replaced.add_metric(labels, model.replaced)
        dismissed.add_metric(labels, model.dismissed)
    yield from (requests, rows, replaced, shadow, dismissed)


def _of_batches(models: Sequence[ModelCount]) -> Iterator[Any]:
    sizes = HistogramMetricFamily("garrison_batch_rows", "Rows of a batch.", labels=_MODEL)
    seconds = HistogramMetricFamily("garrison_request_seconds", "From the queue to the answer.", labels=_MODEL)
    queued = GaugeMetricFamily("garrison_queued_requests", "Requests that wait for the model.", labels=_MODEL)
    for model in models:
        labels = [model.name, str(model.version)]
        sizes.add_metric(labels, _buckets(ROWS, model.sizes), model.size_sum)
        seconds.add_metric(labels, _buckets(SECONDS, model.seconds), model.seconds_sum)
        queued.add_metric(labels, model.queued)
    yield from (sizes, seconds, queued)


def _buckets(ends: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """As Prometheus has them: each counts all below its end."""
    found, total = [], 0
    for end, count in zip([*map(str, map(float, ends)), "+Inf"], counts, strict=True):
        total += count
        found.append((end, float(total)))
    return found


def _of_drift(watch: DriftWatch) -> Iterator[Any]:
    kinds = (*_MODEL, "kind")
    value = GaugeMetricFamily("garrison_drift", "How far callers have moved from the reference.", labels=kinds)
    threshold = GaugeMetricFamily("garrison_drift_threshold", "Where an alarm rings.", labels=kinds)
    ringing = GaugeMetricFamily("garrison_drift_ringing", "Whether it rings.", labels=kinds)
    rows = CounterMetricFamily("garrison_drift_rows", "Rows that were compared.", labels=_MODEL)
    for (name, version), report in sorted(watch.latest.items()):
        labels = [name, str(version)]
        rows.add_metric(labels, report.rows)
        rings = {alarm.kind for alarm in report.ringing}
        for kind, now in report.values.items():
            value.add_metric([*labels, kind], now)
            threshold.add_metric([*labels, kind], report.thresholds[kind])
            ringing.add_metric([*labels, kind], float(kind in rings))
    yield from (value, threshold, ringing, rows)


def _of_alarms(watch: DriftWatch) -> Iterator[Any]:
    alarms = GaugeMetricFamily(
        "garrison_alarmed_callers", "Callers against whom a detector rings.", labels=(*_MODEL, "detector")
    )
    for (name, version), counts in sorted(watch.alarmed.items()):
        for detector, count in sorted(counts.items()):
            alarms.add_metric([name, str(version), detector], count)
    events = CounterMetricFamily("garrison_webhook_events", "Events told to the webhook.", labels=["state"])
    if watch.webhook is not None:
        events.add_metric(["sent"], watch.webhook.sent)
        events.add_metric(["dropped"], watch.webhook.dropped)
    yield from (alarms, events)


class MetricsServer:
    """Answers scrapes, on threads of its own.

    Args:
        address: HOST:PORT.
        metrics: what is told.

    Raises:
        ConfigError: nothing can listen there.
    """

    def __init__(self, address: str, metrics: Metrics) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(metrics)
        host, _, port = address.rpartition(":")
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as error:
            raise ConfigError(f"metrics cannot be offered at {address}: {error.strerror or error}") from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_SECONDS)
