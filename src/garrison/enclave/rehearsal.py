"""All steps of the confinement, taken by a process that serves nothing: what this machine gives, found by trying.

steps = rehearse()
"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec

from garrison.enclave import secret_heap
from garrison.enclave.confine.landlock import lock_paths
from garrison.enclave.confine.leave import leave_surroundings
from garrison.enclave.confine.one_thread import one_thread
from garrison.enclave.confine.readers import no_core, no_new_privileges, not_dumpable
from garrison.enclave.confine.seccomp import filter_calls
from garrison.enclave.confine.step import Step
from garrison.enclave.host import DEFAULT_USER
from garrison.enclave.program import clean_environment, command
from garrison.errors import IsolationError

MODULE = "garrison.enclave.rehearsal"
_SECONDS = 30
_HEAP_BYTES = 128 << 20
_DECODER = msgspec.json.Decoder(tuple[Step, ...])


def rehearse(user: int = DEFAULT_USER) -> tuple[Step, ...]:
    """Try all steps, with a secret heap where its library is built and the kernel gives it.

    Raises:
        IsolationError: not even a process can be started.
    """
    try:
        return _run(user, _HEAP_BYTES)
    except IsolationError as error:
        steps = _run(user, 0)
        return tuple(Step(s.name, "", str(error)) if s.name == "secret-heap" else s for s in steps)


def _run(user: int, secret_bytes: int) -> tuple[Step, ...]:
    environment = clean_environment(secret_bytes)
    try:
        done = subprocess.run(
            command(MODULE, str(user)), env=environment, capture_output=True, timeout=_SECONDS, check=True, cwd=os.sep
        )
    except subprocess.CalledProcessError as error:
        raise IsolationError(error.stderr.decode(errors="replace").strip()[-500:]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IsolationError(f"a confined process cannot be started: {error}") from error
    return _DECODER.decode(done.stdout)


def main() -> None:
    """The program: takes the steps in the worker's order and tells what came of them."""
    steps = [secret_heap.memory_is_secret(), *leave_surroundings(int(sys.argv[1]))]
    steps += [no_core(), no_new_privileges(), not_dumpable(), one_thread(), lock_paths(), filter_calls()]
    os.write(sys.stdout.fileno(), msgspec.json.encode(steps))


if __name__ == "__main__":
    main()
