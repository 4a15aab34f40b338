"""What root, the same user and another user try on a running process."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can look into other users' processes: run as root")
ENCLAVE_USER = 61_234
OTHER_USER = 61_235
_PIECE, _PAGE = 1 << 24, 4096


@dataclass(frozen=True, slots=True)
class Scan:
    """Attributes:
    hits: how often the needle was found.
    read_bytes, refused_bytes: how much could be read, and how much could not.
    """

    hits: int
    read_bytes: int
    refused_bytes: int


def scan(process: int, needle: bytes) -> Scan:
    """Look for bytes in all that this process may read of another's memory."""
    hits = read = refused = 0
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        for line in lines:
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            if line.split()[1][0] != "r" or line.endswith(("[vvar]", "[vvar_vclock]", "[vsyscall]")):
                continue
            tail, at = b"", first
            while at < last:
                found = _read(memory.fileno(), at, min(_PIECE, last - at))
                hits += (tail + found).count(needle)
                tail = found[-len(needle) + 1 :]
                at, read = at + len(found), read + len(found)
                if not found:
                    at, refused = at + _PAGE, refused + _PAGE
    return Scan(hits, read, refused)


def _read(memory: int, start: int, length: int) -> bytes:
    try:
        return os.pread(memory, length, start)
    except OSError:
        return b""


PROBE = """
import ctypes, json, os, sys
process, user = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
if user:
    os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)

def said(result):
    return ctypes.get_errno() if result < 0 else 0

def opened():
    try:
        os.close(os.open(f"/proc/{process}/mem", os.O_RDONLY))
    except OSError as error:
        return error.errno
    return 0

def read_remotely():
    class Piece(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    buffer = ctypes.create_string_buffer(16)
    here, there = Piece(ctypes.addressof(buffer), 16), Piece(int(sys.argv[3]), 16)
    return said(libc.process_vm_readv(process, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))

def took_descriptor():
    pidfd = libc.syscall(434, process, 0)
    if pidfd < 0:
        return said(pidfd)
    taken = libc.syscall(438, pidfd, 0, 0)
    return said(taken)

def attached():
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    result = libc.ptrace(16, process, None, None)
    number, peeked = said(result), None
    if result >= 0:
        os.waitpid(process, 0x40000000)
        ctypes.set_errno(0)
        libc.ptrace(2, process, ctypes.c_void_p(int(sys.argv[3])), None)
        peeked = ctypes.get_errno()
        libc.ptrace(17, process, None, None)
    return number, peeked

answers = {"mem": opened(), "process_vm_readv": read_remotely(), "pidfd_getfd": took_descriptor()}
answers["ptrace"], peeked = attached()
if peeked is not None:
    answers["peek"] = peeked
print(json.dumps(answers))
"""


def probe(process: int, user: int, address: int | None = None) -> dict[str, int]:
    """By way, the errno with which a reader of that user is refused; 0 where it gets in. User 0 is root.

    Args:
        address: what is read, if it gets so far; None for some page that is there.
    """
    wanted = _some_address(process) if address is None else address
    found = subprocess.run(
        [sys.executable, "-S", "-c", PROBE, str(process), str(user), str(wanted)],
        capture_output=True,
        text=True,
        check=True,
    )
    answers: dict[str, int] = json.loads(found.stdout)
    return answers


def secret_address(process: int) -> int:
    """Where the secret heap of a process begins."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return next(int(line.partition("-")[0], 16) for line in lines if "secretmem" in line)


def _some_address(process: int) -> int:
    return int(Path(f"/proc/{process}/maps").read_text().partition("-")[0], 16)


class _PerfEvent(ctypes.Structure):
    """`struct perf_event_attr`, as far as a probe needs it."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("unused", ctypes.c_uint64 * 5),
        ("path", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("more", ctypes.c_uint64 * 5),
    )


PROBES = Path("/sys/bus/event_source/devices/uprobe/type")
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}


@contextmanager
def probed(process: int, function: str) -> Iterator[Callable[[], int]]:
    """Set a uprobe on a function of the C library in another process; gives how often it was reached since."""
    libc = ctypes.CDLL(None, use_errno=True)
    path, offset = _place(ctypes.cast(getattr(libc, function), ctypes.c_void_p).value or 0)
    name = ctypes.create_string_buffer(os.fsencode(path))
    event = _PerfEvent(
        type=int(PROBES.read_text()), size=ctypes.sizeof(_PerfEvent), path=ctypes.addressof(name), offset=offset
    )
    descriptor = libc.syscall(_PERF_EVENT_OPEN[platform.machine()], ctypes.byref(event), process, -1, -1, 0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "perf_event_open")
    try:
        yield lambda: int.from_bytes(os.read(descriptor, 8), sys.byteorder)
    finally:
        os.close(descriptor)


def _place(address: int) -> tuple[str, int]:
    """The file that an address of this process is mapped from, and the offset in it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, _, offset, _, _, path = line.split(maxsplit=5) if len(line.split()) > 5 else (*line.split(), "")
        first, last = (int(part, 16) for part in where.split("-"))
        if first <= address < last:
            return path, address - first + int(offset, 16)
    raise AssertionError("an address that is not mapped")
