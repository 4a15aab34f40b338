"""seccomp: what is listed works, all else is refused."""

from __future__ import annotations

import errno
import platform
import struct

import pytest
from tests.enclave.confine.children import child

from garrison.enclave.confine.seccomp import _ALLOWED, _ARCHITECTURES, _NOT_EXECUTABLE, _OWN_PROCESS, program

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000
PROCESS = 4711
known = pytest.mark.skipif(platform.machine() not in _ARCHITECTURES, reason="no list of calls for this architecture")


def run(code: bytes, number: int, architecture: int, arguments: tuple[int, ...] = ()) -> int:
    """The kernel's part, for the few instructions that are used."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(arguments + (0,) * 6)[:6])
    instructions = list(struct.iter_unpack("<HBBI", code))
    accumulator = at = 0
    while True:
        operation, yes, no, value = instructions[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x15:
            at += yes if accumulator == value else no
        elif operation == 0x45:
            at += yes if accumulator & value else no
        elif operation == 0x06:
            return int(value)
        else:
            raise AssertionError(f"an instruction that is not known: {operation:#x}")


@pytest.mark.parametrize("machine", _ARCHITECTURES)
def test_every_number_of_every_architecture_is_judged_as_listed(machine: str) -> None:
    column, architecture = list(_ARCHITECTURES).index(machine), _ARCHITECTURES[machine]
    code = program(machine, PROCESS)
    allowed = {numbers[column] for numbers in _ALLOWED.values()}
    checked = {numbers[column] for numbers in (*_NOT_EXECUTABLE.values(), *_OWN_PROCESS.values())}
    assert not allowed & checked
    for number in range(1024):
        if number not in checked:
            assert run(code, number, architecture) == (ALLOW if number in allowed else REFUSE), number
        assert run(code, number | 0x40000000, architecture) == REFUSE
        assert run(code, number, architecture ^ 1) == KILL


@pytest.mark.parametrize("machine", _ARCHITECTURES)
def test_memory_is_not_made_executable_and_others_are_not_signalled(machine: str) -> None:
    column, architecture = list(_ARCHITECTURES).index(machine), _ARCHITECTURES[machine]
    code = program(machine, PROCESS)
    for numbers in _NOT_EXECUTABLE.values():
        assert run(code, numbers[column], architecture, (0, 4096, 3)) == ALLOW
        assert run(code, numbers[column], architecture, (0, 4096, 7)) == REFUSE
        assert run(code, numbers[column], architecture, (0, 4096, 4)) == REFUSE
    for numbers in _OWN_PROCESS.values():
        assert run(code, numbers[column], architecture, (PROCESS, PROCESS, 6)) == ALLOW
        assert run(code, numbers[column], architecture, (1, 1, 9)) == REFUSE


TRY = """
import mmap, subprocess
from garrison.enclave.confine.readers import no_new_privileges
from garrison.enclave.confine.seccomp import filter_calls
pair = socket.socketpair()
def talk():
    pair[0].sendall(b"x")
    pair[1].recv(1)
bad = {
    "open": lambda: os.close(os.open("/dev/null", os.O_RDONLY)),
    "stat": lambda: os.stat("/"),
    "socket": lambda: socket.socket().close(),
    "fork": lambda: os.fork() or os._exit(0),
    "execute": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC).close(),
    "signal": lambda: os.kill(os.getppid(), 0),
    "user": lambda: os.getpriority(0, 0),
}
good = {"talk": talk, "memory": lambda: bytearray(1 << 25), "random": lambda: os.urandom(8), "map": lambda: mmap.mmap(-1, 4096).close()}
before = {name: tried(call) for name, call in (bad | good).items()}
no_new_privileges()
step = filter_calls()
say(step=step, before=before, bad={n: tried(c) for n, c in bad.items()}, good={n: tried(c) for n, c in good.items()})
"""


@known
def test_the_kernel_keeps_the_list() -> None:
    found = child(TRY)
    assert set(found["before"].values()) == {0}, "control: all of it works before"
    assert set(found["good"].values()) == {0}
    assert set(found["bad"].values()) == {errno.EPERM}
    assert "calls allowed" in found["step"]["how"]


@known
def test_an_architecture_without_a_list_is_reported_and_not_filtered() -> None:
    found = child("""
import platform
from garrison.enclave.confine.seccomp import filter_calls
platform.machine = lambda: "riscv64"
say(step=filter_calls(), after=tried(lambda: os.stat("/")))
""")
    assert found["step"]["how"] == ""
    assert "riscv64" in found["step"]["mend"]
    assert found["after"] == 0


@known
def test_a_thread_that_was_there_before_is_filtered_too() -> None:
    found = child("""
import threading
from garrison.enclave.confine.readers import no_new_privileges
from garrison.enclave.confine.seccomp import filter_calls
no_new_privileges()
begin, done, seen = threading.Event(), threading.Event(), {}
def other():
    seen["before"] = tried(lambda: os.stat("/"))
    done.set()
    begin.wait()
    seen["after"] = tried(lambda: os.stat("/"))
thread = threading.Thread(target=other)
thread.start()
done.wait()
step = filter_calls()
begin.set()
thread.join()
say(step=step, seen=seen)
""")
    assert found["step"]["how"]
    assert found["seen"] == {"before": 0, "after": errno.EPERM}
