"""What an operator should know before the first caller asks: where a guard that looks at callers sees less than its owner thought, and where settings do less, or more, than they seem to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from garrison.bundle.manifest import parse_manifest
from garrison.config import CallerConfig, Config
from garrison.enclave.host import ServiceCard
from garrison.enclave.levels import NONE
from garrison.types import ANYBODY, DefenseSpec

WATCH = "watch"
EVERY_IPV4 = "0.0.0.0"  # noqa: S104  what the operator may have set


def cautions(config: Config, cards: Sequence[ServiceCard]) -> tuple[str, ...]:
    """In plain English, worst first; empty where there is nothing to say.

    Args:
        cards: what the enclaves say of themselves.
    """
    found = []
    apart = [_name(card) for card in cards if card.keeps_state or card.work] if config.server.isolation == NONE else []
    if config.server.workers > 1 and apart:
        found.append(
            f"each of the {config.server.workers} workers remembers callers by itself ({', '.join(apart)}): detectors see a part of what a caller asks, "
            f"what one of them does about a caller the others do not do, a proof of work counts once at each, and all that may let through up to {config.server.workers} times what was signed. With an enclave (--isolation process) all workers share what is remembered"
        )
    watched = [_name(card) for card in cards if any(map(_is_armed, card.chain))]
    if watched and not _are_callers_known(config):
        found.append(
            f"watch is armed ({', '.join(watched)}), and callers need no key: who has many addresses has as many names, and begins anew under each. "
            "Give keys (garrison keys add, --keys)"
        )
    return (*found, *_of_settings(config))


def _of_settings(config: Config) -> Iterator[str]:
    free = _freed(config.callers)
    if free:
        yield (
            f'[callers.{free[0]}] sets no quota, so that it has none: what [callers."{ANYBODY}"] sets counts for callers that are not named. Give it rows_per_day or '
            "requests_per_second of its own, where it should have some"
            + (f" (and so for {', '.join(free[1:])})" if free[1:] else "")
        )
    if config.server.grpc_port is not None and config.server.host == EVERY_IPV4:
        yield f"gRPC at {EVERY_IPV4} listens to IPv6 too (HTTP does not): name one address where that is not meant"


def _freed(callers: Mapping[str, CallerConfig]) -> list[str]:
    """Who is named for a policy's sake, and loses the quota of all others by that."""
    everybody = callers.get(ANYBODY)
    if everybody is None or not (everybody.rows_per_day or everybody.requests_per_second):
        return []
    return [
        name
        for name, given in callers.items()
        if given.release is not None and not (given.rows_per_day or given.requests_per_second)
    ]


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
