"""A made-up AWS: root, chain, attestation documents."""

from __future__ import annotations

from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from tests.attest.worlds import NOW, OWNER, Authority

from garrison.attest.evidence import Quote, Technology
from garrison.attest.policy import Policy

PCR0 = bytes(range(1, 49))
HEADER = cbor2.dumps({1: -35})


def p384() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


class NitroWorld:
    technology: Technology = "nitro"

    def __init__(self, *, days: tuple[int, int] = (30, 30)) -> None:
        self.root = Authority("root", None, p384(), ca=2)
        self.region = Authority("region", self.root, p384(), ca=1)
        self.host = Authority("host", self.region, p384(), ca=0)
        self.leaf = Authority("enclave", self.host, p384(), days=days)

    def document(self, data: bytes, *, debug: bool = False, seconds: float = 0, **fields: Any) -> dict[str, Any]:
        document = {
            "module_id": "i-0-enc0",
            "timestamp": int((NOW.timestamp() + seconds) * 1000),
            "digest": "SHA384",
            "pcrs": {0: bytes(48) if debug else PCR0} | {n: bytes(48) for n in range(1, 16)},
            "certificate": self.leaf.der,
            "cabundle": [self.root.der, self.region.der, self.host.der],
            "public_key": None,
            "user_data": data,
            "nonce": None,
        }
        return document | fields

    def sign(self, payload: bytes, header: bytes = HEADER) -> bytes:
        key = self.leaf.key
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        signed = cbor2.dumps(["Signature1", header, b"", payload])
        r, s = utils.decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384())))
        return bytes(cbor2.dumps([header, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")]))

    def quote(self, data: bytes, **fields: Any) -> Quote:
        return Quote(technology="nitro", quote=self.sign(cbor2.dumps(self.document(data, **fields))))

    def policy(self, **changes: Any) -> Policy:
        fields: dict[str, Any] = {
            "owners": (OWNER,),
            "measurements": {"nitro": (PCR0.hex(),)},
            "roots": {"nitro": (self.root.fingerprint,)},
        }
        return Policy(**(fields | changes))
