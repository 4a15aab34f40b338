"""Processor time that knowing who asks, TLS and quotas add to a request: LeNet-size model, binary tensors, keep-alive connections.

    python -m benchmarks.identity_cost                    # and --arms plain again tls
    make bench ONLY=identity                              # the arms that wrk can drive, into docs/benchmarks.md

Servers take turns, in an order that changes with each round: `plain` HTTP without keys; `again`, a second one, which shows what the measurement itself is worth; `tls`;
`names`, TLS with client certificates that name the caller; `key`, plain with an API key; `quota`, with a key that has rows a day and requests a second; `postgres`
and `redis`, that with the counts in such a server where one can be started. One generator drives all: wrk where it is installed and no arm asks for certificates of clients, which it
does not have, else one of our own. Added is the difference to `plain` in the same round, over all processes of a server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ledger_cost import interval
from benchmarks.serve_lenet import LOAD_CORE, Load, generate, pinned, processor_seconds, seal_lenet, started
from tests.server.databases import postgres, redis_or_valkey
from tests.server.pki import Authority

from garrison.server.key_file import add_key

ARMS = ("plain", "again", "tls", "names", "key", "quota")
STORES = {"postgres": postgres, "redis": redis_or_valkey}
MUST_TLS = 1.15


@dataclass(frozen=True, slots=True)
class Arm:
    """A running server and how to ask it."""

    pid: int
    url: str
    header: str = ""
    authority: str = ""
    client: str = ""


def generate_for(arm: Arm, load: Load, seconds: float, connections: int) -> None:
    """The load generator, over TLS and with a certificate where the arm has them."""
    context = None
    if arm.url.startswith("https:"):
        context = ssl.create_default_context(cafile=arm.authority)
        if arm.client:
            context.load_cert_chain(f"{arm.client}.pem", f"{arm.client}.key")
    requests = [request.replace(b"\r\n", f"\r\n{arm.header}".encode(), 1) for request in load.requests()]
    asyncio.run(generate(arm.url, requests, seconds, connections, context))


def spent(arm: Arm, load: Load, options: argparse.Namespace) -> float:
    """Microseconds of processor time a request."""
    seconds, connections = options.seconds, options.connections
    words = [sys.executable, "-m", "benchmarks.identity_cost", "--generate"]
    given = [arm.pid, arm.url, arm.header, arm.authority, arm.client, load.folder, load.path, load.json_bytes]
    command = [*words, *map(str, (*given, seconds, connections))]
    if options.generator == "wrk":
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "-s", str(load.folder / "load.lua")]
        command += [*(["-H", arm.header.strip()] if arm.header else []), arm.url + load.path]
    command = pinned(LOAD_CORE, command)
    before = processor_seconds(arm.pid)
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    took = processor_seconds(arm.pid) - before
    found = re.search(r"RESULT (\d+) (\d+)", said)
    if found is None or found[2] != "0":
        sys.exit(f"not all was answered; the figures would mean nothing: {said}")
    return took / int(found[1]) * 1e6


def start(arm: str, folder: Path, garrison: list[str], authority: Authority, stack: ExitStack) -> Arm:
    own = folder / arm
    own.mkdir()
    words, header, client = ["--state", str(own)], "", ""
    if arm in {"tls", "names"}:
        pair = authority.issue("server", "bench")
        words += ["--tls-cert", str(pair.cert), "--tls-key", str(pair.key)]
    if arm == "names":
        client = str(authority.issue("client", "bench").cert.with_suffix(""))
        words += ["--tls-client-ca", str(authority.file), "--tls-client-names"]
    if arm in {"key", "quota", *STORES}:
        much: dict[str, Any] = {} if arm == "key" else {"rows_per_day": 10**12, "requests_per_second": 1e6}
        header = f"Authorization: Bearer {add_key(own / 'keys.json', 'bench', **much)}\r\n"
        words += ["--keys", str(own / "keys.json")]
    if arm in STORES:
        words += ["--store", stack.enter_context(STORES[arm]()).url]  # type: ignore[operator]
    pid, url = stack.enter_context(started([*garrison, *words]))
    return Arm(pid, url, header, str(authority.file), client)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        bundle, trust = seal_lenet(folder)
        load = Load.write(folder, bundle, trust)
        garrison = [sys.executable, "-m", "garrison", "serve", str(bundle), "--trust", str(trust), "--port", "0"]
        garrison += ["--isolation", options.isolation]
        authority = Authority(folder / "pki")
        arms = {arm: start(arm, folder, garrison, authority, stack) for arm in options.arms}
        order, rounds = random.Random(0), []
        for number in range(options.rounds + 1):
            figures = {arm: spent(arms[arm], load, options) for arm in order.sample(list(arms), len(arms))}
            if number:  # the first round warms up
                rounds.append({arm: figures[arm] for arm in arms})
        return summary(rounds)


def summary(rounds: list[dict[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {"plain_us": round(statistics.median(r["plain"] for r in rounds), 1), "rounds": len(rounds)}
    for arm in rounds[0]:
        if arm != "plain":
            added = [figures[arm] - figures["plain"] for figures in rounds]
            ratios = [figures[arm] / figures["plain"] for figures in rounds]
            low, high = interval(ratios)
            found[arm] = {
                "added_us": round(statistics.median(added), 1),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_low": round(low, 3),
                "ratio_high": round(high, 3),
            }
    if "tls" in found:
        found["tls"] |= {"must": MUST_TLS, "met": found["tls"]["ratio"] <= MUST_TLS}
    return found


def main() -> None:
    if sys.argv[1:2] == ["--generate"]:
        pid, url, header, authority, client, folder, path, json_bytes, seconds, connections = sys.argv[2:]
        arm, load = Arm(int(pid), url, header, authority, client), Load(Path(folder), path, int(json_bytes))
        generate_for(arm, load, float(seconds), int(connections))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--isolation", default="process", choices=["process", "none"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=[*ARMS, *STORES])
    parser.add_argument("--generator", choices=["own", "wrk"], help="wrk has no client certificates")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    options.arms = list(dict.fromkeys(("plain", *options.arms)))  # all are compared with it
    options.generator = options.generator or ("wrk" if shutil.which("wrk") and "names" not in options.arms else "own")
    print(json.dumps({"generator": options.generator, **compare(options)}, indent=2))


if __name__ == "__main__":
    main()
