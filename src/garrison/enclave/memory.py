"""Memory of a process that serves for long: what requests lay in stays with it for the next ones, and nothing that lives as long is looked at again and again."""

from __future__ import annotations

import ctypes
import gc

from garrison.limits import MIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MMAP_BYTES = 32 * MIB
_OBJECTS_BEFORE_COLLECTION = 10_000


def settle() -> None:
    """To be called once all that is to be served has been loaded."""
    gc.collect()
    gc.freeze()  # what lives as long as the process: to look through it takes 20 ms, in which nobody is answered
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)  # requests leave next to no cycles behind
    keep_memory()


def keep_memory() -> bool:
    """Have the C library keep what is freed, where a body is shorter than 32 MiB; else a long one is mapped from the system anew, page by page, with each request.

    These are the values that glibc comes to by itself once a process has freed a block of that size (`mallopt(3)`, "M_MMAP_THRESHOLD"): a server with its model in
    the same process has, and one whose model is in an enclave has not. Of what is free at the end of a pool of memory, of which
    a few threads have one each, 64 MiB at most stay with the process.

    Returns:
        Whether the library does; another than glibc has no such setting, and need not have the need.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, 2 * _MMAP_BYTES))
