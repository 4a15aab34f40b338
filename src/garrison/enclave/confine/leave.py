"""Leave the machine's surroundings and its users: namespaces, user and capabilities, in the order in which most can be had."""

from __future__ import annotations

from garrison.enclave.confine.namespaces import own_namespaces
from garrison.enclave.confine.step import Step
from garrison.enclave.confine.user import drop_capabilities, drop_user


def leave_surroundings(user: int) -> list[Step]:
    """Namespaces by root's right, if we have it; then the user; then, where it was not, namespaces by way of a user namespace.

    Not the other way round: within a user namespace there is no other user to become.
    """
    spaces = own_namespaces()
    dropped = drop_user(user)
    if not all(step.achieved for step in spaces):
        spaces = own_namespaces(by_user_namespace=True)
    return [*spaces, dropped, drop_capabilities()]
