"""The inner program of an enclave, started from outside. Loads little, so that it can be the first thing that a server does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import garrison
from garrison.enclave import secret_heap
from garrison.enclave.log import JSON, VARIABLE, wants_json
from garrison.enclave.log_relay import relay
from garrison.errors import IsolationError

WORKER = "garrison.enclave.worker"
LOG_SECONDS = 1.0
"""So long is waited for the rest of the log of a process that has ended."""
SPARE_LINES = 32
"""Pipes beyond those of the front workers: each one who takes another's place uses one up."""
_PYTHON_FLAGS = ("-s", "-P", "-B")
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Has the C library ask for huge pages, where the system gives them to who asks: a large model's parameters take fewer entries of the processor's tables."""


class Running(Protocol):
    """What is used of a `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Program:
    """The inner program, running: it has loaded its libraries, or is about to, and waits for its start message.

    Attributes:
        pipe: ours.
        log: passes on what it writes to its standard error; ends soon after it.
        lines: for front workers.
    """

    process: Running
    pipe: socket.socket
    log: threading.Thread
    lines: tuple[socket.socket, ...] = ()

    def end(self) -> None:
        for end in (self.pipe, *self.lines):
            end.close()
        self.process.kill()
        self.process.wait()
        self.log.join(LOG_SECONDS)


def clean_environment(secret_bytes: int) -> dict[str, str]:
    """All that a confined program sees of the host's environment.

    Args:
        secret_bytes: size of its heap in secret memory, 0 for an ordinary heap.

    Raises:
        IsolationError: the library of the secret heap is not built.
    """
    environment = {
        "PYTHONPATH": str(Path(garrison.__file__).parent.parent),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TZ": "UTC0",
        "LANG": "C.UTF-8",
        "HOME": "/",
    }
    if wants_json():
        environment[VARIABLE] = JSON
    if secret_bytes:
        environment |= {
            "LD_PRELOAD": str(secret_heap.built_library()),
            "PYTHONMALLOC": "malloc",
            "GARRISON_SECRET_HEAP_BYTES": str(secret_bytes),
        }
    else:
        environment["GLIBC_TUNABLES"] = _HUGE_PAGES
    return environment


def command(module: str, *words: str) -> list[str]:
    """How a module of this package is run as a program of its own: without the user's site packages, current folder or bytecode."""
    return [sys.executable, *_PYTHON_FLAGS, "-m", module, *words]


def spawn(secret_bytes: int, lines: int) -> Program:
    """The program, with nothing of our environment, no terminal, and the pipes beside its log.

    Args:
        secret_bytes: see `clean_environment`.
        lines: how many front workers there are.
    """
    pairs = [socket.socketpair() for _ in range(1 + (lines + SPARE_LINES if lines else 0))]
    descriptors = [theirs.fileno() for _, theirs in pairs]
    ours = [pair[0] for pair in pairs]
    their_log, log = relay()
    try:
        process = subprocess.Popen(
            command(WORKER, *map(str, descriptors)),
            env=clean_environment(secret_bytes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=their_log,
            pass_fds=descriptors,
            cwd=os.sep,
            start_new_session=True,
        )
    except BaseException as error:
        for end in ours:
            end.close()
        if isinstance(error, OSError):
            raise IsolationError(f"the enclave's process cannot be started: {error.strerror}") from error
        raise
    finally:
        os.close(their_log)
        for _, theirs in pairs:
            theirs.close()
    return Program(process, ours[0], log, tuple(ours[1:]))
