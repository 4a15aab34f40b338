"""`--secret-heap`: the whole heap of an enclave in memory that no other process can read. See secret_heap.c, which does it.

The library is built by `garrison secret-heap build` into the user's cache and preloaded into the enclave's process. Its name carries
the digest of its source, so that a library of another version is never taken.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import secrets
import stat
import subprocess
from pathlib import Path

from garrison.enclave.confine.kernel import SYS_MEMFD_SECRET, syscall
from garrison.enclave.confine.step import Step
from garrison.errors import IsolationError

SOURCE = Path(__file__).with_name("secret_heap.c")
BUILD_COMMAND = "garrison secret-heap build"
_FLAGS = ("-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden")
_COMPILERS = ("cc", "gcc", "clang")
_BUILD_SECONDS = 60
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NAME = "secretmem"


def library_path() -> Path:
    """Where the library lies once it is built."""
    base = os.environ.get("GARRISON_CACHE", "") or os.environ.get("XDG_CACHE_HOME", "") or str(Path.home() / ".cache")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    return Path(base) / "garrison" / f"secret_heap-{platform.machine()}-{digest}.so"


def build() -> Path:
    """Compile the library.

    Raises:
        IsolationError: there is no compiler, or it fails.
    """
    target = library_path()
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    try:
        _compile(new)
        new.chmod(0o755)
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)
    return target


def built_library() -> Path:
    """The library, ready to be preloaded.

    Raises:
        IsolationError: it is not built, or somebody else could have changed it.
    """
    path = library_path()
    try:
        found = path.stat()
    except OSError as error:
        raise IsolationError(f"the library of the secret heap is not built: run `{BUILD_COMMAND}`") from error
    if found.st_uid not in {0, os.geteuid()} or found.st_mode & _WRITABLE_BY_OTHERS:
        raise IsolationError(f"{path} can be changed by other users; remove it and run `{BUILD_COMMAND}`")
    return path


def memory_is_secret() -> Step:
    """Whether this process's heap lies in secret memory, as its own map of memory shows."""
    mend = "start with --secret-heap"
    library = ctypes.CDLL(None)
    try:
        tell = library.garrison_secret_heap
    except AttributeError:
        return Step("secret-heap", "", mend)
    start, end = ctypes.c_size_t(), ctypes.c_size_t()
    tell(ctypes.byref(start), ctypes.byref(end))
    probes = {id(object()), ctypes.addressof(ctypes.create_string_buffer(1 << 20)), ctypes.addressof(ctypes.c_char())}
    if not all(start.value <= probe < end.value for probe in probes):
        return Step("secret-heap", "", "Python takes memory from elsewhere: PYTHONMALLOC=malloc must be set")
    if not _is_secret(start.value):
        return Step("secret-heap", "", "the heap lies in ordinary memory")
    return Step("secret-heap", f"memfd_secret, {(end.value - start.value) >> 20} MiB")


def secret_memory_offered() -> bool:
    """Whether the kernel gives secret memory at all."""
    try:
        os.close(syscall(SYS_MEMFD_SECRET, 0))
    except OSError:
        return False
    return True


def _is_secret(address: int) -> bool:
    with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            first, _, last = line.split(maxsplit=1)[0].partition("-")
            if int(first, 16) <= address < int(last, 16):
                return _NAME in line
    return False


def _compile(target: Path) -> None:
    chosen = os.environ.get("CC")
    for compiler in (chosen,) if chosen else _COMPILERS:
        try:
            done = subprocess.run(
                [compiler, *_FLAGS, "-o", str(target), str(SOURCE)],
                capture_output=True,
                text=True,
                timeout=_BUILD_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            continue
        if done.returncode:
            raise IsolationError(f"{compiler} cannot build the secret heap: {done.stderr.strip()[:2000]}")
        return
    raise IsolationError("there is no C compiler here: install gcc or clang, or name one by CC")
