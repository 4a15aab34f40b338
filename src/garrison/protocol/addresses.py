"""Which addresses are this very machine's: there, and nowhere else, plain HTTP is taken."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host's name or address cannot lead beyond this machine. Names but `localhost` are not resolved: they are taken for others."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
