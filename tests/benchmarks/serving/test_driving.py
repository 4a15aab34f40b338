"""The load, against a small server of the standard library."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from benchmarks.serving.driving import LoadError, parse, spent_seconds, tree
from benchmarks.serving.generator import Load, quantile, read_pool, whole
from benchmarks.serving.models import MODELS, plain
from benchmarks.serving.peers.common import Body, base64_json, from_json, from_octets, octets
from tests.stalls import again_after_a_stall

from benchmarks.serving import pools


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if self.path == "/good" else 500)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  its own name
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pool_is_read_as_it_was_written(tmp_path: Path) -> None:
    bodies = [Body("/good", {"X": "1"}, bytes([k]) * k) for k in range(1, 4)]
    pool = pools.write(tmp_path, "http://127.0.0.1:8", bodies)
    found = read_pool(tmp_path)
    assert pool.count == len(found) == 3
    assert found[2].startswith(b"POST /good HTTP/1.1\r\nHost: 127.0.0.1:8\r\nX: 1\r\nContent-Length: 3\r\n\r\n")
    assert found[2].endswith(b"\r\n\r\n\x03\x03\x03")


@pytest.mark.parametrize("rate", [0.0, 40.0])
@again_after_a_stall
def test_the_generator_counts_answers(url: str, rate: float) -> None:
    load = Load(url, [pools.raw(url, Body("/good", {}, b"x" * 5000))], 3, rate)
    try:
        load.run(0.4)
    finally:
        load.close()
    assert load.errors == 0
    assert load.latencies
    if rate:
        assert len(load.latencies) < 40
    assert min(load.latencies) > 0


@again_after_a_stall
def test_latencies_of_the_beginning_are_not_noted_and_its_answers_are_counted(url: str) -> None:
    load = Load(url, [pools.raw(url, Body("/good", {}, b"x"))], 3, 100.0)
    try:
        took = load.run(0.2, warm=0.2)
    finally:
        load.close()
    assert took == pytest.approx(0.4)
    assert load.errors == 0
    assert 0 < len(load.latencies) < load.answered


def test_a_request_longer_than_the_socket_takes_at_once_is_sent_to_its_end(url: str) -> None:
    load = Load(url, [pools.raw(url, Body("/good", {}, b"x" * 20_000_000))], 2, 0.0)
    try:
        load.burst()
    finally:
        load.close()
    assert (load.answered, load.errors) == (2, 0)


def test_a_burst_is_one_request_a_connection(url: str) -> None:
    load = Load(url, [pools.raw(url, Body("/good", {}, b"x" * 500_000))], 3, 0.0)
    try:
        took = load.burst()
    finally:
        load.close()
    assert load.errors == 0
    assert len(load.latencies) == 3
    assert max(load.latencies) <= took


@again_after_a_stall
def test_answers_that_are_errors_are_counted_as_such(url: str) -> None:
    load = Load(url, [pools.raw(url, Body("/bad", {}, b"x"))], 1, 0.0)
    try:
        load.run(0.1)
    finally:
        load.close()
    assert load.latencies == []
    assert load.errors > 0


def test_when_a_response_is_whole() -> None:
    assert not whole(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n")
    assert not whole(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab")
    assert whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
    assert not whole(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert whole(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")


def test_what_wrk_says_is_read() -> None:
    found = parse("Running 2s test\nRESULT 1000 2 2000000 1500 9000\n")
    assert (found.requests, found.errors, found.seconds, found.p50_ms, found.p99_ms) == (1000, 2, 2.0, 1.5, 9.0)
    with pytest.raises(LoadError, match="nothing that can be read"):
        parse("connection refused")


def test_quantiles() -> None:
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert quantile([1.0], 0.99) == 1.0
    assert np.isnan(quantile([], 0.5))


def test_the_time_of_a_process_that_ended_is_an_error() -> None:
    assert os.getpid() in tree(os.getpid())
    assert spent_seconds(os.getpid()) > 0
    with pytest.raises(LoadError, match="ended"):
        spent_seconds(2**22 + 1)


def test_processor_time_is_finer_than_the_kernels_ticks_and_counts_threads_that_have_ended() -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    found = []
    for _ in range(20):
        before = spent_seconds(os.getpid())
        thread = threading.Thread(target=_spin, args=(tick / 10,))
        thread.start()
        thread.join()
        found.append(spent_seconds(os.getpid()) - before)
    assert all(0.0 < spent < tick for spent in sorted(found)[:10])


def _spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_wire_formats_go_round() -> None:
    x = np.arange(4, dtype=np.float32)
    assert np.array_equal(from_octets(octets("/p", x).content), x)
    assert np.array_equal(from_json(b'{"probabilities": [[0, 1, 2, 3]]}'), x)
    assert base64_json("/p", x).content.startswith(b'{"x": "')


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_the_plain_model_answers_like_the_whole(name: str) -> None:
    model = MODELS[name]
    whole_model = model.make()
    bare = plain(whole_model)
    assert len(bare.graph.node) < len(whole_model.graph.node)
    x = model.rows()[0]
    answers = [
        ort.InferenceSession(m.SerializeToString()).run(["probabilities"], {"x": x})[0] for m in (whole_model, bare)
    ]
    assert np.array_equal(*answers)
    assert answers[0].shape == (1, model.classes)
