"""What who runs a server sees of it, beside its log: metrics, and a webhook that is told of drift alarms.

One for a server, however many front workers it has: it belongs to the process that started the enclaves.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from garrison.config import OperationsConfig
from garrison.enclave.host import Enclave
from garrison.server.drift_watch import DriftWatch
from garrison.server.operator import drifting, watching
from garrison.server.tally import Counted
from garrison.server.webhook import Webhook, read_secret

logger = logging.getLogger(__name__)

Source = Callable[[], Iterable[Counted]]


class Operations:
    """See the module's docstring.

    Args:
        config: what is wanted.
        enclaves: started.
        source: what the server's processes have counted.

    Raises:
        ConfigError: a setting that cannot be used.
        MissingExtraError: metrics are wanted, and their library is not installed.
    """

    def __init__(self, config: OperationsConfig, enclaves: Sequence[Enclave], source: Source) -> None:
        self.watch: DriftWatch | None = None
        self._metrics: Any = None
        webhook = open_webhook(config)
        looks = any(drifting(enclaves))
        if webhook is not None and not looks:
            logger.warning("no model here looks for drift: the webhook will be told nothing")
        if webhook is not None or (config.metrics and (looks or any(watching(enclaves)))):
            self.watch = DriftWatch(enclaves, webhook)
        if config.metrics:
            try:
                module = importlib.import_module("garrison.server.metrics")
                self._metrics = module.MetricsServer(config.metrics, module.Metrics(source, enclaves, self.watch))
            except BaseException:
                self.close()
                raise

    @property
    def metrics_port(self) -> int:
        """Where metrics are offered; 0 for nowhere."""
        return 0 if self._metrics is None else int(self._metrics.port)

    def close(self) -> None:
        """While the enclaves still answer."""
        if self._metrics is not None:
            self._metrics.close()
        if self.watch is not None:
            self.watch.close()


def open_webhook(config: OperationsConfig) -> Webhook | None:
    """The webhook of these settings, if there is one.

    Raises:
        ConfigError: its address or its secret cannot be used.
    """
    if not config.webhook:
        return None
    ca = Path(config.webhook_ca) if config.webhook_ca else None
    return Webhook(config.webhook, read_secret(Path(config.webhook_secret)), ca)


def open_tracing(config: OperationsConfig) -> Any:
    """Traces, where they are wanted; else None.

    Raises:
        ConfigError: the collector's address cannot be used.
        MissingExtraError: OpenTelemetry is not installed.
    """
    if not config.traces:
        return None
    return importlib.import_module("garrison.server.tracing").Tracing(config.traces, config.traces_share)
