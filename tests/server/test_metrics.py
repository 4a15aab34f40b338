"""What Prometheus reads is right, also with several front workers, and holds nothing that a caller could name."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.drifting import seal_drifting
from tests.models import Sealed, images
from tests.server.test_workers import children, is_front, wait_until
from tests.serving import Served

from garrison.config import Config, OperationsConfig, ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.protocol.oip_client import encode_request
from garrison.server.operator import Wish, ask_servers
from garrison.server.root import assemble, background
from garrison.server.tally import ROWS, SECONDS, Counted, ModelCount, added, ended

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(port: int) -> tuple[str, Values]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return text, {(s.name, frozenset(s.labels.items())): s.value for s in samples}


def value(values: Values, name: str, **labels: str) -> float:
    return values[name, frozenset({"model": "drifting", "version": "1", **labels}.items())]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return seal_drifting(tmp_path_factory.mktemp("metrics") / "BUNDLE", OwnerKey.generate())


@pytest.fixture(scope="module")
def served(sealed: Sealed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    config = Config(
        server=ServerConfig(port=0, state=str(tmp_path_factory.mktemp("state")), isolation="none"),
        operations=OperationsConfig(metrics="127.0.0.1:0"),
    )
    assembly = assemble(config, [sealed.path], [sealed.owner.public])
    with background(assembly) as url:
        yield Served(url, assembly)


def port_of(served: Served) -> int:
    assert served.assembly.operations is not None
    return served.assembly.operations.metrics_port


def test_requests_rows_and_errors_are_counted(served: Served) -> None:
    path = "/v2/models/drifting/infer"
    for _ in range(3):
        assert served.infer(images(2), path).status_code == 200
    assert served.infer(images(2) * 9, path).status_code == 400
    assert served.infer(images(2), "/v2/models/nobody/infer").status_code == 404
    text, values = scrape(port_of(served))
    assert value(values, "garrison_requests_total", code="ok") == 3
    assert value(values, "garrison_rows_total") == 6
    assert sum(v for (name, _), v in values.items() if name == "garrison_requests_total") == 4
    assert values["garrison_errors_total", frozenset({("code", "request.not_found")})] == 1
    assert value(values, "garrison_request_seconds_count") == 4
    assert value(values, "garrison_batch_rows_bucket", le="+Inf") == value(values, "garrison_batch_rows_count")
    assert value(values, "garrison_ready") == 1
    assert "nobody" not in text
    labels = set(re.findall(r'(\w+)="', text))
    assert labels <= {"model", "version", "code", "defense", "le", "kind", "detector", "state"}


def test_drift_is_told(served: Served) -> None:
    operations = served.assembly.operations
    assert operations is not None
    assert operations.watch is not None
    operations.watch.look()
    _, values = scrape(port_of(served))
    for kind in ("psi", "ks", "ewma", "predictions"):
        assert value(values, "garrison_drift_threshold", kind=kind) > value(values, "garrison_drift", kind=kind)
        assert value(values, "garrison_drift_ringing", kind=kind) == 0


def test_counts_of_several_processes_add_up_and_outlive_one() -> None:
    one = Counted([ModelCount("m", 1, {"ok": 3}, rows=5, queued=2)], {"a": 1}, 4)
    two = Counted([ModelCount("m", 1, {"ok": 1, "internal": 1}), ModelCount("n", 2)], {"a": 1, "b": 2}, 1)
    both = added([one, two])
    assert [(m.name, m.codes, m.rows, m.queued) for m in both.models] == [
        ("m", {"ok": 4, "internal": 1}, 5, 2),
        ("n", {}, 0, 0),
    ]
    assert (both.errors, both.in_flight) == ({"a": 2, "b": 2}, 5)
    assert one.models[0].codes == {"ok": 3}, "what was added is left alone"
    assert ended(one).models[0].queued == ended(one).in_flight == 0
    assert msgspec.json.decode(msgspec.json.encode(both), type=Counted) == both
    assert len(ModelCount().sizes) == len(ROWS) + 1
    assert len(ModelCount().seconds) == len(SECONDS) + 1


@contextmanager
def ending(server: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        server.terminate()
    assert server.wait(20) == 0


@pytest.mark.slow
def test_counters_of_several_workers_add_up_and_outlive_one(sealed: Sealed, tmp_path: Path, port: int) -> None:
    (tmp_path / "owner.pub").write_bytes(sealed.owner.public.pem)
    settings = f'[operations]\nmetrics = "127.0.0.1:{port}"\nlog = "json"\n'
    (tmp_path / "garrison.toml").write_text(settings)
    words = (
        "serve",
        str(sealed.path),
        "--trust",
        str(tmp_path / "owner.pub"),
        "--config",
        str(tmp_path / "garrison.toml"),
    )
    more = ("--workers", "2", "--port", "0", "--state", str(tmp_path / "state"), "--isolation", "process", "--json")
    run = [sys.executable, "-m", "garrison", *words, *more]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(run, stdout=subprocess.PIPE, stderr=log, text=True) as server,
        ending(server),
    ):
        assert server.stdout is not None
        ready = ""
        while not ready.rstrip().endswith("\n}"):
            ready += server.stdout.readline()
        url = json.loads(ready)["url"]
        body, json_bytes = encode_request({"image": images(2)})
        headers = {"inference-header-content-length": str(json_bytes)}

        def asked(times: int) -> None:
            for _ in range(times):
                httpx.post(f"{url}/v2/models/drifting/infer", content=body, headers=headers)

        def rows() -> float:
            return value(scrape(port)[1], "garrison_rows_total")

        asked(20)
        wait_until(lambda: rows() == 40)
        front = next(child for child in children(server.pid) if is_front(child))
        os.kill(front, signal.SIGKILL)
        time.sleep(0.5)
        asked(20)
        wait_until(lambda: rows() == 80)
        (told,) = ask_servers(tmp_path / "state", Wish(drift=True))
        assert told.drift[0].report.rows < 256, "not a whole block yet"
        body, json_bytes = encode_request({"image": images(600) / 2})
        headers = {"inference-header-content-length": str(json_bytes)}
        asked(1)  # the first block is counted inside a confined enclave
        (told,) = ask_servers(tmp_path / "state", Wish(drift=True))
        assert told.drift[0].report.rows >= 512
        assert told.drift[0].report.ringing
        assert value(scrape(port)[1], "garrison_enclave_restarts_total") == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert any("front worker" in line["message"] for line in lines)
    assert {"time", "level", "logger", "process", "message"} <= set(lines[0])
