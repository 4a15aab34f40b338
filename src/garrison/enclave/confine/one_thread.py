"""Landlock and seccomp hold for the thread that asks for them and those that it starts. So there must be no other."""

from __future__ import annotations

from pathlib import Path

from garrison.enclave.confine.step import Step


def one_thread() -> Step:
    """Whether this process has one thread. To be asked before the two steps; seccomp allows no further thread."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return Step("one-thread", "", f"the threads cannot be counted: {error.strerror}")
    count = next((line.split()[1] for line in lines if line.startswith("Threads:")), "?")
    if count != "1":
        return Step("one-thread", "", f"{count} threads run, and Landlock and seccomp would hold for one of them")
    return Step("one-thread", "1 thread")
