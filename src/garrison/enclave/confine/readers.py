"""Against other processes that read this one's memory: not dumpable, no core file, and no new privileges.

Not stopped: root, who may debug any process, and what runs in the kernel.
"""

from __future__ import annotations

import resource

from garrison.enclave.confine.kernel import (
    PR_GET_DUMPABLE,
    PR_GET_NO_NEW_PRIVS,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    prctl,
)
from garrison.enclave.confine.step import Step


def not_dumpable() -> Step:
    """Refuse ptrace, /proc/PID/mem and process_vm_readv to everybody but root. A later setuid or exec would undo it."""
    try:
        prctl(PR_SET_DUMPABLE, 0)
        found = prctl(PR_GET_DUMPABLE)
    except OSError as error:
        return Step("not-dumpable", "", f"prctl is refused: {error.strerror}")
    return Step("not-dumpable", "PR_SET_DUMPABLE 0") if found == 0 else Step("not-dumpable", "", "it was not kept")


def open_own_files() -> None:
    """Let this process use its own /proc/self again, which a change of user has closed; until `not_dumpable`."""
    prctl(PR_SET_DUMPABLE, 1)


def no_core() -> Step:
    """No core file, now or later."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        return Step("no-core", "", f"the limit cannot be set: {error}")
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        return Step("no-core", "", "the limit was not kept")
    return Step("no-core", "RLIMIT_CORE 0")


def no_new_privileges() -> Step:
    """No program that this process might start gets more rights than it has."""
    try:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        found = prctl(PR_GET_NO_NEW_PRIVS)
    except OSError as error:
        return Step("no-new-privileges", "", f"prctl is refused: {error.strerror}")
    if found != 1:
        return Step("no-new-privileges", "", "it was not kept")
    return Step("no-new-privileges", "PR_SET_NO_NEW_PRIVS 1")
