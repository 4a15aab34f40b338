"""How many connections the relay of client certificates takes: bounded in all, shared out by name, and a refusal that says so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.server.pki import Authority, Pair
from tests.stalls import PATIENT_SECONDS, again_after_a_stall

from garrison.server import client_names
from garrison.server.client_names import NamedConnections
from garrison.server.listening import listen
from garrison.server.tls import Certificates

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Place:
    """A relay before a server that echoes."""

    def __init__(self, authority: Authority, port: int, names: NamedConnections) -> None:
        self.authority, self.port, self.names = authority, port, names
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self, pair: Pair) -> Ends:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.authority.trusting(pair))
        self.writers.append(writer)
        return reader, writer


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


@asynccontextmanager
async def relay(
    authority: Authority, server: Pair, most: int, seconds: float = PATIENT_SECONDS
) -> AsyncIterator[Place]:
    inner = await asyncio.start_server(echo, "127.0.0.1", 0)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    names = NamedConnections()
    tls = Certificates(server.cert, server.key, authority.file, names=True)
    await names.start(listener, tls, inner.sockets[0].getsockname()[:2], seconds, most)
    place = Place(authority, port, names)
    try:
        yield place
    finally:
        for writer in place.writers:
            writer.close()
        names.close()
        inner.close()
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.issue("server", "garrison")


async def works(ends: Ends) -> bool:
    reader, writer = ends
    writer.write(b"hello")
    return await asyncio.wait_for(reader.read(5), PATIENT_SECONDS) == b"hello"


async def told(ends: Ends) -> tuple[str, dict[str, str]]:
    """The status line and the error of a refusal."""
    reader, writer = ends
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    head, _, body = (await asyncio.wait_for(reader.read(), PATIENT_SECONDS)).partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), json.loads(body)


async def until(true: Callable[[], bool], seconds: float = PATIENT_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_one_name_cannot_take_all_places_and_a_refusal_says_so(authority: Authority, server: Pair) -> None:
    mallory, alice = authority.issue("mallory", "mallory"), authority.issue("alice", "alice")

    async def main() -> None:
        async with relay(authority, server, most=4) as place:
            held = [await place.connect(mallory) for _ in range(3)]
            assert all([await works(ends) for ends in held])
            status, error = await told(await place.connect(mallory))
            assert status == "HTTP/1.1 503 Service Unavailable"
            assert error["code"] == "unavailable"
            assert "too many connections" in error["error"]
            assert await works(await place.connect(alice)), "the control: another name has a place"
            for _, writer in held[:2]:
                writer.close()
            await until(lambda: place.names._held.bytes == 2)
            assert await works(await place.connect(mallory)), "and one that was closed is free again"

    asyncio.run(main())


def test_all_together_have_no_more_than_the_cap(authority: Authority, server: Pair) -> None:
    pairs = [authority.issue(f"c{k}", f"c{k}") for k in range(4)]

    async def main() -> None:
        async with relay(authority, server, most=3) as place:
            kept = [await place.connect(pair) for pair in pairs]
            assert [await works(ends) for ends in kept[:3]] == [True] * 3
            assert (await told(kept[3]))[0].startswith("HTTP/1.1 503")

    asyncio.run(main())


@again_after_a_stall
def test_who_shows_no_certificate_is_bounded_by_address_and_forgotten(
    authority: Authority, server: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_names, "_HANDSHAKES", 4)
    alice = authority.issue("alice", "alice")

    async def main() -> None:
        async with relay(authority, server, most=3, seconds=0.5) as place:
            silent = [stack.enter_context(socket.create_connection(("127.0.0.1", place.port))) for _ in range(5)]
            await until(lambda: place.names._shaking.bytes == 3, 5.0)
            assert silent[-1].recv(1) == b"", "ended at once"
            with pytest.raises((ssl.SSLError, OSError)):
                await place.connect(alice)
            await until(lambda: place.names._shaking.bytes == 0)
            assert await works(await place.connect(alice)), "once their time is over there is room"
            assert place.names._held.bytes == 1

    with contextlib.ExitStack() as stack:
        asyncio.run(main())


def test_whose_certificate_is_strange_leaves_nothing_behind(authority: Authority, server: Pair, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other", "other authority").issue("eve", "eve")
    nobody = authority.issue("nobody", "one", "two")

    async def main() -> None:
        async with relay(authority, server, most=3) as place:
            for pair in (stranger, nobody):
                try:
                    reader, writer = await place.connect(pair)
                    writer.write(b"hello")
                    assert await reader.read() == b""
                except (ssl.SSLError, OSError):
                    pass
            await until(lambda: place.names._shaking.bytes == 0 and place.names._held.bytes == 0)
            assert place.names._open == set()

    asyncio.run(main())
