"""Memory of a process that serves for long: what requests lay in stays with it for the next ones, once and not once a thread, and nothing that lives as long is looked at again and again."""

from __future__ import annotations

import ctypes
import gc

from garrison.limits import MIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
_MMAP_BYTES = 32 * MIB
_POOLS = 2
_OBJECTS_BEFORE_COLLECTION = 10_000


def settle() -> None:
    """To be called once all that is to be served has been loaded."""
    gc.collect()
    gc.freeze()  # what lives as long as the process: to look through it takes 20 ms, in which nobody is answered
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)  # requests leave next to no cycles behind
    keep_memory()


def share_pools() -> bool:
    """Have the C library keep two pools of memory, one for the main thread and one for all others. To be called before a process begins threads: a pool stays.

    By itself it begins another for each thread, up to eight a core (`mallopt(3)`, "M_ARENA_MAX"), and each keeps the most that was ever in use in it at once. gRPC's threads
    come and go, and now one and now another has the most to do: so hours after the start a process still grew by some MiB now and then, though nothing was lost.
    Processor time is the same with two pools: small blocks are kept by threads themselves.

    Returns:
        Whether the library does; another than glibc has no such setting.
    """
    return _set(_M_ARENA_MAX, _POOLS)


def keep_memory() -> bool:
    """Have the C library keep what is freed, where a body is shorter than 32 MiB; else a long one is mapped from the system anew, page by page, with each request.

    These are the values that glibc comes to by itself once a process has freed a block of that size (`mallopt(3)`, "M_MMAP_THRESHOLD"): a server with its model in
    the same process has, and one whose model is in an enclave has not. Of what is free at the end of a pool of memory (`share_pools`) 64 MiB at most stay with the process.

    Returns:
        Whether the library does; another than glibc has no such setting, and need not have the need.
    """
    return _set(_M_MMAP_THRESHOLD, _MMAP_BYTES) and _set(_M_TRIM_THRESHOLD, 2 * _MMAP_BYTES)


def _set(option: int, value: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(option, value))
