"""Settings are strict: what is misspelt, of the wrong kind or out of range is an error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.config import Config, load_config
from garrison.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    file = folder / "garrison.toml"
    file.write_text(text)
    return file


def test_everything_can_be_set(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        trust = ["owner.pub", "/etc/other.pub"]
        [server]
        host = "::1"
        port = 0
        keys = "keys.json"
        state = "state"
        allow_anonymous = true
        secret = ["a.secret"]
        [limits]
        request_rows = 7
        stop_seconds = 1.5
        [guard.release]
        mode = "labels"
        [guard.budget]
        rows = 5
        """,
    )
    config = load_config(file)
    assert config.trust == (str(tmp_path / "owner.pub"), "/etc/other.pub")
    assert (config.server.host, config.server.port, config.server.allow_anonymous) == ("::1", 0, True)
    assert (config.server.keys, config.server.state) == (str(tmp_path / "keys.json"), str(tmp_path / "state"))
    assert config.server.secret == (str(tmp_path / "a.secret"),)
    assert (config.limits.request_rows, config.limits.stop_seconds) == (7, 1.5)
    assert config.guard == {"release": {"mode": "labels"}, "budget": {"rows": 5}}


def test_without_a_file_the_defaults_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config()
    write(tmp_path, "[server]\nport = 1234\n")
    assert load_config().server.port == 1234
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("trsut = []", r"unknown key trsut; did you mean trust\?"),
        ("[server]\nprot = 1", r"unknown key server\.prot; did you mean server\.port\?"),
        ("[server]\nallow_anonymus = true", r"did you mean server\.allow_anonymous\?"),
        ('[oidc]\nissuer = "a"\naudiense = "b"', r"did you mean oidc\.audience\?"),
        ('[oidc]\nissuer = "a"', r"issuer, audience and jwks go together"),
        ("[models.m]\nrows_per_days = 1", r"did you mean models\.m\.rows_per_day\?"),
        ("[callers.m]\nrows_per_day = -1", r"must not be below 0"),
        ("[callers.m]\nrequests_per_second = nan", r"requests_per_second must lie"),
        ("[callers.m]\nk = 2", r"name a release mode too"),
        ('[server]\ntls_cert = "a"', r"go together"),
        ("[limits]\nrequest_row = 1", r"did you mean limits\.request_rows\?"),
        ("[sevrer]\nport = 1", r"unknown key sevrer; did you mean server\?"),
        ("zzz = 1", "unknown key zzz; known are trust, server, limits, guard"),
        ('trust = "owner.pub"', "Expected `array`"),
        ("trust = [1]", "Expected `str`"),
        ('[server]\nport = "80"', "Expected `int`"),
        ("[server]\nport = 65536", "port must lie in 0 to 65535"),
        ("[server]\nport = -1", "port must lie in"),
        ("server = 1", "Expected `object`"),
        ("[limits]\nrequest_rows = 0", "must be above 0"),
        ("[limits]\nqueue_seconds = nan", "above 0 and finite"),
        ("[limits]\nbody_read_seconds = inf", "above 0 and finite"),
        ("[limits]\nrequest_rows = 1.5", "Expected `int`"),
        ("[guard]\nbudget = 5", "Expected `object`"),
        ("trust = [", "is not TOML"),
        ("trust = []\ntrust = []", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(write(tmp_path, text))
    assert "garrison.toml" in str(caught.value)


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "garrison.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(tmp_path / "garrison.toml")
