"""What operators start from in deploy/: settings load, commands and options exist, and what listens beyond its machine may."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest
from tests.docs.test_docs import options_of, resolve

from garrison.config import Config, load_config
from garrison.errors import ConfigError
from garrison.server.launching import check_exposure

DEPLOY = Path(__file__).parents[2] / "deploy"
METRICS = Path(__file__).parents[2] / "src" / "garrison" / "server" / "metrics.py"


def beyond(config: Config) -> Config:
    return msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, host="0.0.0.0"))


def test_the_container_may_listen_as_its_command_says() -> None:
    check_exposure(beyond(load_config(DEPLOY / "container.toml")))
    with pytest.raises(ConfigError, match="without TLS"):  # control: the settings of a machine would not do
        check_exposure(beyond(load_config(DEPLOY / "garrison.toml")))


@pytest.mark.parametrize(
    ("file", "line"), [("Containerfile", r"^CMD (\[.*\])$"), ("garrison.service", r"^ExecStart=\S+/garrison (.*)$")]
)
def test_what_is_started_exists(file: str, line: str) -> None:
    (found,) = re.findall(line, (DEPLOY / file).read_text(), re.MULTILINE)
    words = ast.literal_eval(found) if found.startswith("[") else found.split()
    command, rest = resolve(words)
    assert command.name == "serve"
    assert {word for word in rest if word.startswith("--")} <= options_of(command)


def test_alerts_name_metrics_that_there_are() -> None:
    named = set(re.findall(r"\b(garrison_\w+)", (DEPLOY / "alerts.yml").read_text()))
    code = METRICS.read_text()
    missing = {name for name in named if name not in code and name.removesuffix("_total") not in code}
    assert named
    assert not missing
