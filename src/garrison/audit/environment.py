"""What an audit ran on: versions and machine. Part of a trial's key, because another version may give another clone."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from garrison import __version__

_SOFTWARE = ("numpy", "torch", "onnxruntime")


def versions() -> dict[str, str]:
    """Versions of Garrison and of what computes for it; what is not installed is left out."""
    found = {"garrison": __version__}
    for name in _SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(cpu_threads: int) -> dict[str, str]:
    """Versions, system and processors. Holds no name of the machine or its user."""
    return versions() | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": str(os.cpu_count()),
        "threads": str(cpu_threads),
    }
