import ctypes
import os
import subprocess
import sys

import pytest
from tests.pools import pools

PAGE_FAULTS = """
import resource, sys
from garrison.enclave.memory import keep_memory

def bodies():
    for _ in range(8):
        held = [bytearray(600_000) for _ in range(8)]

if sys.argv[1] == "kept" and not keep_memory():
    raise SystemExit("it says that it does not")
bodies()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bodies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


THREADS = """
import sys, threading
from garrison.enclave.memory import share_pools

if sys.argv[1] == "shared" and not share_pools():
    raise SystemExit("it says that it does not")
together = threading.Barrier(7)

def work():
    held = bytearray(100_000)
    together.wait()
    together.wait()

for _ in range(6):
    threading.Thread(target=work).start()
together.wait()
print("all are there", flush=True)
sys.stdin.read()
together.wait()
"""
GLIBC = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc: it keeps memory by rules of its own"
)


def pools_of_six_threads(how: str) -> int:
    command = [sys.executable, "-c", THREADS, how]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=plain) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "all are there\n"
        return pools(process.pid)


def page_faults(how: str) -> int:
    """Of 64 bodies of 147 pages each, 8 at once, in a process that has had as many before."""
    command = [sys.executable, "-c", PAGE_FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@GLIBC
def test_bodies_lie_in_the_memory_of_those_before() -> None:
    assert page_faults("kept") < 200
    assert page_faults("as it is") > 2_000, "the control arm: so many it takes without"


@GLIBC
def test_threads_share_one_pool_of_memory() -> None:
    assert pools_of_six_threads("shared") == 1
    assert pools_of_six_threads("as it is") == 6, "the control arm: one each"
