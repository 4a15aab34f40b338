"""`garrison ledger`: what a server wrote down of what was asked and answered."""

from __future__ import annotations

import csv
import sys
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from garrison.attest.policy import load_policy
from garrison.cli.output import console, json_option, notes, printable, show_json
from garrison.cli.trust import trust_option, trusted_keys_of_user
from garrison.errors import ConfigError, LedgerError
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.server.ledger.finding import find_answer, find_digest, parse_proof, signer_of
from garrison.server.ledger.folder import chains_of
from garrison.server.ledger.reader import Row, answers_of, latest_checkpoint, records_of
from garrison.server.ledger.records import Answers, Record
from garrison.server.ledger.retention import prune as prune_chain
from garrison.server.ledger.trust import KeyTrust, policy_of
from garrison.server.ledger.verify import ChainReport, verify_ledger

_folder = click.argument("folder", metavar="LEDGER", type=click.Path(path_type=Path))
_file = click.Path(dir_okay=False, exists=True, path_type=Path)
_COLUMNS = (
    *("chain", "seq", "time", "model", "version", "caller", "code", "rows", "replaced", "distinct"),
    *("request", "answer", "nonce", "receipt"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@click.group()
def ledger() -> None:
    """What a server wrote down: who asked what model when, what became of it, and what the operator did (`garrison serve --ledger LEDGER`)."""


@ledger.command()
@_folder
@trust_option
@click.option("--policy", "policy_file", type=_file, help="What evidence of enclaves is good enough, a TOML file.")
@click.option("--allow-simulated", is_flag=True, help="Take the evidence of a simulation, which proves nothing.")
@click.option(
    "--key", "keys", multiple=True, metavar="HEX", help="A public key of an enclave, as `garrison serve` showed it."
)
@click.option("--any-key", is_flag=True, help="Take every key: shows that the ledger holds together, not whose it is.")
@click.option(
    "--checkpoint", "anchors", multiple=True, type=_file, help="A checkpoint that was kept elsewhere must be in it."
)
@json_option
def verify(
    folder: Path,
    trust: tuple[Path, ...],
    policy_file: Path | None,
    allow_simulated: bool,
    keys: tuple[str, ...],
    any_key: bool,
    anchors: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Check every line and every signature of LEDGER, and name the first that does not hold. Exit code 0 where all does, 1 otherwise."""
    owners = tuple(key.fingerprint for key in trusted_keys_of_user(trust))
    policy = policy_of(
        None if policy_file is None else load_policy(policy_file), owners, allow_simulated=allow_simulated
    )
    known = KeyTrust(policy, frozenset(key.lower() for key in keys), unsafe_any_key=any_key)
    reports = verify_ledger(folder, known, [_checkpoint(file) for file in anchors])
    good = not any(report.problem for report in reports)
    if as_json:
        show_json({"verified": good, "chains": [_report_json(report) for report in reports]})
    else:
        for report in reports:
            _show_report(report)
    if not good:
        sys.exit(1)


@ledger.command()
@_folder
@click.option(
    "--last", type=click.IntRange(1), default=20, show_default=True, help="So many of the newest lines of each chain."
)
@json_option
def show(folder: Path, last: int, as_json: bool) -> None:
    """The newest lines of LEDGER, as they stand there. Verifies nothing."""
    newest = {chain.name: deque(records_of(chain), maxlen=last) for chain in chains_of(folder)}
    if as_json:
        show_json({name: list(records) for name, records in newest.items()})
        return
    for name, records in newest.items():
        console.print(name, markup=False)
        for record in records:
            for line in _lines(record):
                console.print(f"  {line}", markup=False, soft_wrap=True)


@ledger.command()
@_folder
@click.option("--format", "kind", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--caller", help="Of this caller alone.")
@click.option(
    "--since", metavar="TIME", type=click.DateTime(), help="From this time on, UTC: 2026-11-21 or 2026-11-21T08:00:00."
)
def export(folder: Path, kind: str, caller: str | None, since: datetime | None) -> None:
    """All answers of LEDGER, one a line, on standard output. Verifies nothing."""
    start = 0.0 if since is None else since.replace(tzinfo=UTC).timestamp()
    rows = (_row(row) for row in answers_of(folder) if row.time >= start and caller in {None, row.entry.caller})
    if kind == "jsonl":
        for row in rows:
            click.echo(msgspec.json.encode(row))
        return
    writer = csv.DictWriter(sys.stdout, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(row.get(name, "")) for name in _COLUMNS})


@ledger.command()
@_folder
@click.argument("proof", metavar="[PROOF]", required=False, type=_file)
@click.option("--digest", metavar="HEX", help="SHA-256 of a request's or an answer's body, in place of a proof.")
@json_option
def find(folder: Path, proof: Path | None, digest: str | None, as_json: bool) -> None:
    """The entry in LEDGER of the answer that PROOF is of: a file with the header `Garrison-Proof`, or one of `Prediction.proofs`. Exit code 1 where there is none."""
    if (proof is None) == (digest is None):
        raise click.UsageError("name a PROOF or a --digest")
    signer = ""
    if proof is not None:
        read, statement = parse_proof(proof.read_bytes())
        signer = signer_of(folder, read)
        if not signer:
            raise LedgerError("no enclave in this ledger signed that proof")
        rows = [_row(row) for row in find_answer(folder, read, statement)]
    else:
        rows = [_row(row) for row in find_digest(folder, digest or "")]
    if as_json:
        show_json({"found": rows, "signer": signer})
    for row in () if as_json else rows:
        console.print(_entry_line(row), markup=False, soft_wrap=True)
    if not rows:
        raise LedgerError("the ledger has no entry of it")


@ledger.command()
@_folder
@json_option
def checkpoint(folder: Path, as_json: bool) -> None:  # noqa: ARG001  it prints nothing else
    """The latest checkpoint of the chain LEDGER, to be kept elsewhere: `garrison ledger verify --checkpoint FILE` then sees an end that was cut off."""
    chains = chains_of(folder)
    if len(chains) > 1:
        raise ConfigError(f"{folder} holds {len(chains)} chains; name one, such as {chains[0]}")
    found = latest_checkpoint(chains[0])
    if found is None:
        raise LedgerError(f"{chains[0]} has no checkpoint yet")
    show_json(found)


@ledger.command()
@_folder
@click.option(
    "--before",
    metavar="TIME",
    required=True,
    type=click.DateTime(),
    help="Drop files whose last line is older than this, UTC: 2026-11-21 or 2026-11-21T08:00:00.",
)
@json_option
def prune(folder: Path, before: datetime, as_json: bool) -> None:
    """Drop old files of LEDGER, of each of which a stub is left, so that it still verifies. A server may run meanwhile."""
    cut = before.replace(tzinfo=UTC).timestamp()
    dropped = [(chain.name, first, last) for chain in chains_of(folder) for first, last in prune_chain(chain, cut)]
    if as_json:
        show_json([{"chain": name, "first": first, "last": last} for name, first, last in dropped])
        return
    for name, first, last in dropped:
        console.print(f"{name}: entries {first} to {last} dropped", markup=False)
    if not dropped:
        console.print("nothing is old enough; the file that is written to is never dropped")


def _checkpoint(file: Path) -> SignedCheckpoint:
    try:
        return msgspec.json.decode(file.read_bytes(), type=SignedCheckpoint)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} holds no checkpoint: {error}") from error


def _report_json(report: ChainReport) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found


def _show_report(report: ChainReport) -> None:
    style = "[bold red]does not hold[/]" if report.problem else "[bold green]holds[/]"
    console.print(style, end=" ")
    console.print(f"{report.name} ({report.ledger or 'unknown'})", markup=False, soft_wrap=True)
    if report.problem:
        console.print(f"  {printable(report.problem)}", markup=False, soft_wrap=True)
        return
    pruned = f", {report.pruned} of them dropped" if report.pruned else ""
    console.print(f"  entries {report.first} to {report.last}{pruned}; {report.answers} answers", markup=False)
    console.print(f"  {report.checkpoints} signatures, up to entry {report.signed}", markup=False)
    for key, who in report.keys.items():
        console.print(f"  key {key}: {printable(who)}", markup=False, soft_wrap=True)
    for note in _notes(report):
        notes.print(f"  note: {note}", markup=False, soft_wrap=True)


def _notes(report: ChainReport) -> Iterator[str]:
    if report.unsigned:
        yield (
            f"{report.unsigned} entries after {report.signed} are not signed yet, the first for {report.unsigned_seconds:.0f} s: "
            "who holds the disk could have changed these, or taken out others"
        )
    for first, last in report.late:
        yield (
            f"entries {first} to {last} stood there before the enclave that signed them saw this ledger: who held the disk in between could have "
            "changed them"
        )
    for first, last in report.tardy:
        yield f"entries {first} to {last} were signed minutes after the time that they tell, or by an enclave whose clock is wrong"
    for seq in report.crashes:
        yield f"before entry {seq} a server ended without a stop"
    if report.unfinished:
        yield f"{report.unfinished} bytes of an unfinished line at the end: it is being written, or a crash cut it off"


def _row(row: Row) -> dict[str, Any]:
    entry: dict[str, Any] = msgspec.to_builtins(row.entry)
    head = {"chain": row.chain, "seq": row.seq, "time": row.time, "model": row.model, "version": row.version}
    return head | {"code": row.entry.code} | entry


def _cell(value: object) -> object:
    """A caller's name must not be a formula in somebody's spreadsheet."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _entry_line(row: dict[str, Any]) -> str:
    what = f"{row['caller']} asked {row['model']}, version {row['version']}: {row['code']}, {row['rows']} rows"
    return printable(f"{row['seq']:>8} {_clock(row['time'])} {what}")


def _lines(record: Record) -> Iterator[str]:
    if isinstance(record, Answers):
        for k, entry in enumerate(record.entries):
            yield _entry_line(_row(Row("", record.seq + k, record.time, record.model, record.version, entry)))
        return
    said: dict[str, Any] = msgspec.to_builtins(record)
    rest = {k: v for k, v in said.items() if k not in {"kind", "seq", "time", "evidence"}}
    text = msgspec.json.encode(rest).decode() if rest else ""
    yield printable(f"{record.seq:>8} {_clock(record.time)} {said['kind']} {text}")
