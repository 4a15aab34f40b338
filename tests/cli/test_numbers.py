"""Every comparison with nan is false, so that a budget of nan would be none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.commands import run

AUDIT = ("audit", "http://127.0.0.1:1", "--plan", "demo", "-o", "r")
SEAL = ("seal", "{file}", "--key", "k", "-o", "b")
MARK = ("watermark", "verify", "s", "--bundle", "b", "--candidates", "c")


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (AUDIT, "--usd"),
        (AUDIT, "--minutes"),
        (SEAL, "--price"),
        (SEAL, "--benign-loss"),
        (SEAL, "--range-margin"),
        (SEAL, "--budget-margin"),
        (SEAL, "--budget-fidelity"),
        (SEAL, "--watermark"),
        (MARK, "--level"),
        (("harden", "m", "--data", "d", "-o", "h"), "--benign-loss"),
        (("keys", "add", "bob", "--keys", "{folder}/k"), "--requests-per-second"),
    ],
)
def test_a_number_is_a_number(command: tuple[str, ...], option: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    words = [word.format(file=tmp_path / "m.onnx", folder=tmp_path) for word in command]
    told = run(*words, option, value)
    assert told.exit_code == 2
    assert f"'{option}'" in told.output
