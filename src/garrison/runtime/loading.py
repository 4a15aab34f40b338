"""Brings parameters in while the segment before still computes: on a thread of its own, where there is a second core.

    loader = Loader(store)
    loader.start_thread()
    with loader.run(loads) as turn:
        turn.wait(0)            # the first segment's parameters are there, and were checked
        ...                     # compute
        turn.done(0)            # their place may be overwritten

Without the thread `wait` loads, and all is done in turn. In either case the copy, the check and the zeros where it fails are `VerifiedStore.load`.

Invariants: parameters are handed out only after this very run's check of them; a place is overwritten only after the segment that used it is
done; one run at a time; no thread is left in the middle of a load when a run ends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from garrison.runtime.store import Chunk, VerifiedStore


@dataclass(frozen=True, slots=True)
class Load:
    """The parameters that one segment needs.

    Attributes:
        chunks: empty where all of them stay in memory.
        target: where to.
        after: how many segments must be done before the target may be overwritten.
    """

    chunks: tuple[Chunk, ...]
    target: memoryview
    after: int = 0


class Turn:
    """One run's loads, in order. Made by `Loader.run`."""

    def __init__(self, store: VerifiedStore, loads: Sequence[Load], *, ahead: bool) -> None:
        self._store, self._loads, self._ahead = store, loads, ahead
        self._loaded, self._free = threading.Semaphore(0), threading.Semaphore(0)
        self._failed: BaseException | None = None
        self._given_up = False

    def wait(self, number: int) -> None:
        """Returns when a segment's parameters are there.

        Raises:
            BundleError: they are not what was put outside. The place holds zeros.
        """
        load = self._loads[number]
        if not load.chunks:
            return
        if not self._ahead:
            self._store.load(load.chunks, load.target)
            return
        self._loaded.acquire()
        if self._failed is not None:
            raise self._failed

    def done(self, number: int) -> None:
        """A segment has run, and needs its parameters no more."""
        del number  # they run in order
        if self._ahead:
            self._free.release()

    def give_up(self) -> None:
        """Nothing more is wanted; the thread comes to an end soon."""
        self._given_up = True
        self._free.release()

    def load_all(self) -> None:
        """What the thread does."""
        free = 0
        for load in self._loads:
            if not load.chunks:
                continue
            while free < load.after and not self._given_up:
                self._free.acquire()
                free += 1
            if self._given_up:
                return
            try:
                self._store.load(load.chunks, load.target)
            except BaseException as error:  # noqa: BLE001  raised again where it is waited for
                self._failed = error
                return
            finally:
                self._loaded.release()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Loader:
    """Loads for all graphs that share a buffer.

    Args:
        store: where the parameters are.
    """

    def __init__(self, store: VerifiedStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._wanted, self._finished = threading.Semaphore(0), threading.Semaphore(0)
        self._turn: Turn | None = None
        self._thread: threading.Thread | None = None

    def start_thread(self) -> bool:
        """Load ahead from here on, if this process may use two cores; whether it does. The thread ends with `stop_thread`, or with the process."""
        if self._thread is None and cores() > 1:
            self._thread = threading.Thread(target=self._serve, name="parameters", daemon=True)
            self._thread.start()
        return self._thread is not None

    def stop_thread(self) -> None:
        """End the thread, if there is one, after the run that it loads for; whatever runs later loads in turn."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                self._wanted.release()
                thread.join()

    @contextmanager
    def run(self, loads: Sequence[Load]) -> Iterator[Turn]:
        """One run of a graph; waits until another's has ended."""
        with self._lock:
            ahead = self._thread is not None and any(load.chunks for load in loads)
            turn = Turn(self._store, loads, ahead=ahead)
            if not ahead:
                yield turn
                return
            self._turn = turn
            self._wanted.release()
            try:
                yield turn
            finally:
                turn.give_up()
                self._finished.acquire()

    def _serve(self) -> None:
        while True:
            self._wanted.acquire()
            turn, self._turn = self._turn, None
            if turn is None:  # nothing is wanted any more
                return
            turn.load_all()
            del turn
            self._finished.release()
