"""What the program does with errors that no command foresaw, and with texts of others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.commands import fails, run, save

from garrison.cli import COMMANDS, main
from garrison.cli.output import DEFECT, plain, printable
from garrison.errors import ConfigError, KeyFileError, MissingExtraError
from garrison.server.key_file import MOST_FILE_BYTES


def test_printable_makes_control_characters_visible() -> None:
    assert printable("a\x1b[2Jb\u202e\x9bc\n") == "a\\x1b[2Jb\\u202e\\x9bc\\n"
    assert printable("a\nb\x07", lines=True) == "a\nb\\x07"
    assert printable("Grün") == "Grün"
    assert plain("[/x][red]y").plain == "[/x][red]y"


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(COMMANDS, "verify", "garrison.cli.nothing_here:x")
    monkeypatch.setattr(sys, "argv", ["garrison", "verify", "b"])
    monkeypatch.delenv("GARRISON_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == DEFECT
    assert "this is a defect; run again with --debug" in told
    assert "Traceback" not in told
    monkeypatch.setattr(sys, "argv", ["garrison", "verify", "b", "--debug"])
    with pytest.raises(ModuleNotFoundError):  # control: with --debug the traceback is to be seen
        main()


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_a_variable_asks_for_the_traceback(monkeypatch: pytest.MonkeyPatch, value: str, shown: bool) -> None:
    monkeypatch.setitem(COMMANDS, "verify", "garrison.cli.nothing_here:x")
    monkeypatch.setattr(sys, "argv", ["garrison", "verify", "b"])
    monkeypatch.setenv("GARRISON_DEBUG", value)
    with pytest.raises(ModuleNotFoundError if shown else SystemExit):
        main()


def test_help_lists_a_command_whose_packages_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "from garrison.errors import MissingExtraError\nraise MissingExtraError('pillow', 'audit')\n"
    (tmp_path / "lacking_an_extra.py").write_text(lines)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(COMMANDS, "audit", "lacking_an_extra:audit")
    told = run("--help")
    assert told.exit_code == 0
    assert "(not installed: it needs the extra 'audit')" in told.stdout
    assert "Check every byte of BUNDLE against a trusted key." in told.stdout
    assert "garrison[audit]" in fails(MissingExtraError, "audit", "--help")


def test_an_interruption_is_one_quiet_line(tmp_path: Path) -> None:
    rows = save(tmp_path / "rows.npz", x=np.zeros((2, 3)))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a server that never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        # A shell starts what runs in its background with the interruption ignored; whoever presses Ctrl-C does not.
        listening = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        words = [sys.executable, "-c", f"{listening}runpy.run_module('garrison', run_name='__main__')"]
        words += ["predict", url, str(rows)]
        asking = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            silent.settimeout(60)
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)  # it waits for the answer now
                asking.send_signal(signal.SIGINT)
                out, err = asking.communicate(timeout=60)
        finally:
            asking.kill()
            asking.communicate()
    assert (asking.returncode, out, err.strip()) == (130, "", "interrupted")


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from garrison.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_keygen_explains_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "a.pub").mkdir()
    assert "cannot be written" in fails(KeyFileError, "keygen", "-o", str(tmp_path / "file" / "owner"))
    assert "is a folder" in fails(KeyFileError, "keygen", "-o", str(tmp_path / "a"), "--force")
    assert not (tmp_path / "a.key").exists()
    assert "found a folder" in fails(KeyFileError, "keygen", "-o", "..")
    (tmp_path / "p").touch(0o600)
    (tmp_path / "p").write_bytes(b"x" * 2000)
    assert "at most 1023" in fails(
        KeyFileError, "keygen", "-o", str(tmp_path / "b"), "--passphrase-file", str(tmp_path / "p")
    )


def test_keys_explains_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "key file" in fails(ConfigError, "keys", "add", "bob", "--keys", str(tmp_path / "file" / "keys.json"))
    assert run("keys", "add", "bob", "--keys", str(tmp_path / "keys.json")).exit_code == 0


def test_a_key_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        assert "expected a regular file" in fails(ConfigError, "keys", "add", "bob", "--keys", str(file))
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(MOST_FILE_BYTES + 1)
    assert "expected at most" in fails(ConfigError, "keys", "list", "--keys", str(tmp_path / "huge"))
