"""The inner program of a Nitro enclave, for one connection: `python -m garrison.enclave.guest QUOTES FOLDER`.

The same program as `garrison.enclave.worker`, but that its bundle comes over the connection (`garrison.enclave.delivery`), and its quotes
from the hardware by way of the program that started it (`garrison.enclave.doorkeeper`), which also hands it its connection. The folder is
removed once the bundle is open.
"""

from __future__ import annotations

import logging
import shutil
import socket
import sys
from pathlib import Path

import msgspec

from garrison.bundle.reader import VerifiedBundle
from garrison.enclave.delivery import guest_end, receive_bundle
from garrison.enclave.quotes.asked import AskedQuoter
from garrison.enclave.talk import Start
from garrison.enclave.vsock import plain
from garrison.enclave.worker import open_bundle, prepare, serve
from garrison.errors import FrameError, GarrisonError
from garrison.protocol.frames import bound_times

logger = logging.getLogger(__name__)


def main() -> None:
    """The program."""
    (quotes,) = prepare(sys.argv[1:2])
    _, descriptors, _, _ = socket.recv_fds(quotes, 1, 1)
    if not descriptors:
        return  # it was a spare that nobody needed
    connection = plain(socket.socket(fileno=descriptors[0]))
    try:
        receive(connection, quotes, Path(sys.argv[2]))
    except FrameError as error:
        logger.debug("the enclave ends: %s", error)


def receive(connection: socket.socket, quotes: socket.socket, folder: Path) -> None:
    """Take the bundle in, then serve until the host has gone.

    Raises:
        FrameError: it has.
    """
    try:
        receive_bundle(guest_end(connection), folder)
    except FrameError:
        raise
    except GarrisonError as error:
        logger.error("no bundle came: %s", error)  # noqa: TRY400
        return

    bound_times(connection, 0.0)  # from here on a host may be silent for as long as it likes

    def opened(start: Start) -> VerifiedBundle:
        try:
            return open_bundle(msgspec.structs.replace(start, bundle=str(folder)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    serve(connection, quoter=AskedQuoter(quotes, "nitro"), opened=opened)


if __name__ == "__main__":
    main()
