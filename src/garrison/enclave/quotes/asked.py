"""Quotes that a confined program asks another program for, over a socket pair: it can open no device itself, and needs no right to.

Within a Nitro enclave both programs are part of what the hardware measures. Whoever has taken over the confined one can ask for
quotes over keys of its own; it has the service's keys anyway.
"""

from __future__ import annotations

import socket

import msgspec

from garrison.attest.evidence import Quote, Technology
from garrison.enclave.quotes import Quoter
from garrison.enclave.quotes.device import check_length
from garrison.errors import FrameError, GarrisonError, IsolationError
from garrison.protocol.frames import Channel

QUOTE_SECONDS = 20.0
_MOST_BYTES = 1 << 20


class Wanted(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A wish for a quote over this report data."""

    report_data: bytes


class Given(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    quote: Quote


class Refused(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    why: str


_WANTED: msgspec.msgpack.Decoder[Wanted] = msgspec.msgpack.Decoder(Wanted)
_TOLD: msgspec.msgpack.Decoder[Given | Refused] = msgspec.msgpack.Decoder(Given | Refused)


class AskedQuoter:
    """The confined program's end. To be made before the confinement.

    Args:
        connection: to the program that runs a `Teller`.
        technology: of its quotes.
    """

    def __init__(self, connection: socket.socket, technology: Technology) -> None:
        self.technology: Technology = technology
        self._channel: Channel[Wanted, Given | Refused] = Channel(
            connection, _TOLD, most_sent=_MOST_BYTES, most_received=_MOST_BYTES
        )
        self._channel.bound(QUOTE_SECONDS)

    def quote(self, report_data: bytes) -> Quote:
        check_length(report_data)
        try:
            self._channel.send(Wanted(report_data))
            told = self._channel.receive()
        except FrameError as error:
            raise IsolationError(f"who asks the hardware for quotes does not answer: {error}") from error
        if isinstance(told, Refused):
            raise IsolationError(told.why)
        return told.quote


class Teller:
    """The other end.

    Args:
        connection: to the confined program.
        quoter: asks the hardware.
    """

    def __init__(self, connection: socket.socket, quoter: Quoter) -> None:
        self._quoter = quoter
        self._channel: Channel[Given | Refused, Wanted] = Channel(
            connection, _WANTED, most_sent=_MOST_BYTES, most_received=_MOST_BYTES
        )
        self._channel.bound(QUOTE_SECONDS)

    def answer(self) -> None:
        """Answer one wish.

        Raises:
            FrameError: who asks has gone, or sends something else.
        """
        wanted = self._channel.receive()
        try:
            told: Given | Refused = Given(self._quoter.quote(wanted.report_data))
        except (GarrisonError, ValueError) as error:
            told = Refused(str(error))
        self._channel.send(told)

    def close(self) -> None:
        self._channel.close()
