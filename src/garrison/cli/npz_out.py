"""Files of arrays that commands write: whole or not at all, under the name that was given."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from garrison.errors import ConfigError
from garrison.types import Array


def check_writable(out: Path) -> None:
    """That OUT's folder takes a file. What is at OUT stays as it is until there are arrays.

    Raises:
        ConfigError: it does not.
    """
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
        if out.exists() and not (out.is_file() and os.access(out, os.W_OK)):
            raise ConfigError(f"-o {out}: cannot be written: it is no file, or may not be written to")
    except OSError as error:
        raise ConfigError(f"-o {out}: cannot be written: {error.strerror}") from error


def write_npz(out: Path, arrays: Mapping[str, Array]) -> None:
    """Write the arrays; what was at OUT is replaced.

    Raises:
        ConfigError: it cannot be written.
    """
    new = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        with new.open("xb") as file:  # a file: to a name without .npz numpy would append that
            np.savez_compressed(file, allow_pickle=False, **dict(arrays))
        new.replace(out)
    except OSError as error:
        raise ConfigError(f"-o {out}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
