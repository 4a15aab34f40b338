import ctypes
import subprocess
import sys

import pytest

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


def page_faults(how: str) -> int:
    """Of 64 bodies of 147 pages each, 8 at once, in a process that has had as many before."""
    command = [sys.executable, "-c", PAGE_FAULTS, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc: it keeps memory by rules of its own")
def test_bodies_lie_in_the_memory_of_those_before() -> None:
    assert page_faults("kept") < 200
    assert page_faults("as it is") > 2_000, "the control arm: so many it takes without"
