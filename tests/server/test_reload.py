"""SIGHUP: quotas and limits change without a restart, the guard does not, and a broken file changes nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.serving import Bundles, serve

from garrison.config import SETTINGS_VARIABLE, Config, LedgerConfig, load_config
from garrison.limits import Limits
from garrison.server.reload import changed, reload


def test_quotas_and_limits_are_read_again(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "garrison.toml"
    monkeypatch.setenv(SETTINGS_VARIABLE, str(file))
    with serve(bundles, "mlp-1", state=tmp_path) as served:
        assembly = served.assembly

        def again(text: str) -> None:
            file.write_text(text)
            reload(assembly.config, assembly.admission, assembly.rsgi, False)

        again('[callers."*"]\nrequests_per_second = 0.01\n[limits]\nqueue_requests = 7\nqueue_bytes = 999999999999\n')
        assert assembly.app.limits.queue_requests == 7
        assert assembly.app.limits.queue_bytes == Limits().queue_bytes, "no more than the pipes were made for"
        assert [served.infer().status_code for _ in range(2)] == [200, 429]
        again("")
        assert served.infer().status_code == 200, "control"
        again("[limits]\nqueue_requests = -1\n")
        assert "not read again" in caplog.text
        assert assembly.app.limits.queue_requests == Limits().queue_requests
        caplog.clear()
        again('[callers."*"]\nrows_per_day = 1\n')
        assert "takes a restart" in caplog.text
        assert served.infer().status_code == 200


def test_what_the_command_line_named_has_not_changed(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`--ledger` is no change of a file that names no ledger; another setting of the file is one."""
    file = tmp_path / "garrison.toml"
    monkeypatch.setenv(SETTINGS_VARIABLE, str(file))
    file.write_text("")
    with serve(bundles, "mlp-1", state=tmp_path) as served:
        assembly = served.assembly
        started = msgspec.structs.replace(assembly.config, ledger=LedgerConfig(folder=str(tmp_path / "ledger")))
        reload(started, assembly.admission, assembly.rsgi, False)
        assert "other settings have changed" not in caplog.text
        file.write_text("[ledger]\nkeep_days = 3\n")
        reload(started, assembly.admission, assembly.rsgi, False)
        assert "other settings have changed" in caplog.text


def test_only_some_limits_change() -> None:
    now = Limits(queue_seconds=1.0, request_rows=1, queue_requests=99_999)
    found = changed(Limits(), now)
    assert (found.queue_seconds, found.request_rows) == (1.0, Limits().request_rows)
    assert found.queue_requests == Limits().queue_requests


def test_settings_of_operations_are_strict(tmp_path: Path) -> None:
    file = tmp_path / "garrison.toml"
    file.write_text('[operations]\nwebhook = "https://example.org/"\nwebhook_secret = "hook.secret"\nlog = "json"\n')
    found = load_config(file).operations
    assert found.webhook_secret == str(tmp_path / "hook.secret")
    assert Config().operations.log == "text"
    for bad in ('metrics = "9464"', 'metrics = "h:99999"', "traces_share = 2.0", 'log = "xml"', "metric = 1"):
        file.write_text(f"[operations]\n{bad}\n")
        with pytest.raises(Exception, match=r"operations|log|metric"):
            load_config(file)
