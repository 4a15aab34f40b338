"""Whether a file with a secret is readable by those who run the service alone."""

from __future__ import annotations

import stat
from pathlib import Path


def why_not_private(file: Path) -> str:
    """What is wrong where everybody on this machine may read a file or write to it; "" where they may not.

    Looks at the mode alone: not at access control lists, nor at who may get to the file through its folders.
    """
    try:
        mode = file.stat().st_mode
    except OSError:
        return ""  # who reads it says why it cannot be read
    if stat.S_ISCHR(mode) or not mode & stat.S_IRWXO:  # a terminal, or /dev/null, is no secret
        return ""
    return f"everybody on this machine may read or change {file}: chmod o-rwx it"
