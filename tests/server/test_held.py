"""The memory that bodies may take, shared by all callers."""

from __future__ import annotations

import pytest

from garrison.errors import UnavailableError
from garrison.server.held import HeldBytes


def test_one_caller_gets_half_and_leaves_room_for_others() -> None:
    held = HeldBytes(100)
    held.take("a", 60)
    with pytest.raises(UnavailableError):
        held.take("a", 1)  # has more than is left
    held.take("b", 30)
    with pytest.raises(UnavailableError):
        held.take("c", 11)
    held.give_back("a", 60)
    held.take("a", 40)
    assert held.bytes == 70
    for caller, length in (("a", 40), ("b", 30)):
        held.give_back(caller, length)
    assert held.bytes == 0
    held.take("a", 100)


def test_parts_of_one_body_do_not_stand_against_each_other() -> None:
    held = HeldBytes(100)
    held.take("a", 60)
    with pytest.raises(UnavailableError):
        held.take("a", 20)
    held.take("a", 20, own=60)
    assert held.bytes == 80
