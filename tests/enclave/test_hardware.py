"""What `garrison doctor` finds of trusted hardware, with files in place of devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.enclave import hardware
from garrison.enclave.confine.step import Step

DEVICES = ("TSM_FOLDER", "ATTESTATION_FOLDER", "NITRO_DEVICE", "NSM_DEVICE")


def test_each_is_named_with_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in DEVICES:
        monkeypatch.setattr(hardware, device, tmp_path / device)
    monkeypatch.setattr("garrison.enclave.vsock.look", lambda: Step("vsock", "AF_VSOCK"))
    steps = hardware.look_for_hardware()
    assert [step.name for step in steps] == ["snp, tdx", "sgx", "nitro", "nitro, inside"]
    assert not any(step.achieved for step in steps)
    assert all("is not there: it takes" in step.mend for step in steps)
    for device in DEVICES:
        (tmp_path / device).touch()
    for step in hardware.look_for_hardware():
        assert step.achieved
        assert step.how.endswith("not run on hardware")
    monkeypatch.setattr("garrison.enclave.vsock.look", lambda: Step("vsock", "", "no vsock"))
    assert hardware.look_for_hardware()[2] == Step("nitro", "", "no vsock")
