"""Quotes over a socket pair."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from garrison.attest.evidence import Quote, Technology
from garrison.enclave.quotes.asked import AskedQuoter, Teller
from garrison.errors import FrameError, IsolationError

Pair = tuple[socket.socket, socket.socket]


class Device:
    technology: Technology = "nitro"

    def quote(self, report_data: bytes) -> Quote:
        if report_data[0]:
            raise IsolationError("the device is busy")
        return Quote(technology="nitro", quote=b"over " + report_data)


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_it_gets_what_the_device_gives_and_hears_why_not(pair: Pair) -> None:
    quoter, teller = AskedQuoter(pair[0], "nitro"), Teller(pair[1], Device())

    def answer() -> None:
        for _ in range(3):
            teller.answer()

    thread = threading.Thread(target=answer)
    thread.start()
    assert quoter.quote(bytes(64)).quote == b"over " + bytes(64)
    with pytest.raises(IsolationError, match="busy"):
        quoter.quote(b"\1" * 64)
    assert quoter.quote(bytes(64)).technology == "nitro"
    thread.join()
    with pytest.raises(ValueError, match="64 bytes"):
        quoter.quote(b"")


def test_when_the_other_side_has_gone(pair: Pair) -> None:
    quoter = AskedQuoter(pair[0], "nitro")
    pair[1].close()
    with pytest.raises(IsolationError, match="does not answer"):
        quoter.quote(bytes(64))


def test_nonsense_ends_it(pair: Pair) -> None:
    pair[0].sendall(b"\0\0\0\1x")
    with pytest.raises(FrameError):
        Teller(pair[1], Device()).answer()
