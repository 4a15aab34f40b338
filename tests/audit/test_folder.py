"""What an audit's folder is asked before the work."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.audit import folder
from garrison.audit.folder import check_folder
from garrison.errors import AuditError, MissingExtraError


def test_a_folder_that_takes_files_passes_and_one_that_cannot_be_is_refused(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="no report can be written"):
        check_folder(tmp_path / "file")


def test_a_missing_package_shows_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise MissingExtraError(name, "audit")

    monkeypatch.setattr(folder, "load_format", missing)
    with pytest.raises(MissingExtraError):
        check_folder(tmp_path)
