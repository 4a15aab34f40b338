"""What `garrison serve` does once it knows what is asked for: start, say what is served, serve."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from garrison.bundle.manifest import parse_manifest
from garrison.cli.output import notes, show_json
from garrison.cli.trust import trusted_keys
from garrison.config import Config
from garrison.enclave.host import ServiceCard
from garrison.enclave.levels import HARDWARE, NONE, level_reached
from garrison.enclave.log import JSON
from garrison.enclave.program import Program
from garrison.server.cautions import cautions
from garrison.server.launching import state_folder
from garrison.server.root import assemble, run
from garrison.server.stores import in_words
from garrison.server.workers import run_workers

logger = logging.getLogger(__name__)


def serve_bundles(
    config: Config, bundles: Sequence[Path], trust: Sequence[Path], programs: Sequence[Program], *, as_json: bool
) -> None:
    """Serve until interrupted.

    Args:
        trust: key files named on the command line.
        programs: of the enclaves, where they run already.
    """
    trusted = trusted_keys(trust, config.trust)

    def on_ready(url: str, cards: Sequence[ServiceCard], grpc: str = "") -> None:
        cards = sorted(cards, key=_place)
        if as_json:
            show_json(_as_json(config, cards, url) | ({"grpc": grpc} if grpc else {}))
            sys.stdout.flush()
        elif config.operations.log == JSON:
            _log(config, cards, url, grpc)
        else:
            if grpc:
                notes.print(f"gRPC      {grpc}", markup=False)
            _show(config, cards, url)

    if config.server.workers > 1:
        run_workers(config, bundles, trusted, on_ready, programs)
        return
    assembly = assemble(config, bundles, trusted, programs=programs)
    beside = assembly.grpc

    def ready(url: str) -> None:
        on_ready(url, [enclave.card for enclave in assembly.enclaves], "" if beside is None else beside.address)

    run(assembly, ready)


def _place(card: ServiceCard) -> tuple[str, int]:
    manifest = parse_manifest(card.manifest_json)
    return manifest.name, manifest.version


def _state(config: Config, cards: Sequence[ServiceCard]) -> Path | None:
    """Where budgets and snapshots of caller state are kept, if there are any."""
    return state_folder(config) if any(card.budget_rows or card.keeps_state for card in cards) else None


def _show(config: Config, cards: Sequence[ServiceCard], url: str) -> None:
    for card in cards:
        chain = ", ".join(f"{spec.name}{' (shadow)' if spec.shadow else ''}" for spec in card.chain)
        name, version = _place(card)
        notes.print(f"model     {name}, version {version}", markup=False)
        notes.print(f"  guard   {chain}", markup=False)
        notes.print(f"  gives   {', '.join(output.name for output in card.outputs)}", markup=False)
        notes.print(f"  budget  {_budget(card)}", markup=False)
        notes.print(f"  key     {card.public_key.hex()}", markup=False, soft_wrap=True)
        upstream = parse_manifest(card.manifest_json).upstream
        if upstream is not None:
            told = f"  asks    {upstream}, at {config.server.upstream}: its parameters and privacy are not vouched for"
            notes.print(told, markup=False, soft_wrap=True)
        elif card.parameters not in {"", "resident"}:
            notes.print(f"  parameters: {card.parameters}", markup=False, soft_wrap=True)
        _show_isolation(card)
    notes.print(f"callers   {' and '.join(_callers(config)) or 'by address, no key needed'}", markup=False)
    notes.print(f"transport {_transport(config)}", markup=False)
    if config.operations.metrics:
        notes.print(f"metrics   http://{config.operations.metrics}/metrics", markup=False)
    if (state := _state(config, cards)) is not None:
        budgets = any(card.budget_rows for card in cards)
        what = "budgets" if budgets else "state"
        more = ", with snapshots of what callers asked" if any(card.keeps_state for card in cards) else ""
        where = f"{in_words(config.server.store)}, state in {state}" if budgets and config.server.store else state
        notes.print(f"{what:9} kept in {where}{more}", markup=False, soft_wrap=True)
    if config.server.workers > 1:
        what = "each runs the models" if config.server.isolation == NONE else "one enclave a model for all"
        notes.print(f"workers   {config.server.workers}, {what}", markup=False)
    notes.print(
        f"ledger    {config.ledger.folder or 'none: nothing is written down of what is asked (--ledger)'}",
        markup=False,
        soft_wrap=True,
    )
    for caution in cautions(config, cards):
        notes.print(f"warning   {caution}", style="bold red", markup=False, soft_wrap=True)
    click.echo(url)


def _log(config: Config, cards: Sequence[ServiceCard], url: str, grpc: str) -> None:
    """What `_show` says, as lines of the log: nothing else may stand between its objects. The URL goes to standard output, as always."""
    told = _as_json(config, cards, url) | ({"grpc": grpc} if grpc else {})
    logger.info("serving: %s", msgspec.json.encode(told).decode())
    for caution in cautions(config, cards):
        logger.warning("%s", caution)
    click.echo(url)


def _callers(config: Config) -> list[str]:
    """How callers are told apart, in words; empty for by address."""
    server = config.server
    ways = (
        (server.keys, "by API key"),
        (config.oidc.issuer, f"by token of {config.oidc.issuer}"),
        (server.tls_client_names, "by client certificate"),
    )
    return [words for used, words in ways if used]


def _transport(config: Config) -> str:
    server = config.server
    if not server.tls_cert:
        return "plain HTTP"
    return "TLS 1.3, clients need a certificate" if server.tls_client_ca else "TLS 1.3"


def _client_certificates(config: Config) -> str | None:
    if not config.server.tls_client_ca:
        return None
    return "names" if config.server.tls_client_names else "admission"


def _show_isolation(card: ServiceCard) -> None:
    if card.isolation == NONE:
        notes.print("[bold red]  isolation: none (no enclave)[/] whoever runs this machine sees inputs and secrets")
        return
    style = "bold red" if ":" in card.isolation else ""
    notes.print(f"  isolation: {card.isolation}", style=style, markup=False, soft_wrap=True)
    if level_reached(card.isolation, card.technology) != HARDWARE:
        note = "  (a simulation of an enclave: it stops neither root who injects code nor a hypervisor)"
        notes.print(note, markup=False, soft_wrap=True)


def _budget(card: ServiceCard) -> str:
    if not card.budget_rows:
        return "none"
    different = f", {card.budget_distinct} of them different" if card.budget_distinct else ""
    return f"{card.budget_rows} rows a caller{different} ({card.budget_period})"


def _as_json(config: Config, cards: Sequence[ServiceCard], url: str) -> dict[str, Any]:
    state = _state(config, cards)
    return {
        "url": url,
        "callers": "keys" if config.server.keys else "addresses",
        "tokens": config.oidc.issuer or None,
        "client_certificates": _client_certificates(config),
        "tls": bool(config.server.tls_cert),
        "store": in_words(config.server.store) or None,
        "state": None if state is None else str(state),
        "workers": config.server.workers,
        "warnings": list(cautions(config, cards)),
        "models": [
            {
                "name": _place(card)[0],
                "version": _place(card)[1],
                "guard": [msgspec.to_builtins(spec) for spec in card.chain],
                "outputs": [output.name for output in card.outputs],
                "budget_rows": card.budget_rows,
                "budget_period": card.budget_period,
                "budget_distinct": card.budget_distinct,
                "public_key": card.public_key.hex(),
                "manifest_digest": card.manifest_digest,
                "guard_digest": card.guard_digest,
                "parameters": card.parameters,
                "isolation": card.isolation,
                "capabilities": card.capabilities,
            }
            for card in cards
        ],
    }
