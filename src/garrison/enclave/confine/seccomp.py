"""seccomp: the process may ask of the kernel what is listed here, and nothing else.

A list of what is allowed, not of what is not: memory that cannot be executed, the sockets and files that are open already, waiting,
time, randomness, ending. Every other call fails with EPERM. The filter is classic BPF (seccomp(2)), assembled here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from garrison.enclave.confine.kernel import syscall
from garrison.enclave.confine.step import Step

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOWED: dict[str, tuple[int, int]] = {
    # name: (x86_64, aarch64); the frequent ones first
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "read": (0, 63),
    "write": (1, 64),
    "futex": (202, 98),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "preadv2": (327, 286),
    "munmap": (11, 215),
    "madvise": (28, 233),
    "brk": (12, 214),
    "mremap": (25, 216),
    "getrandom": (318, 278),
    "readv": (19, 65),
    "writev": (20, 66),
    "lseek": (8, 62),
    "close": (3, 57),
    "fstat": (5, 80),
    "shutdown": (48, 210),
    "ppoll": (271, 73),
    "pselect6": (270, 72),
    "epoll_wait": (232, 22),  # by the name of epoll_pwait on aarch64
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "set_robust_list": (273, 99),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
_NOT_EXECUTABLE = {"mmap": (9, 222), "mprotect": (10, 226)}
_OWN_PROCESS = {"tgkill": (234, 131)}
"""Only at this process: how the C library aborts."""

_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _THIRD_ARGUMENT = 0, 4, 16, 32
_PROT_EXEC = 4
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_LITTLE_ENDIAN = "<HBBI"


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def program(machine: str, process: int) -> bytes:
    """The filter for one architecture.

    Args:
        machine: "x86_64" or "aarch64".
        process: id of the process that may send signals to itself.
    """
    column = tuple(_ARCHITECTURES).index(machine)
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL)]
    code.append((_LOAD, 0, 0, _NUMBER))
    for numbers in _ALLOWED.values():
        code += [(_JUMP_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _ALLOW)]
    for numbers in _NOT_EXECUTABLE.values():
        code += _only_if(numbers[column], (_LOAD, 0, 0, _THIRD_ARGUMENT), (_JUMP_SET, 1, 0, _PROT_EXEC))
    for numbers in _OWN_PROCESS.values():
        code += _only_if(numbers[column], (_LOAD, 0, 0, _FIRST_ARGUMENT), (_JUMP_EQUAL, 0, 1, process))
    code.append((_RETURN, 0, 0, _REFUSE))
    return b"".join(struct.pack(_LITTLE_ENDIAN, *instruction) for instruction in code)


def _only_if(
    number: int, load: tuple[int, int, int, int], test: tuple[int, int, int, int]
) -> list[tuple[int, int, int, int]]:
    """One call that is allowed where the test falls through to the next instruction, and refused where it skips one."""
    return [(_JUMP_EQUAL, 0, 4, number), load, test, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]


def filter_calls() -> Step:
    """Allow what is listed from here on. Counts for all threads of this process; wants no-new-privileges. The last step: it forbids the others."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return Step("seccomp", "", f"there is no list of calls for {machine}, only for {', '.join(_ARCHITECTURES)}")
    code = program(machine, os.getpid())
    filters = _Program(len(code) // 8, ctypes.c_char_p(code))
    try:
        syscall(_SECCOMP[machine], _SET_MODE_FILTER, _ALL_THREADS, ctypes.addressof(filters))
    except OSError as error:
        return Step("seccomp", "", f"the kernel refuses ({error.strerror}): it takes one with CONFIG_SECCOMP_FILTER")
    return (
        Step("seccomp", f"{_count()} calls allowed")
        if _holds()
        else Step("seccomp", "", "a forbidden call still works")
    )


def _count() -> int:
    return len(_ALLOWED) + len(_NOT_EXECUTABLE) + len(_OWN_PROCESS)


def _holds() -> bool:
    """A call that can never fail otherwise is refused."""
    return os.getppid() == -1
