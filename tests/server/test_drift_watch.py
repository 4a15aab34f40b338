"""A webhook is told of what is new of drift, once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.drifting import seal_drifting
from tests.models import images

from garrison.config import OperationsConfig
from garrison.enclave.host import Launch, launch
from garrison.guard.drifting.blame import Blame
from garrison.guard.drifting.report import MOST_NAMED, DriftAlarm
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.server.drift_watch import ALARM, NAMED, OVER, DriftWatch, _news
from garrison.server.webhook import Webhook


class Told(Webhook):
    """Notes events in place of sending them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def send(self, kind: str, data: Mapping[str, Any]) -> None:
        self.events.append((kind, data))

    def close(self) -> None: ...


def test_an_alarm_is_told_once_and_its_end_too(tmp_path: Path) -> None:
    assert OperationsConfig().webhook == ""
    sealed = seal_drifting(tmp_path / "BUNDLE")
    enclave = launch("none", Launch(sealed.path, [sealed.owner.public]))
    told = Told()
    watch = DriftWatch([enclave], told, seconds=1_000)
    try:
        watch.look()
        assert told.events == []

        def ask(seed: int, by: float) -> None:
            body, json_bytes = encode_request({"image": (images(512, seed) * by).astype(np.float32)})
            enclave.call([Ask("ann", -1, body, json_bytes)])

        for seed in range(3):
            ask(seed, 0.5)
        watch.look()
        watch.look()
        kinds = [(kind, data["alarm"]["kind"]) for kind, data in told.events]
        assert len(kinds) == len(set(kinds))
        assert ("drift.alarm", "psi") in kinds
        event = next(data for kind, data in told.events if kind == "drift.alarm")
        assert event["model"] == "drifting"
        assert event["alarm"]["named"] == ("ann",) or event["alarm"]["named"] == ["ann"]
        for seed in range(30):
            ask(100 + seed, 1.0)
        watch.look()
        assert ("drift.over", "psi") in [(kind, data["alarm"]["kind"]) for kind, data in told.events]
        assert watch.latest["drifting", 1].rows == 33 * 512
    finally:
        watch.close()
        enclave.stop()


def test_who_is_named_later_is_told_once_and_who_was_named_stays() -> None:
    def alarm(*names: str, active: bool = True) -> DriftAlarm:
        found = DriftAlarm(1, "psi", "x", 0.2, 0.1, 512, 0.0, active=True)
        for name in names:
            found = found.found(Blame((name,), ()))
        return found if active else found.over()

    ann, both, back = alarm("ann"), alarm("ann", "mallory"), alarm("ann", "mallory", "ann")
    assert (both.named, both.moving) == (("ann", "mallory"), ("mallory",))
    assert (back.named, back.moving) == (("ann", "mallory"), ("ann",))
    assert _news(None, ann) == [ALARM]
    assert _news(ann, ann) == []
    assert _news(ann, both) == [NAMED]
    assert _news(both, back) == [], "both were told of"
    assert _news(ann, alarm("ann", "mallory", active=False)) == [NAMED, OVER]
    assert _news(alarm(), ann) == [NAMED]
    crowd = alarm(*map(str, range(MOST_NAMED + 8)))
    assert crowd.named == tuple(map(str, range(MOST_NAMED))), "the first stay"


def test_alarms_from_before_the_start_are_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = seal_drifting(tmp_path / "BUNDLE")
    enclave = launch("none", Launch(sealed.path, [sealed.owner.public]))
    body, json_bytes = encode_request({"image": images(1_024) / 2})
    enclave.call([Ask("ann", -1, body, json_bytes)])
    now = time.time()
    monkeypatch.setattr("garrison.server.drift_watch.time.time", lambda: now + 60)
    told = Told()
    watch = DriftWatch([enclave], told, seconds=1_000)
    watch.look()
    watch.close()
    enclave.stop()
    assert told.events == []
    assert watch.latest["drifting", 1].ringing, "control"
