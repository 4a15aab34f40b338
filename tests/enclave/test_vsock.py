"""Addresses, and what is said where there is no vsock. The family itself is not run: see `tests/enclave/nitro.py`."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest

from garrison.enclave import vsock
from garrison.errors import ConfigError, IsolationError
from garrison.protocol.frames import bound_times, send_buffer_bytes


def test_an_address_is_a_context_id_and_a_port() -> None:
    assert vsock.parse_address("16:5005") == (16, 5005)
    for wrong in (
        "",
        "16",
        "16:",
        ":5005",
        "2:5005",
        "16:0",
        "16:4294967295",
        "4294967295:1",
        "a:b",
        "16:5005 ",
        "-1:1",
    ):
        with pytest.raises(ConfigError, match="CID:PORT"):
            vsock.parse_address(wrong)


def test_a_machine_without_vsock_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", refused)
        with pytest.raises(IsolationError, match="this machine has no vsock"):
            vsock.dial(16, 5005)
        with pytest.raises(IsolationError, match="this machine has no vsock"):
            vsock.listen(5005)
        assert not vsock.look().achieved
        assert "no vsock" in vsock.look().mend
    monkeypatch.delattr(socket, "AF_VSOCK")
    with pytest.raises(IsolationError, match="Python knows no vsock"):
        vsock.dial(16, 5005)


@pytest.mark.parametrize("number", [errno.ECONNREFUSED, errno.ECONNRESET, errno.ENODEV, errno.ETIMEDOUT, None])
def test_an_enclave_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    class Nobody:
        family = socket.AF_UNIX
        closed = False

        def settimeout(self, _: float | None) -> None: ...

        def connect(self, _: tuple[int, int]) -> None:
            raise TimeoutError("timed out") if number is None else OSError(number, "no")

        def close(self) -> None:
            self.closed = True

    nobody = Nobody()
    monkeypatch.setattr(vsock, "_socket", lambda: nobody)
    with pytest.raises(IsolationError, match=r"no enclave at vsock 16:5005.*--enclave-cid"):
        vsock.dial(16, 5005)
    assert nobody.closed


def test_a_real_one_takes_time_limits_once_it_is_plain() -> None:
    """Python alone refuses to set them on AF_VSOCK."""
    if not vsock.look().achieved:
        pytest.skip("no vsock on this machine")
    made = vsock._socket()
    assert made.family == socket.AF_VSOCK
    with vsock.plain(made) as found:
        assert made.fileno() == -1
        bound_times(found, 2.5)
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == struct.pack("@ll", 2, 500_000)
        assert send_buffer_bytes(found) > 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert vsock.plain(ours) is ours


def test_a_real_one_listens() -> None:
    if not vsock.look().achieved:
        pytest.skip("no vsock on this machine")
    with vsock.listen(vsock.MOST_NUMBER) as listener:
        assert listener.getsockname()[1] == vsock.MOST_NUMBER
        with pytest.raises(IsolationError, match="cannot listen"):
            vsock.listen(vsock.MOST_NUMBER)
