"""Commands as tests run them that want the error itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from garrison.cli import cli
from garrison.errors import GarrisonError


def run(*arguments: str, code: int = 0, text: str | None = None) -> Result:
    result = CliRunner().invoke(cli, arguments, input=text)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def fails(error: type[GarrisonError], *arguments: str, match: str = ".") -> None:
    with pytest.raises(error, match=match):
        run(*arguments)


def as_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def seal_arguments(*more: str) -> tuple[str, ...]:
    return ("seal", "model.onnx", "--data", "rows.npz", "--key", "owner.key", "-o", "bundle", *more)
