"""The short way and h11 read the same of an answer, and agree on whether another may follow."""

from __future__ import annotations

import socket
import time

import pytest
from tests.stalls import PATIENT_SECONDS

from garrison.errors import GarrisonError, UnavailableError, UpstreamError
from garrison.protocol.http_messages import Request, Response
from garrison.upstream import connection
from garrison.upstream.connection import Connection, WaitingError

ASK = Request("POST", "/x", {"content-type": "application/json"}, b"body")
HEAD = b"HTTP/1.1 200 OK\r\n"
ANSWERS = (
    HEAD + b"content-length: 2\r\n\r\nhi",
    HEAD + b"Content-Length: 2\r\nServer: a b\r\nInference-Header-Content-Length: 1\r\n\r\nhi",
    HEAD + b"date: Sun, 22 Nov 2026 09:36:41 GMT\r\nx: a: b:c\r\ncontent-length: 2\r\n\r\nhi",
    HEAD + b"content-length: 0\r\n\r\n",
    HEAD + b"content-length: 2\r\n\r\nhi and more",
    HEAD + b"content-length: 2\r\ncontent-length: 2\r\n\r\nhi",
    HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\nhi!",
    HEAD + b"content-length: 2, 2\r\n\r\nhi",
    HEAD + b"content-length: +2\r\n\r\nhi",
    HEAD + b"content-length: 2\r\nconnection: close\r\n\r\nhi",
    HEAD + b"content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    HEAD + b"content-length: 2\r\nx: folded\r\n again\r\n\r\nhi",
    HEAD + b"content-length: 2\r\nx:\r\n\r\nhi",
    HEAD + b"content-length : 2\r\n\r\nhi",
    HEAD + b"content-length: 2\nx: y\r\n\r\nhi",
    HEAD + b"content-length: 2\r\nx: \xff\r\n\r\nhi",
    HEAD + b"content-length: 5\r\n\r\nhi",
    b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    b"HTTP/1.1 204 No\r\n\r\n",
    b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nhi",
    b"HTTP/1.1 100 Go\r\n\r\n" + HEAD + b"content-length: 2\r\n\r\nhi",
)

Found = tuple[Response | type[GarrisonError], bool]


def read(answer: bytes, *, most: int = 64, pieces: int = 1) -> Found:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        asked = Connection(ours)
        deadline = time.monotonic() + PATIENT_SECONDS
        assert asked.begin(ASK, "/x", [("host", "h")], deadline)
        assert theirs.recv(4096) == (
            b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\nbody"
        )
        cut = len(answer) // pieces
        theirs.sendall(answer[:cut])
        theirs.sendall(answer[cut:])
        theirs.shutdown(socket.SHUT_WR)
        try:
            found = asked.finish(deadline, most)
        except GarrisonError as error:
            return type(error), False
        assert found is not None
        return found, asked.reusable


@pytest.mark.parametrize("answer", ANSWERS)
def test_both_readers_agree(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    short = read(answer)
    monkeypatch.setattr(connection, "_MOST_PLAIN_HEAD", 0)  # nothing is short enough for the short way
    assert read(answer) == short


def test_the_plainest_answer_goes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "_by_h11", None)
    found, again = read(ANSWERS[0])
    assert found == Response(200, {"content-length": "2"}, b"hi")
    assert again
    assert read(HEAD + b"content-length: 65\r\n\r\n" + bytes(65)) == (UpstreamError, False)


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\0b"])
def test_a_header_cannot_break_out_of_its_line(value: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(Exception, match="Illegal header value"):
        Connection(ours).begin(Request("POST", "/x", {"x": value}, b""), "/x", [], time.monotonic() + 1)


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("size", [1, 7])
def test_an_answer_may_be_read_in_several_goes(answer: bytes, size: int) -> None:
    """Whoever stops waiting for now, and asks again, finds what one go would have found."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        asked, deadline = Connection(ours), time.monotonic() + PATIENT_SECONDS
        assert asked.begin(ASK, "/x", [("host", "h")], deadline)
        goes = 0
        found: Response | type[GarrisonError] | None = None
        for start in range(0, len(answer), size):
            theirs.sendall(answer[start : start + size])
            found = go(asked, deadline, time.monotonic() + 1e-3)
            if found is not None:
                break
            goes += 1
        else:
            theirs.shutdown(socket.SHUT_WR)
            found = go(asked, deadline, deadline)
        assert goes > 0, "control: it was not there at once"
        expected = read(answer)[0]
        if isinstance(found, Response) and isinstance(expected, Response):
            assert (found.status, found.body) == (expected.status, expected.body)
        else:
            assert found is expected


def go(asked: Connection, deadline: float, until: float) -> Response | type[GarrisonError] | None:
    """What one go finds; None for no answer yet."""
    try:
        return asked.finish(deadline, 64, until)
    except WaitingError:
        return None
    except GarrisonError as error:
        return type(error)


def test_who_waits_for_an_answer_gives_up_at_the_deadline() -> None:
    """A head that drips does not put the deadline off."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        asked, deadline = Connection(ours), time.monotonic() + PATIENT_SECONDS
        assert asked.begin(ASK, "/x", [("host", "h")], deadline)
        theirs.sendall(HEAD)
        for _ in range(3):
            theirs.sendall(b"x")
            with pytest.raises(WaitingError):
                asked.finish(deadline, 64, until=time.monotonic() + 1e-3)
        with pytest.raises(UnavailableError):
            asked.finish(time.monotonic() + 0.1, 64)
