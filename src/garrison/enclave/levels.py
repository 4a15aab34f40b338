"""How well a model is kept apart from the server: the one place where levels are defined.

    none                  the server's own process
    process-basic         a process of its own that other users' and its own user's processes cannot read
    process               also: a user, a network and IPC namespace of its own, no capability, no path, few system calls
    process-secret-heap   also: its heap cannot be read by root from outside
    hardware              a trusted execution environment, whose evidence says so

Each level has all that the one before has. A level is what was probed, never what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from garrison.errors import IsolationError

BASIC = ("not-dumpable", "no-core", "no-new-privileges")
FULL = (*BASIC, "network", "ipc", "user", "capabilities", "one-thread", "landlock", "seccomp")
SECRET = (*FULL, "secret-heap")
NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "process-basic": BASIC,
    "process": FULL,
    "process-secret-heap": SECRET,
    "hardware": (),
}
LEVELS = tuple(NEEDS)
HARDWARE_TECHNOLOGIES = frozenset({"snp", "tdx", "sgx", "nitro"})
NONE, HARDWARE = LEVELS[0], LEVELS[-1]
WEAK = "process-weak"
"""A process of its own that has not even the basic level."""

_WORDS = {
    "not-dumpable": "protection from readers",
    "no-core": "a ban on core files",
    "no-new-privileges": "a ban on new privileges",
    "network": "a network of its own",
    "ipc": "an IPC namespace of its own",
    "user": "a user of its own",
    "capabilities": "the loss of capabilities",
    "one-thread": "a single thread",
    "landlock": "Landlock",
    "seccomp": "seccomp",
    "secret-heap": "a secret heap",
}


def process_level(capabilities: Mapping[str, str]) -> str:
    """The highest level of a process with these capabilities; `WEAK` where it has none."""
    names = ("process-secret-heap", "process", "process-basic")
    return next((name for name in names if not lacking(name, capabilities)), WEAK)


def lacking(level: str, capabilities: Mapping[str, str]) -> tuple[str, ...]:
    """The capabilities that a level needs and that are not there."""
    return tuple(name for name in NEEDS[level] if not capabilities.get(name))


def isolation_name(capabilities: Mapping[str, str]) -> str:
    """What a process calls its isolation: its level, and in words what keeps it from being a whole `process`."""
    level, missing = process_level(capabilities), lacking("process", capabilities)
    return f"{level}: without {', '.join(_WORDS[name] for name in missing)}" if missing else level


def level_reached(isolation: str, technology: str) -> str:
    """The level of a service card's isolation and technology."""
    if technology in HARDWARE_TECHNOLOGIES:
        return HARDWARE
    level = isolation.partition(":")[0]
    return level if level in NEEDS and level != HARDWARE else NONE


def check_level(
    wanted: str, isolation: str, technology: str, capabilities: Mapping[str, str], mend: Mapping[str, str]
) -> None:
    """Refuse an isolation that is below what is asked for.

    Args:
        wanted: one of `LEVELS`.
        mend: by capability, what would help.

    Raises:
        IsolationError: it is below; says what is missing and how to mend it.
    """
    reached = level_reached(isolation, technology)
    if LEVELS.index(reached) >= LEVELS.index(wanted):
        return
    raise IsolationError(
        f"{wanted!r} is required and {isolation!r} is what this gives; {_help(wanted, capabilities, mend)}"
    )


def _help(wanted: str, capabilities: Mapping[str, str], mend: Mapping[str, str]) -> str:
    if wanted == HARDWARE:
        return "it takes a machine with trusted hardware and its backend"
    if not capabilities:
        return "choose --isolation process"
    missing: Sequence[str] = lacking(wanted, capabilities)
    return "; ".join(f"without {_WORDS[name]}: {mend.get(name, 'not known why')}" for name in missing)
