"""How many pools of memory the C library of a process has, as the system's list of its mappings shows them."""

from __future__ import annotations

from pathlib import Path

from garrison.limits import MIB

_RESERVED_BYTES = 64 * MIB


def pools(process: int) -> int:
    """Beside the main thread's. For each glibc reserves 64 MiB at a multiple of them, and opens these bit by bit; what is closed still ends at a multiple."""
    found = 0
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        place, rights, *_ = line.split()
        start, end = (int(word, 16) for word in place.split("-"))
        found += rights == "---p" and end % _RESERVED_BYTES == 0 and end - start > MIB
    return found
