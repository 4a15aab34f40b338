"""Where the model of a guard-only bundle runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """Where the model of a guard-only bundle runs.

    Attributes:
        url: of its server.
        key: shown to it as a bearer token; "" for none.
        authorities: file of the certificates that may vouch for it; None for the system's.
        insecure_plaintext: show the key over plain HTTP beyond this machine too.
    """

    url: str
    key: str = ""
    authorities: Path | None = None
    insecure_plaintext: bool = False
