from __future__ import annotations

import errno
import socket
import struct

import pytest

from tests.ports import held_port

IP_LOCAL_PORT_RANGE = 51
"""Linux's option: out of which ports the kernel chooses for this socket."""


def given_any(first: int, last: int) -> int:
    """The port that the kernel gives to somebody who would take any of a range."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=I", last << 16 | first))
        except OSError:
            pytest.skip("this kernel is older than 6.3: a socket has no range of ports of its own")
        other.bind(("127.0.0.1", 0))
        return int(other.getsockname()[1])


def test_nobody_else_is_given_a_held_port() -> None:
    with held_port() as port, pytest.raises(OSError) as found:
        given_any(port, port)
    assert found.value.errno == errno.EADDRINUSE
    assert given_any(port, port) == port, "control: held no longer"


def test_who_asks_for_it_by_number_gets_it_each_time() -> None:
    with held_port() as port:
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
                pass
