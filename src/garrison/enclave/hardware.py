"""Which trusted hardware this machine shows, for `garrison doctor`. A look at the devices alone: no quote is asked for.

None of the backends of this hardware has been run on it yet; they are tested against stand-ins.
"""

from __future__ import annotations

from pathlib import Path

from garrison.enclave import vsock
from garrison.enclave.confine.step import Step
from garrison.enclave.quotes.gramine import ATTESTATION_FOLDER
from garrison.enclave.quotes.nitro import NSM_DEVICE
from garrison.enclave.quotes.tsm import TSM_FOLDER

NOT_RUN = "not run on hardware"
NITRO_DEVICE = Path("/dev/nitro_enclaves")
"""There on a parent instance that may run enclaves."""


def look_for_hardware() -> tuple[Step, ...]:
    """One step for each technology."""
    return (
        _one("snp, tdx", TSM_FOLDER, "a confidential virtual machine with configfs-tsm (Linux 6.7)"),
        _one("sgx", ATTESTATION_FOLDER, "the inside of an enclave under Gramine"),
        _nitro_parent(),
        _one("nitro, inside", NSM_DEVICE, "the inside of a Nitro enclave"),
    )


def _one(name: str, place: Path, wanted: str) -> Step:
    if place.exists():
        return Step(name, f"{place}; {NOT_RUN}")
    return Step(name, "", f"{place} is not there: it takes {wanted}")


def _nitro_parent() -> Step:
    there = vsock.look()
    if there.achieved and not NITRO_DEVICE.exists():
        return Step("nitro", "", f"{NITRO_DEVICE} is not there: it takes an instance launched with enclaves enabled")
    return Step("nitro", f"{NITRO_DEVICE}, {there.how}; {NOT_RUN}" if there.achieved else "", there.mend)
