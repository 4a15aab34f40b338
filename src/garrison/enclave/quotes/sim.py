"""Quotes of a simulation. They prove NOTHING: the key that signs them is made by the program itself, at start, and whoever runs
any other program can make the same. They exist so that everything around a quote can be run and tested without the hardware; a
client's default policy refuses them.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import garrison
from garrison.attest.evidence import Quote, Technology
from garrison.attest.verifiers.sim import SimClaims, encode_quote
from garrison.crypto.signing import AnswerSigner

PACKAGE = Path(garrison.__file__).parent


class SimQuoter:
    """Signs with a key that nobody vouches for."""

    technology: Technology = "sim"

    def __init__(self) -> None:
        self._signer = AnswerSigner()
        self._measurement = source_measurement()

    def quote(self, report_data: bytes) -> Quote:
        claims = SimClaims(report_data=report_data, measurement=self._measurement, key=self._signer.public_key)
        return Quote(technology="sim", quote=encode_quote(claims, self._signer.sign))


@functools.cache
def source_measurement(folder: Path = PACKAGE) -> str:
    """SHA-256, in hex, over the names and bytes of a package's own source files. Taken once, by the program itself.

    NOT covered: the interpreter, the libraries, what has been changed in memory.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        for field in (file.relative_to(folder).as_posix().encode(), file.read_bytes()):
            digest.update(len(field).to_bytes(8, "big") + field)
    return digest.hexdigest()
