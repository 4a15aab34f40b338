"""What an enclave's program finds around it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from garrison.enclave.program import clean_environment

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ASKS = """
import pathlib
held = bytearray(16 << 20)
flags = [line.split()[1:] for line in pathlib.Path("/proc/self/smaps").read_text().splitlines() if line.startswith("VmFlags")]
print(any("hg" in found for found in flags))
"""


@pytest.mark.skipif(platform.libc_ver() < ("glibc", "2.35"), reason="the C library cannot ask for huge pages")
@pytest.mark.skipif(not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(), reason="nor need it")
def test_its_heap_asks_for_huge_pages() -> None:
    said = []
    for left_out in ("", "GLIBC_TUNABLES"):
        environment = {name: value for name, value in clean_environment(0).items() if name != left_out}
        said.append(subprocess.check_output([sys.executable, "-c", ASKS], env=environment, text=True).strip())
    assert said == ["True", "False"]
