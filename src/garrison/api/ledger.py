"""`verify_ledger`: does a ledger hold, and whose is it?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from garrison.api.keys import Trust, trusted
from garrison.errors import LedgerError
from garrison.server.ledger.trust import KeyTrust, policy_of
from garrison.server.ledger.verify import ChainReport
from garrison.server.ledger.verify import verify_ledger as verify_chains


def verify_ledger(
    ledger: str | Path,
    trust: Trust | None = None,
    *,
    keys: Sequence[str] = (),
    allow_simulated: bool = False,
) -> list[ChainReport]:
    """Check every line of a ledger, and every signature in it.

    Args:
        ledger: its folder.
        trust: owners whose models' enclaves count, by their evidence in the ledger.
        keys: public keys of enclaves, in hex, that are known from elsewhere.
        allow_simulated: let the evidence of a simulation count, which proves nothing.

    Returns:
        What was found, chain by chain.

    Raises:
        LedgerError: the first thing that does not hold.
        ConfigError: there is no ledger.
        KeyFileError: a key cannot be read.
    """
    owners = () if trust is None else tuple(key.fingerprint for key in trusted(trust))
    policy = policy_of(None, owners, allow_simulated=allow_simulated)
    reports = verify_chains(Path(ledger), KeyTrust(policy, frozenset(keys)))
    for report in reports:
        if report.problem:
            raise LedgerError(f"{report.name}: {report.problem}")
    return reports
