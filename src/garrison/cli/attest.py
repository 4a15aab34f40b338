"""`garrison attest`: is the enclave behind a service good enough to be told anything?"""

from __future__ import annotations

import base64
import secrets
import sys
import time
from pathlib import Path

import click
import httpx
import msgspec
from rich.table import Table
from rich.text import Text

from garrison.attest.appraise import appraise
from garrison.attest.evidence import NONCE_BYTES, Evidence
from garrison.attest.policy import Policy, load_policy
from garrison.attest.report import Report
from garrison.cli.access import Access, access_options
from garrison.cli.output import console, json_option, notes, plain, show_json
from garrison.client.bounded import BoundedTransport, Deadline
from garrison.client.http import AS_IT_IS, checked_url
from garrison.client.sealed import ATTESTATION_PATH
from garrison.client.talk import bearer
from garrison.errors import AttestationError, UnavailableError

TIMEOUT_SECONDS = 30.0
MOST_BYTES = 4_194_304
_MOST_CELL = 60
_COLORS = {"passed": "green", "failed": "bold red", "skipped": "dim"}


@click.command()
@click.argument("url")
@click.option("--model", help="The model's name; may be left out where the server has one.")
@click.option("--version", "version", help="The model's version; the newest where it is left out.")
@access_options
@click.option(
    "--policy",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What is demanded, a TOML file (docs/attestation.md).",
)
@click.option("--allow-simulated", is_flag=True, help="Take the evidence of a simulation, which proves nothing.")
@click.option(
    "--collateral",
    multiple=True,
    metavar="NAME=FILE",
    help="A certificate or list that you fetched yourself, such as vcek=FILE; may be given again.",
)
@json_option
def attest(
    url: str,
    model: str | None,
    version: str | None,
    access: Access,
    file: Path | None,
    allow_simulated: bool,
    collateral: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ask the service at URL for evidence of its enclave, and check it against a policy.

    Without a policy everything is refused that has not been allowed in so many words; the table shows what was found, so that
    a policy can be written. Exit code 0 where all holds, 1 otherwise.
    """
    policy = load_policy(file) if file is not None else Policy()
    if allow_simulated:
        policy = msgspec.structs.replace(policy, allow_simulated=True)
    own = _read_collateral(collateral)
    nonce = secrets.token_bytes(NONCE_BYTES)
    evidence = fetch_evidence(url, nonce, access, model=model, version=version)
    report = appraise(evidence, policy, nonce, time.time(), own)
    if as_json:
        show_json({"passed": report.passed, "report": report, "evidence": evidence})
    else:
        _show(evidence, report)
    if not report.passed:
        sys.exit(1)
    if model not in {None, evidence.model} or version not in {None, str(evidence.version)}:
        found = f"{evidence.model} version {evidence.version}"
        raise AttestationError(f"the evidence holds, but it is of {found} and not of what was asked for", report)


def fetch_evidence(
    url: str, nonce: bytes, access: Access, *, model: str | None = None, version: str | None = None
) -> Evidence:
    """Ask a service for evidence over a nonce.

    Raises:
        PlaintextKeyError: all on the way could read the key.
        ConfigError: the URL is none, or the key cannot stand in a header.
        UnavailableError: the server cannot be reached, or is busy.
        AttestationError: it has no evidence, or sent something else.
    """
    query = {"nonce": base64.urlsafe_b64encode(nonce).rstrip(b"=").decode()}
    query |= {name: value for name, value in (("model", model), ("version", version)) if value is not None}
    base = checked_url(url, api_key=access.api_key, insecure_plaintext=access.insecure_plaintext)
    address = f"{str(base).rstrip('/')}{ATTESTATION_PATH}"
    headers = AS_IT_IS | bearer(access.api_key)
    deadline = Deadline()
    try:
        transport = BoundedTransport(deadline, access.tls)
        with httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False, transport=transport) as http:
            deadline.at = time.monotonic() + TIMEOUT_SECONDS
            with http.stream("GET", address, params=query, headers=headers) as response:
                body = _read(response)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnavailableError(f"{url} cannot be reached: {error}; does a server run there?") from error
    if response.status_code in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS):
        raise UnavailableError(f"{url} has no time: status {response.status_code}")
    if response.status_code != httpx.codes.OK:
        said = body[:300].decode("utf-8", "replace")
        raise AttestationError(f"{url} gives no evidence: status {response.status_code}, {said}")
    try:
        return msgspec.json.decode(body, type=Evidence)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AttestationError(f"{url} sent no evidence that can be read: {error}") from error


def _read(response: httpx.Response) -> bytes:
    """The body, as long as it is not longer than any evidence: a stranger sends it."""
    body = bytearray()
    for part in response.iter_raw():
        body += part
        if len(body) > MOST_BYTES:
            raise AttestationError(f"the answer is longer than {MOST_BYTES} bytes: no evidence")
    return bytes(body)


def _read_collateral(options: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for option in options:
        name, _, path = option.partition("=")
        try:
            found[name] = Path(path).read_bytes()
        except OSError as error:
            raise click.UsageError(f"--collateral {option}: expected NAME=FILE ({error.strerror})") from error
    return found


def _show(evidence: Evidence, report: Report) -> None:
    table = Table("step", "status", "expected", "found")
    for step in report.steps:
        status = Text(step.status, style=_COLORS[step.status])
        table.add_row(plain(step.name), status, plain(_short(step.expected)), plain(_short(step.found)))
    console.print(table)
    verdict = "[bold green]good enough[/]" if report.passed else "[bold red]NOT good enough[/]"
    console.print(verdict, end=" ")
    console.print(f"{evidence.model} version {evidence.version}, technology {report.technology}", markup=False)
    for name, value in (
        ("measurement", report.measurement or "none that holds"),
        ("manifest", evidence.manifest_sha256),
        ("owner", evidence.owner),
        ("guard", evidence.guard),
    ):
        console.print(f"  {name:12}{value}", markup=False, soft_wrap=True)
    if evidence.capabilities:
        said = ", ".join(f"{name} {value}" for name, value in sorted(evidence.capabilities.items()))
        notes.print(f"said by the host and vouched for by nobody: {said}", markup=False, soft_wrap=True)
    if report.technology == "sim" and report.passed:
        notes.print("a simulation: this proves nothing about who runs the service", markup=False)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CELL else f"{text[: _MOST_CELL - 1]}…"
