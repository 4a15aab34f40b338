"""Ports for servers that must be told theirs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def held_port() -> Iterator[int]:
    """A port of 127.0.0.1 that the kernel gives nobody else meanwhile, though nobody may listen at it: a connection to it is refused.

    A server that asks for it by its number and sets SO_REUSEADDR, as servers do, gets it, and gets it again after it was stopped.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def port() -> Iterator[int]:
    with held_port() as held:
        yield held
