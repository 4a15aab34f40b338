"""Landlock holds for the thread that asks for it and those that it starts. So there must be no other when it is asked for."""

from __future__ import annotations

from pathlib import Path

from garrison.enclave.confine.step import Step


def one_thread() -> Step:
    """Whether this process has one thread. To be asked before Landlock; after seccomp no further thread can be made."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return Step("one-thread", "", f"the threads cannot be counted: {error.strerror}")
    count = next((line.split()[1] for line in lines if line.startswith("Threads:")), "?")
    if count != "1":
        return Step("one-thread", "", f"{count} threads run, and Landlock would hold for one of them")
    return Step("one-thread", "1 thread")
