"""What an operator should know of a guard that looks at callers, before the first of them asks: where it sees less than its owner thought."""

from __future__ import annotations

from collections.abc import Sequence

from garrison.bundle.manifest import parse_manifest
from garrison.config import Config
from garrison.enclave.host import ServiceCard
from garrison.enclave.levels import NONE
from garrison.types import DefenseSpec

WATCH = "watch"


def cautions(config: Config, cards: Sequence[ServiceCard]) -> tuple[str, ...]:
    """In plain English, worst first; empty where there is nothing to say.

    Args:
        cards: what the enclaves say of themselves.
    """
    found = []
    apart = [_name(card) for card in cards if card.keeps_state] if config.server.isolation == NONE else []
    if config.server.workers > 1 and apart:
        found.append(
            f"each of the {config.server.workers} workers remembers callers by itself ({', '.join(apart)}): detectors see a part of what a caller asks, "
            f"and may let through up to {config.server.workers} times what was signed. With an enclave (--isolation process) all workers share what is remembered"
        )
    watched = [_name(card) for card in cards if any(map(_is_armed, card.chain))]
    if watched and not _are_callers_known(config):
        found.append(
            f"watch is armed ({', '.join(watched)}), and callers need no key: who has many addresses has as many names, and begins anew under each. "
            "Give keys (garrison keys add, --keys)"
        )
    return tuple(found)


def _name(card: ServiceCard) -> str:
    return parse_manifest(card.manifest_json).name


def _are_callers_known(config: Config) -> bool:
    server = config.server
    return bool(server.keys or config.oidc.issuer or server.tls_client_names)


def _is_armed(spec: DefenseSpec) -> bool:
    """Whether an alarm of any detector does something."""
    detectors = spec.parameters.get("detectors", {})
    return (
        spec.name == WATCH and not spec.shadow and any(not given.get("shadow", False) for given in detectors.values())
    )
