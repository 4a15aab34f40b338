"""Events arrive signed, are tried again, and never get in the way; nothing goes where it must not."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.stalls import again_after_a_stall, wait_until

from garrison.config import OperationsConfig
from garrison.errors import ConfigError
from garrison.server.operations import open_webhook
from garrison.server.webhook import MOST_WAITING, Webhook, check_url, read_secret, sign

SECRET = bytes(range(32))


@dataclass
class Receiver:
    """Another service: notes what comes, and answers with the statuses given, 200 in the end."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.came.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(found.statuses.pop(0) if found.statuses else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}/hook?to=me"
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_an_event_arrives_signed(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url, SECRET)
    webhook.send("drift.alarm", {"model": "m"})
    wait_until(lambda: webhook.sent == 1)
    webhook.close()
    ((headers, body),) = receiver.came
    assert json.loads(body)["data"] == {"model": "m"}
    signed = sign(SECRET, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
    assert headers["webhook-signature"] == signed
    assert sign(bytes(32), headers["webhook-id"], int(headers["webhook-timestamp"]), body) != signed, "control"


def test_what_is_not_taken_is_sent_again_under_the_same_id(receiver: Receiver) -> None:
    receiver.statuses = [503, 429]
    webhook = Webhook(receiver.url, SECRET, pauses=(0.01, 0.01, 0.01))
    webhook.send("drift.alarm", {})
    wait_until(lambda: webhook.sent == 1)
    webhook.close()
    assert len(receiver.came) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 1


@pytest.mark.parametrize("statuses", [[400], [302], [503] * 3])
def test_what_is_refused_for_good_is_given_up(receiver: Receiver, statuses: list[int]) -> None:
    receiver.statuses = statuses
    webhook = Webhook(receiver.url, SECRET, pauses=(0.01, 0.01))
    webhook.send("drift.alarm", {})
    wait_until(lambda: webhook.dropped == 1)
    webhook.close()
    assert webhook.sent == 0


def test_a_receiver_that_is_away_holds_up_nobody_and_the_queue_is_bounded() -> None:
    webhook = Webhook("http://127.0.0.1:9/", SECRET, pauses=(60.0,) * 5)
    for number in range(MOST_WAITING + 50):
        webhook.send("drift.alarm", {"number": number})
    wait_until(lambda: webhook.dropped >= 49)
    start = time.monotonic()
    webhook.close()
    assert time.monotonic() - start < 30  # and not the 60 seconds until it would try again


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/hook",
        "ftp://127.0.0.1/",
        "https://",
        "https://user:word@example.org/",
        "http://127.0.0.1.example.org/",
        "http://[::1/",
        "https://example.org/#x",
        "http://127.0.0.1:0/",
    ],
)
def test_an_address_that_is_neither_https_nor_here_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="webhook"):
        check_url(url)


@pytest.mark.parametrize(
    "url", ["https://example.org/hook", "http://localhost:8000/", "http://[::1]/", "http://127.0.0.2/"]
)
def test_an_address_that_is_https_or_here_is_taken(url: str) -> None:
    assert check_url(url).geturl() == url


def test_secrets_are_read_and_short_ones_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_text("whsec_" + base64.b64encode(SECRET).decode() + "\n")
    assert read_secret(file) == SECRET
    for bad in ("whsec_" + base64.b64encode(bytes(8)).decode(), "not base64!", ""):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="secret"):
            read_secret(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        open_webhook(OperationsConfig(webhook="https://example.org", webhook_secret=str(tmp_path / "none")))


def test_a_webhook_without_a_secret_is_no_setting() -> None:
    with pytest.raises(ValueError, match="go together"):
        OperationsConfig(webhook="https://example.org")


class Drip:
    """A receiver that says a byte now and then: of its head, or of its body after a whole head. With a step that is short, no read ever takes long."""

    def __init__(self, head: bytes) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._head, self._ended = head, threading.Event()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._socket.accept()
            with connection:
                connection.sendall(self._head)
                while not self._ended.wait(0.02):
                    connection.sendall(b"x")

    def close(self) -> None:
        self._ended.set()
        self._socket.close()
        self._thread.join()


@pytest.mark.parametrize(
    ("head", "sent", "dropped"),
    [
        (b"HTTP/1.1 ", 0, 1),
        (b"HTTP/1.1 200 OK\r\nx-slow: ", 1, 0),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n", 1, 0),
    ],
)
@again_after_a_stall
def test_a_receiver_that_drips_is_left_in_time(head: bytes, sent: int, dropped: int) -> None:
    """Each read comes back at once, so no bound for a step ends it; where a status came, it counts."""
    with (
        contextlib.closing(Drip(head)) as drip,
        contextlib.closing(Webhook(drip.url, SECRET, pauses=(), most_seconds=0.2)) as webhook,
    ):
        webhook.send("drift.alarm", {})
        wait_until(lambda: webhook.sent + webhook.dropped > 0)
        assert (webhook.sent, webhook.dropped) == (sent, dropped)


def test_the_control_without_the_bound_it_is_waited_for() -> None:
    drip = Drip(b"HTTP/1.1 ")
    webhook = Webhook(drip.url, SECRET, pauses=())
    webhook.send("drift.alarm", {})
    time.sleep(0.5)
    assert (webhook.sent, webhook.dropped) == (0, 0)
    drip.close()
    wait_until(lambda: webhook.dropped == 1)
    webhook.close()
