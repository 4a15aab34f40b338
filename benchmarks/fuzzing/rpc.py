"""Malformed requests over gRPC: mutated messages and metadata in good calls, many on the way at once; and mutated bytes of a client's whole connection."""

from __future__ import annotations

import queue
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
from benchmarks.fuzzing.mutations import Mutator
from benchmarks.fuzzing.talk import GOOD_ONE_IN, Seen

INFER = "/inference.GRPCInferenceService/ModelInfer"
_METHODS = (INFER,) * 12 + tuple(
    f"/inference.GRPCInferenceService/{name}" for name in ("ModelMetadata", "ModelReady", "ServerMetadata", "ServerLive", "Nothing")
)  # fmt: skip
_METADATA = (
    *(
        ("garrison-nonce", ""),
        ("garrison-nonce", "n" * 257),
        ("authorization", "Bearer x"),
        ("garrison-work", "w" * 65),
    ),
    *(("grpc-encoding-x", "gzip"), ("garrison-nonce-bin", b"\x00\xff"), ("x" * 200, "y" * 2000)),
)
ON_THE_WAY, SECONDS = 64, 20.0
_GOOD_CODES = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION", "OUT_OF_RANGE"})  # fmt: skip


class Calls:
    """Calls whose message or metadata is mutated.

    Args:
        address: "host:port".
        good: a well-formed message.
        judge: whether a message is the right answer to it.
    """

    def __init__(
        self, address: str, rng: random.Random, good: list[bytes], judge: Callable[[int, bytes], bool]
    ) -> None:
        self._address, self._rng, self._good, self._judge = address, rng, good, judge
        self._mutator = Mutator(rng, good)

    def run(self, count: int, seen: Seen) -> None:
        started = time.monotonic()
        with grpc.insecure_channel(self._address) as channel:
            methods: dict[str, Any] = {name: channel.unary_unary(name) for name in _METHODS}
            waiting: deque[tuple[int, bytes, Any]] = deque()
            for k in range(count + count // (GOOD_ONE_IN - 1)):
                if len(waiting) == ON_THE_WAY:
                    self._judge_call(*waiting.popleft(), seen)
                number = k % len(self._good) if k % GOOD_ONE_IN == GOOD_ONE_IN - 1 else -1
                if number >= 0:
                    waiting.append((number, b"", methods[INFER].future(self._good[number], SECONDS)))
                    continue
                data, metadata = self._next()
                call = methods[self._rng.choice(_METHODS)].future(data, SECONDS, metadata=metadata)
                waiting.append((-1, data, call))
            while waiting:
                self._judge_call(*waiting.popleft(), seen)
        seen.seconds += time.monotonic() - started

    def _next(self) -> tuple[bytes, tuple[tuple[str, Any], ...]]:
        good = self._rng.choice(self._good)
        if self._rng.random() < 0.1:
            return good, (self._rng.choice(_METADATA),)
        return self._mutator.mutate(good), ()

    def _judge_call(self, number: int, data: bytes, call: Any, seen: Seen) -> None:
        error = call.exception()
        name = "OK" if error is None else error.code().name
        if number >= 0:
            right = error is None and self._judge(number, call.result())
            seen.good += right
            seen.wrong += not right
            if not right:
                seen.complain(f"a well-formed call got {name} {error}")
            return
        seen.sent += 1
        seen.codes[name] += 1
        if error is not None and name not in _GOOD_CODES:
            seen.complain(f"{name} {error.details()!r} to {data[:2000]!r}")


def recorded(address: str, message: bytes) -> bytes:
    """What a client sends in one connection with one call: the bytes as they go over the wire."""
    host, _, port = address.rpartition(":")
    sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def relay() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection((host, int(port))) as there:
                back = threading.Thread(target=_pump, args=(there, client, None), daemon=True)
                back.start()
                _pump(client, there, sent)
                back.join()

        thread = threading.Thread(target=relay, daemon=True)
        thread.start()
        with grpc.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}") as channel:
            channel.unary_unary(INFER)(message, timeout=SECONDS)
        thread.join(SECONDS)
    parts = []
    while not sent.empty():
        parts.append(sent.get())
    return b"".join(parts)


def _pump(source: socket.socket, sink: socket.socket, kept: queue.SimpleQueue[bytes] | None) -> None:
    try:
        while data := source.recv(1 << 16):
            if kept is not None:
                kept.put(data)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
