"""Each step of the confinement: what works before it, and what is refused after."""

from __future__ import annotations

import errno
import shutil

import pytest
from tests.enclave.confine.children import child
from tests.enclave.processes import ENCLAVE_USER, needs_root

from garrison.enclave.confine.landlock import landlock_version

NOBODY = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
)
needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")


@needs_root
def test_the_user_is_dropped_for_good_and_all_capabilities_with_it() -> None:
    found = child(f"""
from garrison.enclave.confine.user import drop_capabilities, drop_user
before = tried(lambda: os.listdir("/proc/1/fd"))
steps = drop_user({ENCLAVE_USER}), drop_capabilities()
say(steps=steps, before=before, after=tried(lambda: os.listdir("/proc/1/fd")), back=tried(lambda: os.setuid(0)), ids=os.getresuid())
""")
    assert found["ids"] == [ENCLAVE_USER] * 3
    assert (found["before"], found["after"], found["back"]) == (0, errno.EACCES, errno.EPERM)
    assert [step["how"] for step in found["steps"]] == [f"uid {ENCLAVE_USER}", "none held"]


@needs_root
@pytest.mark.parametrize("number", [0, -1])
def test_root_is_no_user_to_drop_to(number: int) -> None:
    found = child(
        f"from garrison.enclave.confine.user import drop_user\nsay(step=drop_user({number}), ids=os.getresuid())"
    )
    assert found["step"]["how"] == ""
    assert found["ids"] == [0, 0, 0]


@needs_root
@needs_setpriv
def test_an_ordinary_user_cannot_drop_and_is_told_how_it_could() -> None:
    found = child("from garrison.enclave.confine.user import drop_user\nsay(step=drop_user(61234))", *NOBODY)
    assert found["step"]["how"] == ""
    assert "as root" in found["step"]["mend"]


def test_no_core_is_kept_and_no_privilege_gained() -> None:
    found = child("""
from garrison.enclave.confine.readers import no_core, no_new_privileges, not_dumpable
from garrison.enclave.confine.kernel import PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS, prctl
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
before = [prctl(PR_GET_DUMPABLE), prctl(PR_GET_NO_NEW_PRIVS)]
steps = not_dumpable(), no_core(), no_new_privileges()
say(steps=steps, before=before, after=[prctl(PR_GET_DUMPABLE), prctl(PR_GET_NO_NEW_PRIVS)], core=resource.getrlimit(resource.RLIMIT_CORE))
""")
    assert (found["before"], found["after"], found["core"]) == ([1, 0], [0, 1], [0, 0])
    assert all(step["how"] for step in found["steps"])


@needs_root
def test_a_change_of_user_after_it_would_undo_it() -> None:
    """Why the order is as it is: the kernel sets the flag anew at a change of user; a later exec makes it readable again."""
    found = child("""
from garrison.enclave.confine.kernel import PR_GET_DUMPABLE, prctl
from garrison.enclave.confine.readers import not_dumpable
not_dumpable()
said = os.popen("{} -c 'import ctypes; print(ctypes.CDLL(None).prctl(3))'".format(sys.executable)).read()
say(inside=prctl(PR_GET_DUMPABLE), after_exec=int(said))
""")
    assert (found["inside"], found["after_exec"]) == (0, 1)


NAMESPACES = """
from pathlib import Path
from garrison.enclave.confine.namespaces import own_namespaces
server = socket.create_server(("127.0.0.1", 0))
port = server.getsockname()[1]
before = tried(lambda: socket.create_connection(("127.0.0.1", port), timeout=20).close())
steps = own_namespaces(by_user_namespace=os.geteuid() != 0)
after = tried(lambda: socket.create_connection(("127.0.0.1", port), timeout=20).close())
say(steps=steps, before=before, after=after)
"""


@needs_root
def test_the_machines_network_is_out_of_reach() -> None:
    found = child(NAMESPACES)
    assert found["before"] == 0
    assert found["after"] in {errno.ENETUNREACH, errno.ECONNREFUSED}
    assert [step["how"] for step in found["steps"]] == ["unshare", "unshare"]


@needs_root
@needs_setpriv
def test_an_ordinary_user_has_it_by_a_user_namespace_or_is_told_so() -> None:
    found = child(NAMESPACES, *NOBODY)
    for step in found["steps"]:
        if step["how"]:
            assert step["how"] == "unshare in a user namespace"
            assert found["after"] in {errno.ENETUNREACH, errno.ECONNREFUSED}
        else:
            assert "allow user namespaces" in step["mend"]


UNKNOWN_USER = 65_534
LEAVE = """
from garrison.enclave.confine.leave import leave_surroundings
say(steps=leave_surroundings(61234), ids=os.getresuid())
"""


@needs_root
@needs_setpriv
@pytest.mark.parametrize(
    ("before", "how"),
    [((), "unshare"), (("setpriv", "--bounding-set=-sys_admin"), "unshare in a user namespace")],
    ids=["root", "root in a container"],
)
def test_namespaces_and_user_are_had_together(before: tuple[str, ...], how: str) -> None:
    found = child(LEAVE, *before)
    steps = {step["name"]: step for step in found["steps"]}
    assert steps["user"]["how"] == f"uid {ENCLAVE_USER}"
    assert steps["capabilities"]["how"] == "none held"
    assert set(found["ids"]) <= {ENCLAVE_USER, UNKNOWN_USER}  # the latter within a user namespace
    for name in ("network", "ipc"):
        assert steps[name]["how"] == how or "allow user namespaces" in steps[name]["mend"]


def test_a_second_thread_is_seen() -> None:
    found = child("""
from garrison.enclave.confine.one_thread import one_thread
before, stop = one_thread(), threading.Event()
threading.Thread(target=stop.wait, daemon=True).start()
say(before=before, after=one_thread())
os._exit(0)
""")
    assert found["before"]["how"] == "1 thread"
    assert found["after"]["how"] == ""
    assert "2 threads" in found["after"]["mend"]


@pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")
def test_landlock_leaves_no_path_and_what_is_open_stays_open() -> None:
    found = child("""
from garrison.enclave.confine.landlock import lock_paths
from garrison.enclave.confine.readers import no_new_privileges
def way(flags, path):
    return lambda: os.close(os.open(path, flags, 0o600))
ways = {"read": way(os.O_RDONLY, "/etc/passwd"), "list": lambda: os.listdir("/"), "write": way(os.O_RDWR | os.O_CREAT, f"/tmp/garrison-{os.getpid()}")}
kept = os.open("/etc/passwd", os.O_RDONLY)
before = {name: tried(call) for name, call in ways.items()}
os.unlink(f"/tmp/garrison-{os.getpid()}")
no_new_privileges()
step = lock_paths()
say(step=step, before=before, after={name: tried(call) for name, call in ways.items()}, kept=len(os.pread(kept, 10, 0)))
""")
    assert set(found["before"].values()) == {0}
    assert set(found["after"].values()) == {errno.EACCES}
    assert found["kept"] == 10
    assert found["step"]["how"].endswith("no path")
