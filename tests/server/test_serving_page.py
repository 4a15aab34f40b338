"""docs/serving.md names every error, setting, limit and page, as they are in the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from tests.serving import Served

from garrison.config import Config, ServerConfig
from garrison.limits import DEFAULT_LIMITS
from garrison.protocol.http_status import STATUS

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def test_every_error_is_there_with_its_status() -> None:
    listed = {code: int(status) for status, code in re.findall(r"^\| (\d{3}) \| `([a-z._]+)` \|", PAGE, re.MULTILINE)}
    assert listed == STATUS


def test_every_limit_is_there_with_its_default() -> None:
    listed = dict(re.findall(r"^\| `([a-z_]+)` \| ([\d.]+) \|", PAGE, re.MULTILINE))
    assert listed == {name: str(value) for name, value in msgspec.structs.asdict(DEFAULT_LIMITS).items()}


def test_the_settings_are_whole_and_those_of_the_server_are_the_defaults() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    found = tomllib.loads(block)
    assert found.keys() == set(Config.__struct_fields__)
    assert msgspec.convert(found["server"], ServerConfig) == ServerConfig()
    commented = set(re.findall(r"^# ([a-z_]+) = ", block, re.MULTILINE))  # TOML has no word for None
    assert found["server"].keys() | commented == set(ServerConfig.__struct_fields__)
    msgspec.convert(found, Config)


@pytest.mark.parametrize("name", ["mlp"])
def test_every_page_is_there(served: Served, name: str) -> None:
    for path in served.assembly.app._routes:
        if path.startswith(f"/v2/models/{name}") or "/models/" not in path:
            shown = path.rstrip("/").replace(name, "NAME").replace("/versions/1", "").replace("/versions/2", "")
            assert f"`{shown}`" in PAGE, shown
