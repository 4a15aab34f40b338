"""Garrison's commands as a user types them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from click.testing import CliRunner, Result

from garrison.cli import cli
from garrison.errors import GarrisonError
from garrison.types import Array


def run(*words: str, **environment: str) -> Result:
    with mock.patch.dict(os.environ):  # what a command sets for the programs that it starts ends with it
        return CliRunner().invoke(cli, list(words), env=environment)


def fails(kind: type[GarrisonError], *words: str) -> str:
    """The message of the error that a command ends with."""
    result = run(*words)
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def as_json(*words: str) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def save(file: Path, **arrays: Array) -> Path:
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    return file
