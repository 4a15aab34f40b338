"""Steps of the confinement cannot be undone, so each test takes them in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_BEGIN = """
import ctypes, json, os, resource, signal, socket, sys, threading
import msgspec
def tried(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0
"""


def child(code: str, *before: str) -> dict[str, Any]:
    """What a program says that ends with `say(...)`.

    Args:
        before: words in front of the command, such as setpriv and its options.
    """
    program = (
        f"{_BEGIN}\ndef say(**found):\n    os.write(1, json.dumps(found, default=msgspec.to_builtins).encode())\n{code}"
    )
    done = subprocess.run([*before, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
