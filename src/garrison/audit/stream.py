"""One stream of questions, shared by trials that ask the same rows, and kept on disk.

A thief with 5,000 queries first asks the rows that a thief with 500 asks, and a thief who reads labels alone asks the same rows
as one who reads probabilities. So the service is asked once and each trial is charged by its own meter. An audit that was interrupted
in the middle of a trial begins the trial anew, asks the same rows, and is answered from the file as far as it had come: what was
paid for once is not paid for again.

Invariant: rows are replayed only while a trial asks exactly what was asked at that place before; from the first difference on the
service is asked. So an attack that repeats a question gets what the service says to the repetition.

Not checked: who wrote the file. A torn end, as of a process that was killed, is cut off.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from garrison.attacks.oracle import REFUSALS, AccountOracle, Answers, Oracle
from garrison.errors import AuditError, GarrisonError, RefusedError
from garrison.types import Array

_HEAD = struct.Struct("<II")
"""Length and CRC-32 of a record."""
_FIELDS = ("labels", "probabilities", "refused", "uncertain", "values")


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """One question and what was said to it: dtype, shape and bytes of each array, or the text and code of a refusal."""

    question: bytes
    arrays: dict[str, tuple[str, tuple[int, ...], bytes]]
    refusal: str = ""
    code: str = RefusedError.code


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that was asked, and where in the file its record begins."""

    question: bytes
    answer: Answers | GarrisonError
    place: int


class SharedStream:
    """Replays what was asked before, place by place.

    Attributes:
        asked: rows that the service itself was asked by this process.
    """

    def __init__(self, oracle: Oracle, log: Path | None = None) -> None:
        """Args:
        oracle: the service.
        log: file that keeps the stream; nothing is kept where None.
        """
        self.facts = oracle.facts
        self.asked = 0
        self._oracle = oracle
        self._known: list[_Asked] = []
        self._place = 0
        self._file: BinaryIO | None = None
        self._end = 0
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._file = log.open("a+b")
            self._read()

    def rewind(self) -> SharedStream:
        """Begin another trial."""
        self._place = 0
        return self

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def query(self, x: Array) -> Answers:
        """One request; a request that was asked at this place before is answered, or refused, from memory."""
        return self.query_as(x, 0)

    def query_as(self, x: Array, account: int) -> Answers:
        """`query` from an account."""
        place, question = self._place, _digest(x, account)
        if place == len(self._known) or self._known[place].question != question:
            self._forget(place)
            self.asked += len(x)
            self._keep(question, self._ask(x, account))
        self._place += 1
        found = self._known[place].answer
        if isinstance(found, GarrisonError):
            raise found
        return found

    def _ask(self, x: Array, account: int) -> Answers | GarrisonError:
        """A refusal is an answer; what failed is raised and will be asked again."""
        try:
            if account == 0:
                return self._oracle.query(x)
            if not isinstance(self._oracle, AccountOracle):
                raise AuditError(f"there is no account {account} to ask from")
            return self._oracle.query_as(x, account)
        except REFUSALS as refusal:
            return refusal

    def _forget(self, place: int) -> None:
        if place == len(self._known):
            return
        self._end = self._known[place].place
        del self._known[place:]
        if self._file is not None:
            self._file.truncate(self._end)

    def _keep(self, question: bytes, answer: Answers | GarrisonError) -> None:
        self._known.append(_Asked(question, answer, self._end))
        if self._file is None:
            return
        record = msgspec.msgpack.encode(_record(question, answer))
        self._file.write(_HEAD.pack(len(record), zlib.crc32(record)) + record)
        self._file.flush()
        self._end += _HEAD.size + len(record)

    def _read(self) -> None:
        if self._file is None:
            return
        for record, place in _records(self._file):
            kept = msgspec.msgpack.decode(record, type=_Kept)
            self._known.append(_Asked(kept.question, _answer(kept), place))
            self._end = place + _HEAD.size + len(record)
        self._file.truncate(self._end)


def _digest(x: Array, account: int) -> bytes:
    """What a question is known by; rows themselves would fill the memory."""
    digest = hashlib.blake2b(f"{account} {x.dtype.str} {x.shape}".encode(), digest_size=24)
    digest.update(np.ascontiguousarray(x).tobytes())
    return digest.digest()


def _records(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Whole records from the beginning, each with its place."""
    file.seek(0)
    place = 0
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        length, check = _HEAD.unpack(head)
        record = file.read(length)
        if len(record) < length or zlib.crc32(record) != check:
            return
        yield record, place
        place += _HEAD.size + length


def _record(question: bytes, answer: Answers | GarrisonError) -> _Kept:
    if isinstance(answer, GarrisonError):
        return _Kept(question, {}, str(answer) or "refused", answer.code)
    there = {name: getattr(answer, name) for name in _FIELDS if getattr(answer, name) is not None}
    return _Kept(question, {n: (a.dtype.str, a.shape, np.ascontiguousarray(a).tobytes()) for n, a in there.items()})


def _answer(kept: _Kept) -> Answers | GarrisonError:
    if kept.refusal:
        return next((kind for kind in REFUSALS if kind.code == kept.code), RefusedError)(kept.refusal)
    arrays: dict[str, Any] = dict.fromkeys(_FIELDS)
    for name, (dtype, shape, data) in kept.arrays.items():
        arrays[name] = np.frombuffer(data, dtype=dtype).reshape(shape)
    return Answers(**arrays)
