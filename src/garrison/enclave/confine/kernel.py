"""Calls to the kernel that Python does not offer, by ctypes. Linux alone."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE, PR_SET_DUMPABLE = 3, 4
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 38, 39
# These numbers are the same on every architecture.
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_RESTRICT_SELF = 444, 446
SYS_MEMFD_SECRET = 447

_libc = ctypes.CDLL(None, use_errno=True)


def syscall(number: int, *arguments: int) -> int:
    """A system call of whole numbers and addresses.

    Raises:
        OSError: the kernel refused, with its errno.
    """
    return _checked(_libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments)))


def prctl(option: int, value: int = 0, pointer: object = None) -> int:
    """`prctl(2)`.

    Raises:
        OSError: the kernel refused.
    """
    third = ctypes.c_ulong(0) if pointer is None else pointer
    return _checked(_libc.prctl(option, ctypes.c_ulong(value), third, ctypes.c_ulong(0), ctypes.c_ulong(0)))


def library_call(name: str, *arguments: object) -> int:
    """A function of the C library that answers a negative number where it fails.

    Raises:
        OSError: it failed.
    """
    return _checked(getattr(_libc, name)(*arguments))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
