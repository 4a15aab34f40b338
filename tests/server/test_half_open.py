"""Connections that have brought no request in time are ended; all others stay."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from garrison.server.half_open import HalfOpen
from garrison.server.listening import listen


class Pairs:
    """Connections of clients to a socket of this process, as the web server would hold them."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.listener = stack.enter_context(listen("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def connect(self, port: int = 0) -> tuple[socket.socket, str]:
        """A client's end, and what it is called at ours."""
        client = self._stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("127.0.0.1", port))
        client.connect(("127.0.0.1", self.port))
        self.listener.settimeout(5)
        self.ours = self._stack.enter_context(self.listener.accept()[0])
        client.settimeout(0.2)
        return client, f"127.0.0.1:{client.getsockname()[1]}"


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with ExitStack() as stack:
        yield Pairs(stack)


def is_open(client: socket.socket) -> bool:
    try:
        return client.recv(1) != b""
    except TimeoutError:
        return True


def test_who_brings_no_request_is_ended_and_who_does_stays(pairs: Pairs) -> None:
    now = [0.0]
    half = HalfOpen(pairs.port, 10.0, lambda: now[0])
    idle, _ = pairs.connect()
    asking, peer = pairs.connect()
    for _ in range(3):
        half.sweep()
        now[0] += 3.0
    half.note(peer)
    assert is_open(idle)
    now[0] += 3.0
    half.sweep()
    assert not is_open(idle)
    now[0] += 1000.0
    half.sweep()
    assert is_open(asking)  # its answer may take long, and the web server ends it if it is idle


def test_other_sockets_are_left_alone(pairs: Pairs) -> None:
    now = [0.0]
    half = HalfOpen(pairs.port, 10.0, lambda: now[0])
    with ExitStack() as stack:
        other, _ = Pairs(stack).connect()
        pair = socket.socketpair()
        for _ in range(8):
            half.sweep()
            now[0] += 5.0
        assert is_open(other)
        pair[0].send(b"x")
        assert pair[1].recv(1) == b"x"
        for end in pair:
            end.close()


def test_a_port_that_asked_once_is_no_pass_for_its_next_connections(pairs: Pairs) -> None:
    now = [0.0]
    half = HalfOpen(pairs.port, 10.0, lambda: now[0])
    first, peer = pairs.connect()
    half.sweep()
    half.note(peer)
    port = first.getsockname()[1]
    pairs.ours.close()  # ours first, so that the client's port is free at once
    first.close()
    again, _ = pairs.connect(port)
    for _ in range(40):
        now[0] += 10.0
        half.sweep()
    assert not is_open(again)


def test_memory_does_not_grow_with_those_who_have_gone(pairs: Pairs) -> None:
    now = [0.0]
    half = HalfOpen(pairs.port, 10.0, lambda: now[0])
    for k in range(1000):
        half.note(f"192.0.2.1:{k}")
    for _ in range(3):
        half.sweep()
        now[0] += 5.0
    assert not half._asked
    assert not half._born


def test_where_no_descriptor_is_left_the_next_look_will_do(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    half = HalfOpen(pairs.port, 10.0, lambda: now[0])
    idle, _ = pairs.connect()
    half.sweep()

    def full(_: object) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", full)
        now[0] += 5.0
        half.sweep()
    assert is_open(idle)
    for _ in range(2):
        now[0] += 11.0
        half.sweep()
    assert not is_open(idle)
