"""What the guard remembers of callers, as it leaves the enclave and comes back: the inner side.

A snapshot is sealed under a key derived from the owner's misinformation key, or, where the model has none, from one that the host keeps; it is bound
to the model, the guard and a counter (`garrison.crypto.snapshots`). The host stores it (`garrison.enclave.snapshots`).

Invariants: what does not open is not used, and said; state that did not change makes no new snapshot; nothing is resumed once
a request was answered.

Not covered: the host may hand in an older snapshot, or none. It knows the key: it hands it in.
"""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager, nullcontext

import msgspec

from garrison.crypto.snapshots import SnapshotSeal
from garrison.errors import StateError
from garrison.guard.drifting.report import DriftReport
from garrison.guard.drifting.state import DriftState
from garrison.guard.pipeline import Pipeline
from garrison.guard.watching.book import Alarm
from garrison.guard.watching.state import WatchState

logger = logging.getLogger(__name__)


class CallerState:
    """The caller state of one service.

    Args:
        pipeline: whose defenses keep state, or do not.
        manifest, guard: digests of the model and of the guard that runs.
        key: the owner's misinformation key, where the model has one.

    Attributes:
        turn: to be held while a batch is judged and recorded, so that a snapshot never sees half of one.
    """

    def __init__(self, pipeline: Pipeline, manifest: str, guard: str, key: bytes | None) -> None:
        self._state = pipeline.state
        self._watch = pipeline.state.find(WatchState)
        self._drift = pipeline.state.find(DriftState)
        self._watch_in_shadow = any(link.state is self._watch and link.shadow for link in pipeline.links)
        self._must = pipeline.must_remember
        self._manifest, self._guard = manifest, guard
        self._key = key
        self._seal: SnapshotSeal | None = None
        self._counter = 0
        self._forgotten = self._taken = self._state.changes
        self.turn: AbstractContextManager[object] = threading.Lock() if self._state else nullcontext()

    @property
    def kept(self) -> bool:
        """Whether any defense of the chain keeps state."""
        return bool(self._state)

    def forget(self) -> None:
        """Forget all, as after a rehearsal."""
        self._state.clear()
        self._forgotten = self._taken = self._state.changes

    def resume(self, snapshot: bytes | None, host_key: bytes) -> None:
        """Go on from a snapshot. To be called once, before the first request.

        Args:
            snapshot: the latest that the host has; None for none.
            host_key: 32 bytes to derive the snapshots' key from, where the model has no key of its own.

        Raises:
            StateError: it was called before, or too late; or the snapshot cannot be used and a defense must remember.
        """
        if self._seal is not None or self._state.changes != self._forgotten:
            raise StateError("caller state is resumed once, and before the first request")
        try:
            self._seal = SnapshotSeal(host_key if self._key is None else self._key, self._manifest, self._guard)
        except ValueError as error:
            raise StateError(f"snapshots of caller state cannot be sealed: {error}") from error
        if self._key is None:
            logger.info(
                "snapshots of caller state: this model has no misinformation key, so their key lies beside them"
            )
        if snapshot is not None:
            self._open(self._seal, snapshot)
        self._taken = self._state.changes

    def take(self) -> bytes | None:
        """A sealed snapshot; None where nothing has changed since the last one, or before `resume`.

        Raises:
            StateError: the state is longer than may be.
        """
        with self.turn:
            changes = self._state.changes
            if self._seal is None or changes == self._taken:
                return None
            data = self._state.dump()
        self._counter += 1
        self._taken = changes
        return self._seal.seal(data, self._counter)

    def alarms(self) -> tuple[Alarm, ...]:
        """The first alarm of each caller by each detector of `watch`; none where the chain has no `watch`."""
        if self._watch is None:
            return ()
        with self.turn:
            found = self._watch.alarms()
        return tuple(msgspec.structs.replace(a, action="") for a in found) if self._watch_in_shadow else found

    def drift(self) -> DriftReport | None:
        """What `drift` has found; None where the chain has none."""
        if self._drift is None:
            return None
        with self.turn:
            return self._drift.report()

    def clear_alarm(self, caller: str) -> bool:
        """Forget all that `watch` knows of a caller. Whether there was anything."""
        if self._watch is None:
            return False
        with self.turn:
            cleared = self._watch.forget(caller)
        if cleared:
            logger.warning("watch.cleared: caller %a: the operator has cleared what was known of it", caller)
        return cleared

    def _open(self, seal: SnapshotSeal, snapshot: bytes) -> None:
        try:
            data, self._counter = seal.open(snapshot)
        except StateError as error:
            if self._must:
                raise StateError(f"{error}; {self._must[0]} does not begin without what it knew of callers") from error
            logger.warning("%s; callers are unknown again", error)
            return
        refused = self._state.load(data)
        for name, why in refused.items():
            if name in self._must:
                raise StateError(f"{name} does not begin without what it knew of callers: {why}")
            logger.warning("%s begins without what it knew of callers: %s", name, why)
        without = f", without {', '.join(refused)}" if refused else ""
        logger.info("caller state goes on from snapshot %d%s", self._counter, without)
