"""The registry of enclave backends: a trusted technology is one file here, one in attest/verifiers, and one line each."""

from __future__ import annotations

BACKENDS: dict[str, str] = {
    "nitro": "garrison.enclave.backends.nitro:Nitro",
    "none": "garrison.enclave.backends.none:NoIsolation",
    "process": "garrison.enclave.backends.process:ProcessEnclave",
    "sgx": "garrison.enclave.backends.gramine:Gramine",
    "snp": "garrison.enclave.backends.confidential_vm:SnpVm",
    "tdx": "garrison.enclave.backends.confidential_vm:TdxVm",
}
GATEWAY = "garrison.enclave.backends.gateway:Gateway"
"""In place of "none", for a guard-only bundle."""
OF_A_PROGRAM = frozenset({"process", "snp", "tdx"})
"""Those that start the inner program (`garrison.enclave.program`)."""
