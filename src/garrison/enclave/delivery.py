"""How a bundle gets into an enclave that has no files of its host: over the connection, before the start message.

    enclave   Welcome                      or Failed: why it serves nobody
    host      Delivery, then Pieces        the names and sizes of all files, then their bytes, in that order
    enclave   Delivered                    or Failed
    host      Start, and so on             as over every other pipe (`garrison.enclave.talk`)

Invariants: nothing is believed of what comes: names lead nowhere but into the folder that is given, sizes are kept to, and whether these are
the files that the owner signed is found when the bundle is opened, inside.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

import garrison
from garrison.enclave.talk import Failed, failure, raised_again
from garrison.errors import (
    BundleError,
    FrameError,
    GarrisonError,
    IsolationError,
    MissingFileError,
    TruncatedFileError,
    UnexpectedFileError,
)
from garrison.limits import MIB
from garrison.protocol.frames import Channel

PIECE_BYTES = MIB
MOST_FILES = 65_536
MOST_FILE_BYTES = 2**40
GREETING_SECONDS = 10.0
DELIVERY_SECONDS = 120.0
"""How long one message may take; not the whole delivery."""
_MOST_DEPTH = 16
_MOST_NAME = 1024
_MOST_MESSAGE_BYTES = 16 * MIB


class Welcome(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, kw_only=True):
    """An enclave greets whoever connects. For the operator: the host cannot check it, a client's policy judges the evidence.

    Attributes:
        version: of this package, inside.
        module: what the hardware calls the enclave.
        measurement: PCR0, in hex.
        debug: PCR0 is all zero.
    """

    version: str
    module: str
    measurement: str
    debug: bool


class Parcel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file: path relative to the bundle's folder, size in bytes."""

    name: str
    size: int


class Delivery(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    parcels: list[Parcel]


class Piece(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """The next bytes, at most `PIECE_BYTES`; of one file."""

    data: bytes


class Delivered(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """All files are there."""


ToGuest = Delivery | Piece
FromGuest = Welcome | Delivered | Failed
_TO_GUEST: msgspec.msgpack.Decoder[ToGuest] = msgspec.msgpack.Decoder(ToGuest)
_FROM_GUEST: msgspec.msgpack.Decoder[FromGuest] = msgspec.msgpack.Decoder(FromGuest)
Kind = TypeVar("Kind", Welcome, Delivered)
HostEnd = Channel[ToGuest, FromGuest]
GuestEnd = Channel[FromGuest, ToGuest]


def host_end(connection: socket.socket) -> HostEnd:
    channel: HostEnd = Channel(
        connection, _FROM_GUEST, most_sent=_MOST_MESSAGE_BYTES, most_received=_MOST_MESSAGE_BYTES
    )
    channel.bound(GREETING_SECONDS)
    return channel


def guest_end(connection: socket.socket) -> GuestEnd:
    channel: GuestEnd = Channel(connection, _TO_GUEST, most_sent=_MOST_MESSAGE_BYTES, most_received=_MOST_MESSAGE_BYTES)
    channel.bound(DELIVERY_SECONDS)
    return channel


def be_welcomed(channel: HostEnd) -> Welcome:
    """The greeting.

    Raises:
        IsolationError: the enclave serves nobody, or is of another version than this server.
        FrameError: what answers is no enclave of ours.
    """
    welcome = _expect(channel, Welcome)
    if welcome.version != garrison.__version__:
        raise IsolationError(
            f"the enclave's image has garrison {welcome.version}, this server {garrison.__version__}: build the image anew"
        )
    return welcome


def send_bundle(channel: HostEnd, bundle: Path) -> None:
    """Deliver all files below a folder.

    Raises:
        BundleError: the folder is not there, holds a link or a special file, or a file changed meanwhile.
        FrameError: the enclave has gone.
        GarrisonError: what it said of the delivery.
    """
    channel.bound(DELIVERY_SECONDS)
    found = list(_files(bundle))
    channel.send(Delivery([Parcel(path.relative_to(bundle).as_posix(), size) for path, size in found]))
    for path, size in found:
        for piece in _pieces(path, size, path.relative_to(bundle).as_posix()):
            channel.send(Piece(piece))
    _expect(channel, Delivered)


def receive_bundle(channel: GuestEnd, folder: Path) -> None:
    """Put what is delivered into a folder, which is empty.

    Raises:
        GarrisonError: the names or sizes lie, or there is no room. The host has been told.
        FrameError: it has gone, or sends something else.
    """
    try:
        delivery = channel.receive()
        if not isinstance(delivery, Delivery):
            raise FrameError("a delivery begins with the list of its files")
        _check(delivery.parcels)
        for parcel in delivery.parcels:
            _receive(channel, folder / parcel.name, parcel)
    except FrameError:
        raise
    except OSError as error:
        told = IsolationError(f"the bundle cannot be kept inside the enclave: {error.strerror}")
        _tell(channel, told)
        raise told from error
    except GarrisonError as error:
        _tell(channel, error)
        raise
    channel.send(Delivered())


def _tell(channel: GuestEnd, error: GarrisonError) -> None:
    with contextlib.suppress(FrameError):  # it may have gone meanwhile
        channel.send(failure(error))


def _expect(channel: HostEnd, kind: type[Kind]) -> Kind:
    message = channel.receive()
    if isinstance(message, Failed):
        raise raised_again(message)
    if not isinstance(message, kind):
        raise FrameError(f"the enclave does not say {kind.__name__}")
    return message


def _files(bundle: Path) -> Iterator[tuple[Path, int]]:
    """Regular files and their sizes, by name."""
    if not bundle.is_dir():
        raise MissingFileError(f"expected a bundle's folder at {bundle}")
    for path in sorted(itertools.islice(bundle.rglob("*"), 2 * MOST_FILES)):
        name = path.relative_to(bundle).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UnexpectedFileError("a link or a special file; a bundle holds regular files only", file=name)
        if path.is_file():
            yield path, path.stat().st_size


def _pieces(path: Path, size: int, name: str) -> Iterator[bytes]:
    left = size
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            while left:
                data = file.read(min(left, PIECE_BYTES))
                if not data:
                    raise TruncatedFileError(f"{left} of {size} bytes vanished while it was read", file=name)
                left -= len(data)
                yield data
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror}", file=name) from error


def _check(parcels: list[Parcel]) -> None:
    if len(parcels) > MOST_FILES:
        raise BundleError(f"{len(parcels)} files; at most {MOST_FILES} are taken")
    for parcel in parcels:
        parts = PurePosixPath(parcel.name).parts
        plain = "/".join(parts) == parcel.name and ".." not in parts and "\0" not in parcel.name
        if not plain or parcel.name.startswith("/") or not 0 < len(parts) <= _MOST_DEPTH:
            raise UnexpectedFileError(f"no name of a file in a bundle: {parcel.name[:_MOST_NAME]!r}")
        if len(parcel.name) > _MOST_NAME or not 0 <= parcel.size <= MOST_FILE_BYTES:
            raise BundleError("a name or a size that no file of a bundle has", file=parcel.name[:_MOST_NAME])


def _receive(channel: GuestEnd, path: Path, parcel: Parcel) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        left = parcel.size
        while left:
            piece = channel.receive()
            if not isinstance(piece, Piece) or not 0 < len(piece.data) <= left:
                raise FrameError(f"{parcel.name}: something else comes than its next bytes")
            left -= file.write(piece.data)
