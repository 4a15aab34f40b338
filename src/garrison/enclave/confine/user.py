"""Drop to a user of its own, who owns nothing and runs nothing else; and give up every capability.

Files, processes and System V objects of other users are then out of reach by the plainest rules of the kernel. Invariant: there
is no way back, because real, effective and saved id change together.
"""

from __future__ import annotations

import ctypes
import os

from garrison.enclave.confine.kernel import library_call
from garrison.enclave.confine.step import Step

_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITY_WORDS = 6
_Header = ctypes.c_uint32 * 2
_Words = ctypes.c_uint32 * _CAPABILITY_WORDS


def drop_user(number: int) -> Step:
    """Become the user and group of that number.

    Args:
        number: of a user that nothing else uses; it need not be in the user list.
    """
    if os.geteuid() != 0:
        return Step("user", "", "only root can change the user: start the server as root")
    if number <= 0:
        return Step("user", "", "the user of an enclave cannot be root: set server.enclave_user above 0")
    try:
        os.setgroups([])
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    except OSError as error:
        return Step(
            "user", "", f"the kernel refuses to change the user ({error.strerror}): allow CAP_SETUID, CAP_SETGID"
        )
    if os.getresuid() != (number,) * 3 or os.getresgid() != (number,) * 3 or os.getgroups():
        return Step("user", "", "the user was changed in part only")
    return Step("user", f"uid {number}")


def drop_capabilities() -> Step:
    """Give up all that is left of root's powers, also those within a user namespace of its own."""
    header = _Header(_CAPABILITY_VERSION_3, 0)
    try:
        library_call("capset", ctypes.byref(header), ctypes.byref(_Words()))
        held = _Words()
        library_call("capget", ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), ctypes.byref(held))
    except OSError as error:
        return Step("capabilities", "", f"capabilities cannot be given up: {error.strerror}")
    if any(held):
        return Step("capabilities", "", "some capabilities are still held")
    return Step("capabilities", "none held")
