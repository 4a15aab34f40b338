"""A folder is one audit's at a time, and a dead one holds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from garrison.audit.holding import LOCK, holding
from garrison.errors import AuditError, FolderInUseError

HOLDS = """
import sys, time
from pathlib import Path
from garrison.audit.holding import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_and_free_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "new" / ".cache"
    with holding(folder):
        with pytest.raises(FolderInUseError, match=r"new/\.cache"), holding(folder):
            pass
        with holding(tmp_path / "other"):
            pass
    with holding(folder):
        pass


def test_what_was_killed_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError), holding(tmp_path):
            pass
        other.kill()
        other.wait()
    assert (tmp_path / LOCK).exists()
    with holding(tmp_path):
        pass


def test_a_lock_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError, match="lock cannot be opened"), holding(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
