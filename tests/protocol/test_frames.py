"""Frames: what goes in comes out, and whoever lies is not listened to again."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.stalls import PATIENT_SECONDS

from garrison.errors import FrameError, LimitError
from garrison.protocol.frames import LENGTH, Channel, GoneError, send_buffer_bytes

MOST = 4096


class Note(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    text: str


class Number(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    value: int


class Tree(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    root: Any


Either = Note | Number | Tree
DECODER: msgspec.msgpack.Decoder[Either] = msgspec.msgpack.Decoder(Either)
Ends = tuple[Channel[Either, Either], socket.socket]


def framed(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body


def channel(end: socket.socket, most: int = MOST) -> Channel[Either, Either]:
    return Channel(end, DECODER, most_sent=most, most_received=most)


@pytest.fixture
def ends() -> Iterator[Ends]:
    one, other = socket.socketpair()
    with one, other:
        other.settimeout(PATIENT_SECONDS)
        one.settimeout(PATIENT_SECONDS)
        yield channel(one), other


def test_messages_arrive_in_order_and_as_they_were_sent(ends: Ends) -> None:
    one, other = ends
    far = channel(other)
    sent: list[Either] = [Note("a"), Number(7), Note("é" * 500)]
    for message in sent:
        one.send(message)
    assert [far.receive() for _ in sent] == sent


def test_a_message_that_comes_in_pieces_is_put_together(ends: Ends) -> None:
    one, other = ends
    body = msgspec.msgpack.encode(Note("x" * 1000))
    frame = LENGTH.pack(len(body)) + body

    def trickle() -> None:
        for i in range(0, len(frame), 7):
            other.sendall(frame[i : i + 7])

    thread = threading.Thread(target=trickle)
    thread.start()
    assert one.receive() == Note("x" * 1000)
    thread.join()


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (LENGTH.pack(MOST + 1), "at most 4096 are taken"),
        (LENGTH.pack(2**32 - 1), "at most 4096 are taken"),
        (LENGTH.pack(0), "none of the messages"),
        (LENGTH.pack(3) + b"\xc1\xc1\xc1", "none of the messages"),
        (LENGTH.pack(1) + b"\xc0", "none of the messages"),
        (LENGTH.pack(2) + msgspec.msgpack.encode({}) + b"\x00", "none of the messages"),
        (framed(msgspec.msgpack.encode(Note("abc")).replace(b"abc", b"\xff\xfe\xfd")), "none of the messages"),
        (framed(msgspec.msgpack.encode(Tree(None))[:-1] + b"\x91" * 3000 + b"\xc0"), "none of the messages"),
    ],
    ids=["too long", "far too long", "empty", "not MessagePack", "nil", "more than one value", "not UTF-8", "too deep"],
)
def test_a_frame_that_lies_ends_the_connection(ends: Ends, lie: bytes, found: str) -> None:
    one, other = ends
    other.sendall(lie + b"and something after it")
    with pytest.raises(FrameError, match=found):
        one.receive()
    with pytest.raises(FrameError):
        one.receive()
    with pytest.raises(FrameError):
        one.send(Number(1))


def test_a_message_of_an_unknown_type_or_with_an_unknown_field_is_refused() -> None:
    for wrong in (
        {"type": "Other", "text": "a"},
        {"type": "Note", "text": "a", "more": 1},
        {"type": "Note", "text": 5},
    ):
        near, far = socket.socketpair()
        with near, far:
            body = msgspec.msgpack.encode(wrong)
            far.sendall(LENGTH.pack(len(body)) + body)
            with pytest.raises(FrameError, match="none of the messages"):
                channel(near).receive()


def test_the_end_of_the_connection_is_told_from_a_message(ends: Ends) -> None:
    one, other = ends
    other.sendall(LENGTH.pack(10) + b"half")
    other.close()
    with pytest.raises(FrameError, match="ended after 4 of 10"):
        one.receive()


def test_a_sender_keeps_to_the_limit_itself_and_goes_on(ends: Ends) -> None:
    one, other = ends
    with pytest.raises(LimitError, match="longer than the 4096 that may be sent"):
        one.send(Note("x" * MOST))
    one.send(Number(1))
    assert channel(other).receive() == Number(1)


def test_who_is_silent_is_not_waited_for_for_ever() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(0.05)
        with pytest.raises(FrameError, match="nothing comes"):
            channel(near).receive()


def test_closing_wakes_who_waits(ends: Ends) -> None:
    one, _ = ends
    told: list[str] = []

    def wait() -> None:
        try:
            one.receive()
        except FrameError as error:
            told.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(0.1)
    one.close()
    thread.join(PATIENT_SECONDS)
    assert not thread.is_alive()
    assert told


def drip(end: socket.socket, data: bytes, done: threading.Event) -> None:
    """A byte now and then."""
    with contextlib.suppress(OSError):
        for byte in data:
            if done.wait(0.02):
                return
            end.send(bytes([byte]))


@pytest.mark.parametrize("start", [0, LENGTH.size], ids=["in the length", "in the message"])
def test_who_sends_a_byte_now_and_then_is_given_up(start: int) -> None:
    near, far = socket.socketpair()
    done, frame = threading.Event(), framed(bytes(MOST))
    with near, far:
        one = channel(near)
        one.bound(0.3)
        far.send(frame[:start])
        data = frame[start:] if start else b"\0" * 3  # three bytes of a length, and then silence
        thread = threading.Thread(target=drip, args=(far, data, done))
        thread.start()
        begun = time.monotonic()
        with pytest.raises(FrameError) as raised:
            one.receive()
        assert time.monotonic() - begun < 15.0  # the whole message would take more than a minute
        assert not isinstance(raised.value, GoneError), "late, not gone"
        done.set()
        thread.join()


def test_who_reads_a_byte_now_and_then_is_given_up() -> None:
    near, far = socket.socketpair()
    done = threading.Event()
    with near, far:
        one = channel(near, 1 << 24)
        one.bound(0.2)

        def read() -> None:
            with contextlib.suppress(OSError):
                while not done.wait(0.02):
                    far.recv(1 << 12)

        thread = threading.Thread(target=read)
        thread.start()
        begun = time.monotonic()
        with pytest.raises(FrameError) as raised:
            one.send(Note("x" * (1 << 23)))
        assert time.monotonic() - begun < 15.0  # the whole message would take 40 seconds
        assert not isinstance(raised.value, GoneError)
        done.set()
        thread.join()


def test_a_long_message_to_a_slow_reader_arrives_whole() -> None:
    near, far = socket.socketpair()
    found: list[Either] = []
    with near, far:
        one, other = channel(near, 1 << 24), channel(far, 1 << 24)
        one.bound(PATIENT_SECONDS)
        thread = threading.Thread(target=lambda: found.append(other.receive()))
        thread.start()
        one.send(Note("x" * (1 << 22)))
        thread.join(PATIENT_SECONDS)
    assert found == [Note("x" * (1 << 22))]


def test_who_ends_is_told_from_who_lies(ends: Ends) -> None:
    one, other = ends
    other.close()
    with pytest.raises(GoneError):
        one.receive()
    near, far = socket.socketpair()
    with near, far:
        far.send(framed(b"\xc1"))
        with pytest.raises(FrameError) as raised:
            channel(near).receive()
        assert not isinstance(raised.value, GoneError)


def test_what_stands_behind_a_message_is_taken_as_it_is(ends: Ends) -> None:
    one, other = ends
    far = channel(other)
    one.send(Number(2), [b"first", b"", b"second"])
    one.send(Note("next"))
    assert far.receive() == Number(2)
    assert [far.take(length) for length in (5, 0, 6)] == [b"first", b"", b"second"]
    assert far.receive() == Note("next")


@pytest.mark.parametrize("sizes", [(1 << 22,), (1 << 18, 1 << 18, 3, 1 << 20)])
def test_long_bytes_behind_a_message_arrive_whole(sizes: tuple[int, ...]) -> None:
    near, far = socket.socketpair()
    behind = [bytes([k]) * size for k, size in enumerate(sizes)]
    found: list[bytes] = []
    with near, far:
        one, other = channel(near, 1 << 24), channel(far, 1 << 24)
        one.bound(PATIENT_SECONDS)

        def read() -> None:
            other.receive()
            found.extend(other.take(size) for size in sizes)

        thread = threading.Thread(target=read)
        thread.start()
        one.send(Number(1), behind)
        thread.join(PATIENT_SECONDS)
    assert found == behind


def test_what_stands_behind_counts_for_the_limit_on_both_sides(ends: Ends) -> None:
    one, other = ends
    with pytest.raises(LimitError, match="longer than the 4096 that may be sent"):
        one.send(Number(1), [bytes(MOST)])
    one.send(Number(1), [bytes(MOST // 2)])
    far = channel(other)
    far.receive()
    assert len(far.take(MOST // 2)) == MOST // 2
    with pytest.raises(FrameError, match="behind it"):
        far.take(MOST // 2)
    with pytest.raises(FrameError):
        far.receive()


def test_nothing_stands_behind_a_message_that_has_not_come(ends: Ends) -> None:
    with pytest.raises(FrameError, match="at most 0"):
        ends[0].take(1)


def test_whether_a_message_is_there_to_its_last_byte() -> None:
    near, far = socket.socketpair()
    with near, far:
        one, frame = channel(near), framed(msgspec.msgpack.encode(Number(7)))
        for end in range(len(frame)):
            assert not one.is_whole(), f"{end} bytes are there"
            far.send(frame[end : end + 1])
        assert one.is_whole()
        assert one.receive() == Number(7)
        assert not one.is_whole()
        far.close()
        assert one.is_whole(), "nothing will come"


def test_a_channel_closed_by_another_thread_has_nothing_to_wait_for_and_nothing_to_tell() -> None:
    """As when a worker dies, and whoever notices closes. Control: before, the message could have been received."""
    near, far = socket.socketpair()
    with near, far:
        one = channel(near)
        far.send(framed(msgspec.msgpack.encode(Number(7))))
        assert one.is_whole()
        one.close()
        assert one.is_whole()
        with pytest.raises(FrameError):
            one.receive()


def test_what_was_taken_to_see_whether_a_message_is_whole_is_received() -> None:
    near, other = socket.socketpair()
    with near, other:
        one, far = channel(near), channel(other)
        far.send(Number(1), [b"behind", b"it"])
        far.send(Note("next"))
        assert one.is_whole()
        assert one.receive() == Number(1)
        assert [one.take(length) for length in (6, 2)] == [b"behind", b"it"]
        assert one.is_whole()
        assert one.receive() == Note("next")
        assert not one.is_whole()


@pytest.mark.parametrize("length", [1 << 16, 3 << 16], ids=["a little more than a glance", "some glances"])
def test_a_long_message_is_whole_with_its_last_byte_and_the_rest_can_be_waited_for(length: int) -> None:
    frame = framed(msgspec.msgpack.encode(Note("x" * length)))
    for whole in (True, False):
        near, far = socket.socketpair()
        with near, far:
            send_buffer_bytes(far)
            one = channel(near, 1 << 20)
            one.bound(PATIENT_SECONDS)
            far.sendall(frame[:-1])
            assert not one.is_whole()
            far.sendall(frame[-1:])
            assert not whole or one.is_whole()
            assert one.receive() == Note("x" * length)


def test_a_message_that_is_too_long_is_not_waited_for(ends: Ends) -> None:
    one, other = ends
    other.sendall(LENGTH.pack(MOST + 1))
    assert one.is_whole()
    with pytest.raises(FrameError, match="at most 4096 are taken"):
        one.receive()
