"""What a defense remembers of callers: bounded, and able to leave the process as bytes and to come back.

A defense declares a record (a `msgspec.Struct`, one a caller) and gives a fresh table of them in `Defense.fresh_state`; the pipeline makes one
for each chain and hands it in with every `View`. The rest (snapshots, their seal, the way to the disk and back) is not the defense's business.

    class Seen(msgspec.Struct, forbid_unknown_fields=True):
        rows: int = 0

    class Watch(RecordDefense, frozen=True):
        def fresh_state(self, facts):
            return Callers(Seen, version=1, most=4096)

Invariants: no more than `most` callers are remembered, and whom nothing was asked of for longest is forgotten first; what was dumped by another version,
or is not what a dump looks like, is not loaded, and nothing of it is.

Not covered: one record is as large as its defense lets it grow. Who asks under many names pushes others out.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from garrison.errors import StateError
from garrison.limits import MIB

MOST_STATE_BYTES = 15 * MIB
"""Longest dump of a whole chain: sealed, it must fit into any message to an enclave (16 MiB at least)."""
SECRET_BYTES = 32
MOST_CALLERS = 65_536
_MOST_NAME = 1024

Record = TypeVar("Record", bound=msgspec.Struct)
Kind = TypeVar("Kind")


class State(Protocol):
    """What a defense keeps between batches. Used by one thread at a time."""

    @property
    def changes(self) -> int:
        """Grows with every change; equal numbers mean that there is nothing new to keep."""
        ...

    def dump(self) -> bytes:
        """All of it, with the version of its form."""
        ...

    def load(self, data: bytes) -> None:
        """Take the place of all that is remembered.

        Raises:
            StateError: these bytes are no dump of this version; what is remembered is as before.
        """
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...


class Callers(Generic[Record]):
    """A record a caller, for so many callers.

    Args:
        record: the type of a record. Its fields have defaults, and its `__post_init__` refuses (ValueError) what cannot be.
        version: of the record's form and meaning; another version's dump is not loaded.
        most: callers that are remembered, 1 to `MOST_CALLERS`.

    Attributes:
        secret: `SECRET_BYTES` random bytes, to key digests of inputs with. Part of the dump, so that digests can be compared after a restart.
    """

    def __init__(self, record: type[Record], *, version: int, most: int) -> None:
        if not 1 <= most <= MOST_CALLERS:
            raise ValueError(f"expected 1 to {MOST_CALLERS} callers, found {most}")
        self._record = record
        self._version = version
        self._most = most
        self._decoder: Any = msgspec.msgpack.Decoder(tuple[int, bytes, list[tuple[str, record]]])  # type: ignore[valid-type]
        self._changes = 0
        self._records: OrderedDict[str, Record] = OrderedDict()
        self.secret = secrets.token_bytes(SECRET_BYTES)

    @property
    def changes(self) -> int:
        return self._changes

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        """Callers and their records, who asked longest ago first."""
        return iter(self._records.items())

    def get(self, caller: str) -> Record | None:
        """The record to look at, if there is one."""
        return self._records.get(caller)

    def of(self, caller: str) -> Record:
        """The record to be changed; a fresh one for whom none is remembered."""
        self._changes += 1
        found = self._records.get(caller)
        if found is not None:
            self._records.move_to_end(caller)
            return found
        if len(self._records) >= self._most:
            self._records.popitem(last=False)
        made = self._records[caller] = self._record()
        return made

    def dump(self) -> bytes:
        return msgspec.msgpack.encode((self._version, self.secret, list(self._records.items())))

    def load(self, data: bytes) -> None:
        try:
            version, secret, found = self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StateError("what was kept of callers is not in the form that this defense writes") from error
        if version != self._version:
            raise StateError(f"what was kept of callers has version {version}, and this defense reads {self._version}")
        records: OrderedDict[str, Record] = OrderedDict(found)
        if len(secret) != SECRET_BYTES or len(found) > self._most or len(records) != len(found):
            raise StateError(f"what was kept holds {len(found)} callers; expected at most {self._most}, each once")
        if any(len(name) > _MOST_NAME for name in records):
            raise StateError("what was kept holds a caller's name that is longer than any can be")
        self._records, self.secret = records, secret
        self._changes += 1

    def clear(self) -> None:
        self._records = OrderedDict()
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._changes += 1


_DUMPS = msgspec.msgpack.Decoder(dict[str, bytes])


class ChainState:
    """The states of a chain, by the name of the defense.

    Args:
        states: of the defenses that keep any.
    """

    def __init__(self, states: Mapping[str, State]) -> None:
        self._states = dict(states)

    def __bool__(self) -> bool:
        return bool(self._states)

    def find(self, kind: type[Kind]) -> Kind | None:
        """The state of that kind."""
        return next((state for state in self._states.values() if isinstance(state, kind)), None)

    @property
    def changes(self) -> int:
        """See `State.changes`."""
        return sum(state.changes for state in self._states.values())

    def clear(self) -> None:
        for state in self._states.values():
            state.clear()

    def dump(self) -> bytes:
        """All states.

        Raises:
            StateError: they are longer than `MOST_STATE_BYTES`.
        """
        data = msgspec.msgpack.encode({name: state.dump() for name, state in self._states.items()})
        if len(data) > MOST_STATE_BYTES:
            raise StateError(f"what is kept of callers takes {len(data)} bytes; at most {MOST_STATE_BYTES} are written")
        return data

    def load(self, data: bytes) -> dict[str, str]:
        """Put back what was dumped. A defense whose part cannot be used begins anew.

        Returns:
            By name of such a defense, why.
        """
        try:
            dumps = _DUMPS.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            dumps = {}
        refused = {}
        for name, state in self._states.items():
            try:
                if name not in dumps:
                    raise StateError("nothing was kept of it")
                state.load(dumps[name])
            except StateError as error:
                state.clear()
                refused[name] = str(error)
        return refused
