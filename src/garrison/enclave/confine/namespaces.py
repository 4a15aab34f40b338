"""A network of its own, in which nothing is, and System V objects of its own."""

from __future__ import annotations

from pathlib import Path

from garrison.enclave.confine.kernel import library_call
from garrison.enclave.confine.step import Step

CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
_HOME = Path("/proc/self/ns")
_KINDS = {"network": "net", "ipc": "ipc"}


def own_namespaces(*, by_user_namespace: bool = False) -> tuple[Step, ...]:
    """Leave the machine's network and System V objects.

    Args:
        by_user_namespace: make a user namespace for it, which takes no rights where the system allows it. All capabilities are held in
            it then, and should be dropped; no other user can be had any more. Wants one thread.
    """
    before = _present()
    flags = CLONE_NEWNET | CLONE_NEWIPC | (CLONE_NEWUSER if by_user_namespace else 0)
    refused = "it was refused"
    try:
        library_call("unshare", flags)
    except OSError as error:
        refused = str(error)
    after = _present()
    way = "unshare in a user namespace" if by_user_namespace else "unshare"
    return tuple(_step(name, before[name], after[name], way, refused) for name in _KINDS)


def _present() -> dict[str, str]:
    found = {}
    for name, kind in _KINDS.items():
        try:
            found[name] = str((_HOME / kind).readlink())
        except OSError:
            found[name] = ""
    return found


def _step(name: str, before: str, after: str, way: str, refused: str) -> Step:
    if before and after and before != after:
        return Step(name, way)
    return Step(name, "", f"a namespace cannot be made ({refused}): start the server as root, or allow user namespaces")
