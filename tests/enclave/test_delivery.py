"""A bundle over a connection: what comes is what was sent, and whoever lies about names and sizes reaches nothing."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from garrison.enclave import delivery
from garrison.enclave.delivery import (
    MOST_FILE_BYTES,
    PIECE_BYTES,
    Delivery,
    HostEnd,
    Parcel,
    Piece,
    guest_end,
    host_end,
    receive_bundle,
    send_bundle,
)
from garrison.errors import BundleError, FrameError, GarrisonError, MissingFileError, UnexpectedFileError


def deliver(say: Callable[[HostEnd], None], folder: Path) -> GarrisonError | None:
    """What the receiving side came to."""
    met: list[GarrisonError] = []
    ours, theirs = socket.socketpair()

    def receive() -> None:
        try:
            receive_bundle(guest_end(theirs), folder)
        except GarrisonError as error:
            met.append(error)
        theirs.close()

    with ours:
        guest = threading.Thread(target=receive)
        guest.start()
        try:
            say(host_end(ours))
        finally:
            ours.close()
            guest.join(60)
    return met[0] if met else None


def test_all_files_come_as_they_are(tmp_path: Path) -> None:
    bundle, inside = tmp_path / "bundle", tmp_path / "inside"
    inside.mkdir()
    files = {"manifest.json": b"{}", "chunks/0": os.urandom(2 * PIECE_BYTES + 3), "chunks/empty": b""}
    for name, data in files.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(data)
    assert deliver(lambda channel: send_bundle(channel, bundle), inside) is None
    found = {path.relative_to(inside).as_posix(): path.read_bytes() for path in inside.rglob("*") if path.is_file()}
    assert found == files


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", "a//x", "./x", "", "a\0b", "/".join("a" * 17), "x" * 1025, "a/"]
)
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()

    def say(channel: HostEnd) -> None:
        channel.send(Delivery([Parcel(name, 1)]))
        with pytest.raises(BundleError):
            delivery._expect(channel, delivery.Delivered)

    assert isinstance(deliver(say, inside), BundleError)
    assert [path for path in tmp_path.rglob("*") if path != inside] == []


@pytest.mark.parametrize("parcel", [Parcel("x", -1), Parcel("x", MOST_FILE_BYTES + 1)])
def test_a_size_that_no_file_has(tmp_path: Path, parcel: Parcel) -> None:
    assert isinstance(deliver(lambda channel: channel.send(Delivery([parcel])), tmp_path), BundleError)


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MOST_FILES", 1)
    parcels = [Parcel("a", 0), Parcel("b", 0)]
    assert isinstance(deliver(lambda channel: channel.send(Delivery(parcels)), tmp_path), BundleError)


@pytest.mark.parametrize(
    "said",
    [
        [Piece(b"x")],
        [Delivery([Parcel("x", 2)]), Piece(b"xyz")],
        [Delivery([Parcel("x", 2)]), Piece(b"")],
        [Delivery([Parcel("x", 2)]), Delivery([])],
        [Delivery([Parcel("x", 2)]), Piece(b"x")],
    ],
)
def test_other_bytes_than_were_announced_end_it(tmp_path: Path, said: list[delivery.ToGuest]) -> None:
    def say(channel: HostEnd) -> None:
        for message in said:
            channel.send(message)

    assert isinstance(deliver(say, tmp_path), FrameError)


def test_one_name_twice_is_told(tmp_path: Path) -> None:
    def say(channel: HostEnd) -> None:
        channel.send(Delivery([Parcel("x", 0), Parcel("x", 0)]))
        with pytest.raises(GarrisonError, match="cannot be kept"):
            delivery._expect(channel, delivery.Delivered)

    assert "cannot be kept" in str(deliver(say, tmp_path))


def test_what_is_no_bundle_is_not_sent(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()

    def refused(kind: type[BundleError], folder: Path) -> None:
        def say(channel: HostEnd) -> None:
            with pytest.raises(kind):
                send_bundle(channel, folder)

        deliver(say, inside)

    refused(MissingFileError, tmp_path / "none")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "link").symlink_to(tmp_path)
    refused(UnexpectedFileError, tmp_path / "bundle")
    assert list(inside.iterdir()) == []
