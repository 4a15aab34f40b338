"""A made-up AMD: root, chain, processor, reports."""

from __future__ import annotations

import struct
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from tests.attest.worlds import OWNER, Authority

from garrison.attest.evidence import Quote, Technology
from garrison.attest.policy import Policy, SnpPolicy, SnpTcb

OID = "1.3.6.1.4.1.3704.1"
TCB = SnpTcb(bootloader=4, tee=1, snp=22, microcode=213)
CHIP = bytes(range(64, 128))
MEASUREMENT = bytes(range(100, 148))
SIGNED = 0x2A0


def integer(value: int) -> bytes:
    raw = value.to_bytes(1 if value < 128 else 2, "big")
    return bytes([2, len(raw)]) + raw


def tcb_bytes(tcb: SnpTcb, *, turin: bool = False) -> bytes:
    if turin:
        return bytes([tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode])
    return bytes([tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode])


def vcek_extensions(tcb: SnpTcb, chip: bytes, *, turin: bool = False) -> dict[str, bytes]:
    levels = {"3.1": tcb.bootloader, "3.2": tcb.tee, "3.3": tcb.snp, "3.8": tcb.microcode}
    if turin:
        levels["3.9"] = tcb.fmc
    return {f"{OID}.{oid}": integer(level) for oid, level in levels.items()} | {f"{OID}.4": chip}


class SnpWorld:
    technology: Technology = "snp"

    def __init__(self, *, days: tuple[int, int] = (30, 30)) -> None:
        self.ark = Authority("ARK", None, rsa.generate_private_key(65537, 2048), ca=1)
        self.ask = Authority("ASK", self.ark, rsa.generate_private_key(65537, 2048), ca=0)
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.vcek = self.certify(days=days)

    def certify(self, tcb: SnpTcb = TCB, chip: bytes = CHIP, *, turin: bool = False, **options: Any) -> Authority:
        return Authority("VCEK", self.ask, self.key, extensions=vcek_extensions(tcb, chip, turin=turin), **options)

    def body(self, data: bytes, *, debug: bool = False, version: int = 3, tcb: SnpTcb = TCB, **fields: int) -> bytes:
        """An unsigned report; `fields` are numbers for the policy bits, the flags, the level and the family."""
        turin = fields.get("family") == 0x1A
        body = bytearray(SIGNED)
        struct.pack_into("<I", body, 0, version)
        struct.pack_into("<Q", body, 8, 0x30000 | (1 << 19 if debug else 0) | fields.get("policy", 0))
        struct.pack_into("<II", body, 0x30, fields.get("vmpl", 0), fields.get("algorithm", 1))
        struct.pack_into("<I", body, 0x48, fields.get("flags", 0))
        body[0x50:0x90], body[0x90:0xC0] = data, MEASUREMENT
        for at in (0x38, 0x180, 0x1E0, 0x1F0):
            body[at : at + 8] = tcb_bytes(tcb, turin=turin)
        if version >= 3:
            body[0x188:0x18B] = bytes([fields.get("family", 0x19), 1, 1])
        body[0x1A0:0x1E0] = CHIP[:8].ljust(64, b"\0") if turin else CHIP
        return bytes(body)

    def sign(self, body: bytes) -> bytes:
        r, s = utils.decode_dss_signature(self.key.sign(body, ec.ECDSA(hashes.SHA384())))
        return body + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(512 - 144)

    def quote(self, data: bytes, *, vcek: Authority | None = None, **fields: Any) -> Quote:
        return Quote(technology="snp", quote=self.sign(self.body(data, **fields)), collateral=self.collateral(vcek))

    def collateral(self, vcek: Authority | None = None) -> dict[str, bytes]:
        return {"vcek": (vcek or self.vcek).der, "ask": self.ask.pem, "ark": self.ark.pem}

    def policy(self, **changes: Any) -> Policy:
        fields: dict[str, Any] = {
            "owners": (OWNER,),
            "measurements": {"snp": (MEASUREMENT.hex(),)},
            "roots": {"snp": (self.ark.fingerprint,)},
            "snp": SnpPolicy(least_tcb=TCB),
        }
        return Policy(**(fields | changes))
