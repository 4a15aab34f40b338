"""Every size, time and count limit in one frozen value, with units.

`garrison.toml` may change them under `[limits]`. A limit is checked before the work that it bounds is begun.
"""

from __future__ import annotations

import math

import msgspec

MIB = 1024 * 1024


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of the service. All are inclusive upper bounds.

    Not covered: the number of open connections, which belongs to the operating system and a proxy in front.
    """

    request_body_bytes: int = 64 * MIB
    """Longest body of one HTTP request, in bytes."""
    request_json_bytes: int = 16 * MIB
    """Longest JSON part of one request, in bytes. Numbers in JSON take up to 16 times their length in memory while they are
    read; large tensors belong into the binary part, which is bounded by `request_body_bytes` alone."""
    request_rows: int = 16_384
    """Most rows (inputs to be scored) in one request."""
    json_depth: int = 16
    """Deepest nesting of lists in the JSON form of a tensor."""
    string_bytes: int = 256
    """Longest request id, tensor name, nonce or key, in bytes."""
    queue_requests: int = 1_024
    """Most requests that wait for the model; the next one is told to come again later. One caller may have as many waiting as there
    are places left, so at most half of them."""
    queue_seconds: float = 10.0
    """Longest time that a request waits for the model, in seconds; one that would wait longer is told to come again later."""
    queue_bytes: int = 256 * MIB
    """Most bytes of request bodies held at once, over all requests; the next one is told to come again later. A second request of a
    caller is taken only while its bodies take less than is left."""
    inline_rows: int = 64
    """Most rows that are scored on the event loop's own thread; larger batches go to a worker thread."""
    compute_rows: int = 256
    """Most rows in one run of the runtime; larger batches are run in slices, which bounds memory."""
    header_read_seconds: float = 30.0
    """Longest time in which a client must have sent its request's head, in seconds."""
    body_read_seconds: float = 60.0
    """Longest time in which a client must have sent its request's body, in seconds."""
    stop_seconds: float = 10.0
    """Longest time that a graceful stop waits for requests in flight, in seconds."""
    enclave_seconds: float = 60.0
    """Longest time that an enclave may take for one batch, in seconds; then it is ended, and a fresh one is started."""
    upstream_seconds: float = 10.0
    """Longest time that a gateway waits for one answer of the server that it guards, in seconds."""
    upstream_bytes: int = 16 * MIB
    """Longest answer that a gateway reads from that server, in bytes."""
    upstream_connections: int = 8
    """Most requests that a gateway has under way at that server for one model, where the model takes one row a request."""
    manifest_bytes: int = 4 * MIB
    """Longest manifest or signature of a bundle, in bytes."""
    key_offered_seconds: float = 1_800.0
    """How long an enclave names one HPKE key in new evidence, in seconds; then it makes another."""
    key_grace_seconds: float = 1_800.0
    """How much longer it opens what is sealed to that key, in seconds. A key ends after both times together."""
    key_least_seconds: float = 10.0
    """A key whose replay set is full is replaced early, but not before it has this age, in seconds."""
    replay_entries: int = 262_144
    """Most sealed requests that are remembered (16 bytes each, about 80 in memory) for one key; no more are opened with it."""
    sealed_clock_seconds: float = 900.0
    """Most by which the time in a sealed request may differ from the enclave's clock, in seconds."""
    session_seconds: int = 600
    """How long a session of sealed requests lasts, in seconds; never longer than the key that it began with."""
    session_requests: int = 16_384
    """Most sealed requests within one session, after its first."""
    sessions: int = 4_096
    """Most sessions that an enclave keeps, of all callers (about 2 KB each). Where there are so many, who has most makes room for who has least."""
    sessions_a_caller: int = 64
    """Most sessions of one caller; another one ends the one that this caller has not used for the longest time."""
    grpc_message_bytes: int = 4 * MIB
    """Longest message that is taken over gRPC, in bytes. Together with `grpc_requests` it bounds what calls can hold on to, before they count among `queue_bytes`."""
    grpc_requests: int = 256
    """Most calls over gRPC at once; the next one is told to come again later."""
    evidence_requests: int = 16
    """Most requests for evidence that wait for one model, of one caller as many as are left for others; the next one is told to come again later."""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            if not 0 < getattr(self, field) < math.inf:
                raise ValueError(f"limits.{field} must be above 0 and finite, found {getattr(self, field)}")


DEFAULT_LIMITS = Limits()
