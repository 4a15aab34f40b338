"""`garrison connect`: a private connection for clients that know nothing of it."""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from pathlib import Path

import click
import httpx
import msgspec

from garrison.attest.policy import Policy, load_policy
from garrison.cli.access import Access, access_options, caller_option
from garrison.cli.output import json_option, notes, show_json
from garrison.client.bounded import trusting
from garrison.client.connect import Proxy
from garrison.client.connect_http import OnReady, serve_proxy
from garrison.client.http import ATTEMPTS, TIMEOUT_SECONDS, carry, checked_url
from garrison.client.sealed import Attested
from garrison.errors import GarrisonError


@click.command()
@click.argument("url")
@click.option("--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0 for any free one.")
@click.option("--policy", type=click.Path(dir_okay=False, path_type=Path), help="What is demanded of evidence (TOML).")
@click.option("--allow-simulated", is_flag=True, help="Take simulated evidence, which proves nothing; for trials.")
@access_options
@caller_option
@json_option
def connect(
    url: str,
    port: int,
    policy: Path | None,
    allow_simulated: bool,
    access: Access,
    caller: str,
    as_json: bool,
) -> None:
    """Open a local port that attests the enclave behind URL, seals every inference request to it and checks every answer.

    Point any Open Inference Protocol client (tritonclient, curl) at that port. Nothing is sent while the evidence is not good enough;
    the client is told why.
    """
    checked_url(url, api_key=access.api_key, insecure_plaintext=access.insecure_plaintext)
    demanded = Policy() if policy is None else load_policy(policy)
    if allow_simulated:
        demanded = msgspec.structs.replace(demanded, allow_simulated=True)
    proxy = Proxy(demanded, api_key=access.api_key, attempts=ATTEMPTS, caller=caller)

    def on_ready(local: str) -> None:
        if as_json:
            show_json({"url": local, "server": url})
            sys.stdout.flush()
        else:
            click.echo(local)

    asyncio.run(_run(url, port, proxy, access.tls, on_ready))


async def _run(url: str, port: int, proxy: Proxy, tls: ssl.SSLContext | None, on_ready: OnReady) -> None:
    await _look(url, proxy, tls)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve_proxy(url, proxy, port=port, timeout_seconds=TIMEOUT_SECONDS, on_ready=on_ready, stop=stop, tls=tls)


async def _look(url: str, proxy: Proxy, tls: ssl.SSLContext | None) -> None:
    """Say at once what the enclaves are; a server that is not there yet, or not good enough yet, may be so later."""
    try:
        base, checks = checked_url(url), trusting(tls)
        async with httpx.AsyncClient(base_url=base, timeout=TIMEOUT_SECONDS, trust_env=False, verify=checks) as http:
            for attested in await carry(http, proxy.attest_all()):
                _show(attested)
    except GarrisonError as error:
        notes.print(f"[bold red]not attested[/] ({error.code}): ", end="")
        notes.print(f"{error}; asking again at each request", markup=False, soft_wrap=True)


def _show(attested: Attested) -> None:
    model, technology = attested.model, attested.report.technology
    notes.print(f"model     {model.name}, version {model.version}: attested ({technology})", markup=False)
    if technology == "sim":
        notes.print("[bold red]  simulated evidence proves nothing[/] whoever runs the server may read everything")
