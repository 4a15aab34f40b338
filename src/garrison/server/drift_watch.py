"""Looks now and then at what the models' guards have found: of drift, to tell a webhook of new alarms; of that and of alarmed callers, for metrics.

A thread of its own; the batches of a model wait for a look no longer than for one of themselves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from garrison.enclave.host import DriftAlarm, Drifting, DriftReport, Enclave, Watching
from garrison.errors import GarrisonError
from garrison.server.operator import drifting, watching
from garrison.server.webhook import Webhook

logger = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
ALARM, NAMED, OVER = "drift.alarm", "drift.named", "drift.over"
_CLOSE_SECONDS = 5.0
Seen = dict[tuple[int, float], DriftAlarm]


class DriftWatch:
    """See the module's docstring.

    Args:
        enclaves: some of whose models look for drift, or watch their callers.
        webhook: told of alarms that ring, whose callers come to be known, or that are over; None for nobody.
        seconds: between two looks.

    Attributes:
        latest: by model and version, the last report.
        alarmed: by model and version, callers against whom each detector rings.
        webhook: as given.
    """

    def __init__(self, enclaves: Sequence[Enclave], webhook: Webhook | None, seconds: float = EVERY_SECONDS) -> None:
        self._watched = [(name, version, enclave) for name, version, enclave in drifting(enclaves)]
        self._watching = [(name, version, enclave) for name, version, enclave in watching(enclaves)]
        self.webhook = webhook
        self._seconds = seconds
        self._since = time.time()
        self._seen: dict[tuple[str, int], Seen] = {}
        self.alarmed: dict[tuple[str, int], dict[str, int]] = {}
        self.latest: dict[tuple[str, int], DriftReport] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="garrison-drift", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look a last time, and end; the webhook too."""
        self._stopping.set()
        self._thread.join(_CLOSE_SECONDS)
        if self.webhook is not None:
            self.webhook.close()

    def _work(self) -> None:
        while not self._stopping.wait(self._seconds):
            self.look()
        self.look()

    def look(self) -> None:
        """Look at all models once."""
        looks = [partial(self._look, *watched) for watched in self._watched]
        looks += [partial(self._count, *watching) for watching in self._watching]
        for look in looks:
            try:
                look()
            except GarrisonError as error:  # an enclave that is being replaced has nothing to tell
                logger.debug("no news of a guard: %s", error)
            except Exception:
                logger.exception("a look at what a guard has found failed")

    def _count(self, name: str, version: int, enclave: Watching) -> None:
        counts: dict[str, int] = {}
        for alarm in enclave.alarms():
            counts[alarm.detector] = counts.get(alarm.detector, 0) + alarm.active
        self.alarmed[name, version] = counts

    def _look(self, name: str, version: int, enclave: Drifting) -> None:
        report = enclave.drift()
        if report is None:
            return
        self.latest[name, version] = report
        before = self._seen.get((name, version))
        now: Seen = {(alarm.number, alarm.since): alarm for alarm in report.alarms}
        self._seen[name, version] = now
        if self.webhook is None:
            return
        for key, alarm in now.items():
            old = alarm if before is None and alarm.since < self._since else (before or {}).get(key)
            for kind in _news(old, alarm):
                self.webhook.send(kind, _told(name, version, report, alarm))


def _news(old: DriftAlarm | None, alarm: DriftAlarm) -> list[str]:
    """What is new of an alarm."""
    if old is None:
        return [ALARM] if alarm.active else [ALARM, OVER]
    found = [NAMED] if alarm.named != old.named else []  # who is named stays, so that nobody is told of twice
    return [*found, OVER] if old.active and not alarm.active else found


def _told(name: str, version: int, report: DriftReport, alarm: DriftAlarm) -> dict[str, Any]:
    return {
        "model": name,
        "version": version,
        "rows": report.rows,
        "reference_rows": report.reference_rows,
        "alarm": msgspec.to_builtins(alarm),
    }
