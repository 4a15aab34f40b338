"""Landlock: no path may be opened any more, no port used, no process outside signalled. What is open stays open.

Reference: Documentation/userspace-api/landlock.rst of the Linux kernel. There is no rule, so nothing is allowed.
"""

from __future__ import annotations

import ctypes
import errno
import os

from garrison.enclave.confine.kernel import SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_RESTRICT_SELF, syscall
from garrison.enclave.confine.step import Step

_VERSION_FLAG = 1
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""By version, how many rights over files there are: bits from 0."""
_NETWORK_VERSION, _SCOPE_VERSION = 4, 6
_BOTH = 0b11
_MEND = "it takes Linux 5.13 or newer with Landlock among its security modules (lsm=landlock,...)"


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scope", ctypes.c_uint64))


def landlock_version() -> int:
    """The version that the kernel offers; 0 for none."""
    try:
        return syscall(SYS_LANDLOCK_CREATE_RULESET, 0, 0, _VERSION_FLAG)
    except OSError:
        return 0


def lock_paths() -> Step:
    """Allow nothing. Counts for this thread and what it starts, so it belongs where there is one thread; wants no-new-privileges."""
    version = landlock_version()
    if version == 0:
        return Step("landlock", "", _MEND)
    newest = max(_FS_RIGHTS)
    rules = _Ruleset(files=(1 << _FS_RIGHTS[min(version, newest)]) - 1)
    size = ctypes.sizeof(ctypes.c_uint64)
    if version >= _NETWORK_VERSION:
        rules.network, size = _BOTH, 2 * ctypes.sizeof(ctypes.c_uint64)
    if version >= _SCOPE_VERSION:
        rules.scope, size = _BOTH, 3 * ctypes.sizeof(ctypes.c_uint64)
    try:
        descriptor = syscall(SYS_LANDLOCK_CREATE_RULESET, ctypes.addressof(rules), size, 0)
        try:
            syscall(SYS_LANDLOCK_RESTRICT_SELF, descriptor, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        return Step("landlock", "", f"the kernel refuses ({error.strerror}): {_MEND}")
    return (
        Step("landlock", f"version {version}, no path")
        if _holds()
        else Step("landlock", "", "a path can still be opened")
    )


def _holds() -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    except OSError as error:
        return error.errno == errno.EACCES
    return False
