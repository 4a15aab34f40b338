"""What a server counts for its metrics: plain numbers, so that counting costs next to nothing; they are put into words when somebody asks.

Invariant: nothing here is named by a caller: models and versions come from manifests, codes from this program.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import msgspec

from garrison.protocol.messages import Reply
from garrison.server.waiting import Waiting

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the histogram of times, but for the last, which has none."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16_384)
"""The same, of rows in a batch."""
MOST_CODES = 64
OTHER = "other"


class ModelCount(msgspec.Struct, forbid_unknown_fields=True, array_like=True):
    """What one version of a model has answered so far, and how many requests wait.

    Attributes:
        codes: requests by true code, "ok" for an answer; of sealed requests "sealed" alone.
        rows, replaced: charged, and answered otherwise than the model did.
        shadow: by defense in shadow, rows that it would have changed.
        dismissed: requests that waited for too long.
        sizes, seconds: histograms, one entry more than `ROWS` and `SECONDS`.
        size_sum, seconds_sum: of the same.
        queued: requests that wait now.
    """

    name: str = ""
    version: int = 0
    codes: dict[str, int] = {}
    rows: int = 0
    replaced: int = 0
    shadow: dict[str, int] = {}
    dismissed: int = 0
    sizes: list[int] = msgspec.field(default_factory=lambda: [0] * (len(ROWS) + 1))
    seconds: list[int] = msgspec.field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    size_sum: int = 0
    seconds_sum: float = 0.0
    queued: int = 0

    def note(self, batch: Sequence[Waiting], replies: Sequence[Reply]) -> None:
        """Count a batch that is answered."""
        now, rows, codes, seconds = time.monotonic(), 0, self.codes, self.seconds
        total = 0.0
        for request, reply in zip(batch, replies, strict=True):
            outcome = reply.outcome
            code = outcome.code if outcome.code in codes or len(codes) < MOST_CODES else OTHER
            codes[code] = codes.get(code, 0) + 1
            rows += outcome.rows
            self.replaced += outcome.replaced
            if outcome.shadow:
                for defense, minded in outcome.shadow.items():
                    self.shadow[defense] = self.shadow.get(defense, 0) + minded
            waited = now - request.since
            total += waited
            seconds[bisect_left(SECONDS, waited)] += 1
        self.seconds_sum += total
        self.rows += rows
        self.size_sum += rows
        self.sizes[bisect_left(ROWS, rows)] += 1

    def copied(self, name: str, version: int, queued: int) -> ModelCount:
        """The counts as they are now, with the model's name, for another thread."""
        codes, shadow, sizes, seconds = dict(self.codes), dict(self.shadow), list(self.sizes), list(self.seconds)
        return msgspec.structs.replace(
            self, name=name, version=version, codes=codes, shadow=shadow, sizes=sizes, seconds=seconds, queued=queued
        )


class Counted(msgspec.Struct, tag=True, forbid_unknown_fields=True):
    """What one process has counted; a front worker tells it to its server.

    Attributes:
        errors: requests that were refused before they reached a model, by code, over all transports.
        in_flight: requests that are being answered.
    """

    models: list[ModelCount] = []
    errors: dict[str, int] = {}
    in_flight: int = 0


def added(parts: Iterable[Counted]) -> Counted:
    """The sum over processes."""
    found = Counted(models=[], errors={})
    models: dict[tuple[str, int], ModelCount] = {}
    for part in parts:
        found.in_flight += part.in_flight
        _add(found.errors, part.errors)
        for model in part.models:
            into = models.setdefault((model.name, model.version), ModelCount(model.name, model.version, {}, shadow={}))
            _add(into.codes, model.codes)
            _add(into.shadow, model.shadow)
            into.sizes = [a + b for a, b in zip(into.sizes, model.sizes, strict=True)]
            into.seconds = [a + b for a, b in zip(into.seconds, model.seconds, strict=True)]
            for name in ("rows", "replaced", "dismissed", "size_sum", "seconds_sum", "queued"):
                setattr(into, name, getattr(into, name) + getattr(model, name))
    found.models = [models[key] for key in sorted(models)]
    return found


def ended(part: Counted) -> Counted:
    """What stays of the count of a process that has gone: its counters, not what was under way."""
    models = [msgspec.structs.replace(model, queued=0) for model in part.models]
    return msgspec.structs.replace(part, models=models, in_flight=0)


def _add(into: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        into[name] = into.get(name, 0) + count
