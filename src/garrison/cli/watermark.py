"""`garrison watermark`: was this model trained on our answers?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from garrison.attacks.oracle import Oracle
from garrison.audit.ownership.owner import Candidates, mark_candidates
from garrison.audit.ownership.statistics import Agreement
from garrison.audit.ownership.verify import LEVEL, MOST_QUERIES, Claim, verify_suspects
from garrison.audit.targets import HttpTarget, unguarded
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.secret import read_secret, secret_path
from garrison.cli.access import Access, access_options, caller_option
from garrison.cli.numbers import FiniteRange
from garrison.cli.output import console, json_option, notes, printable, show_json
from garrison.cli.owner_key import passphrase_option, read_owner_key
from garrison.cli.suspect import FileTarget
from garrison.cli.trust import trust_option, trusted_keys_of_user
from garrison.client import Client
from garrison.crypto.canonical import sha256_hex
from garrison.crypto.owner import OwnerPublicKey
from garrison.errors import ConfigError, InputError
from garrison.npz import read_arrays
from garrison.types import Array

_file = click.Path(dir_okay=False, path_type=Path)


@click.group()
def watermark() -> None:
    """Evidence that a model was trained on the answers of a service sealed with --watermark."""


@watermark.command(name="verify")
@click.argument("suspects", metavar="SUSPECT...", nargs=-1, required=True)
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="The BUNDLE that was served.")
@click.option(
    "--candidates", required=True, type=_file, help="Inputs that may have been asked: an .npz with an array x."
)
@click.option("--key", "key_file", type=_file, help="OWNER.key, from which the marks follow.  [default: BUNDLE.secret]")
@passphrase_option
@click.option("--secret", type=_file, help="The model's secret.  [default: BUNDLE.secret]")
@trust_option
@click.option(
    "--queries",
    type=click.IntRange(10),
    default=MOST_QUERIES,
    show_default=True,
    help="Most rows that each SUSPECT is asked.",
)
@click.option(
    "--level",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    default=LEVEL,
    show_default=True,
    help="Accepted chance of any false claim among all SUSPECTs.",
)
@click.option(
    "--output",
    type=click.Choice(["auto", "logits", "probabilities", "scores"]),
    default="auto",
    show_default=True,
    help="What a SUSPECT file answers.",
)
@access_options
@caller_option
@click.option("--model", help="For a SUSPECT service: the model's name, where it has several.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of which candidates are asked.")
@json_option
def verify_(
    suspects: tuple[str, ...],
    bundle: Path,
    candidates: Path,
    key_file: Path | None,
    passphrase_file: Path | None,
    secret: Path | None,
    trust: tuple[Path, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """How likely is it by chance that SUSPECT agrees with BUNDLE's marks so often?

    SUSPECT is a model file (as for `garrison seal`), a sealed bundle or the URL of a service; several are corrected for being several (Holm).

    The p-value holds for any model that was trained without these answers, good or bad, as long as the candidates were not picked
    by looking at the marks. It says who was asked, not who asked.
    """
    trusted = trusted_keys_of_user(trust)
    found = verify(bundle, trusted)
    key = _key(found, bundle, key_file, passphrase_file, secret)
    x = _rows(candidates)
    marked = mark_candidates(found, key, x)
    with _opened(suspects, marked, trusted, given) as opened:
        claims = verify_suspects(opened, marked, most=given["queries"], level=given["level"], seed=given["seed"])
    digest = sha256_hex(candidates.read_bytes())
    if as_json:
        show_json(_as_json(found, marked, claims, digest))
    else:
        _show(found, marked, claims, digest)


def _key(
    found: VerifiedBundle, bundle: Path, key_file: Path | None, passphrase_file: Path | None, secret: Path | None
) -> bytes:
    if key_file is None:
        return read_secret(secret or secret_path(bundle))
    if secret is not None:
        raise ConfigError("give either --key or --secret")
    return read_owner_key(key_file, passphrase_file).misinformation_key(found.manifest.name)


def _rows(file: Path) -> Array:
    arrays = {name: x for name, x in read_arrays(file).items() if name not in {"y", "labels"} and x.ndim}
    if len(arrays) != 1:
        raise InputError(f"{file}: expected one array x of inputs, found {', '.join(arrays) or 'none'}")
    return next(iter(arrays.values()))


@contextlib.contextmanager
def _opened(
    names: tuple[str, ...], marked: Candidates, trusted: list[OwnerPublicKey], given: dict[str, Any]
) -> Iterator[dict[str, Oracle]]:
    if len(set(names)) != len(names):
        raise ConfigError("a SUSPECT was named twice")
    with contextlib.ExitStack() as stack:
        found: dict[str, Oracle] = {}
        for name in names:
            if name.startswith(("http://", "https://")):
                access: Access = given["access"]
                client = stack.enter_context(
                    Client(name, **access.options(), caller=given["caller"], model=given["model"])
                )
                found[name] = HttpTarget(client, name, marked.classes)
            elif Path(name).is_dir():
                found[name] = unguarded(verify(Path(name), trusted))
            else:
                found[name] = FileTarget(Path(name), marked.x, given["output"])
        yield found


def _as_json(found: VerifiedBundle, marked: Candidates, claims: list[Claim], digest: str) -> dict[str, Any]:
    return {
        "model": found.manifest.name,
        "manifest_sha256": found.manifest_sha256,
        "key_commitment": found.manifest.key_commitment,
        "candidates": {
            "sha256": digest,
            "given": marked.given,
            "different": len(marked),
            "marked": marked.marked,
            "share": marked.share,
        },
        "claims": [
            {
                "suspect": claim.suspect,
                "claimed": claim.holds,
                "p": claim.agreement.p,
                "p_corrected": claim.corrected,
                "level": claim.level,
                "queries": claim.queries,
                "counts": msgspec.to_builtins(claim.agreement),
            }
            for claim in claims
        ],
    }


def _show(found: VerifiedBundle, marked: Candidates, claims: list[Claim], digest: str) -> None:
    for claim in claims:
        console.print(printable(claim.suspect), style="bold", markup=False, soft_wrap=True)
        verdict = "trained on our answers" if claim.holds else "no claim"
        one = claim.agreement
        several = f", corrected {claim.corrected:.1e}" if len(claims) > 1 else ""
        lines = [
            ("verdict", f"{verdict}: p {one.p:.1e}{several}, accepted {claim.level:g}"),
            ("marks agreed with", _hits(one, marked.classes)),
            ("agrees otherwise", f"{one.fidelity:.1%} of {one.asked - one.marked:,} inputs without a mark"),
            ("asked", f"{claim.queries:,} rows"),
        ]
        for name, value in lines:
            console.print(f"  {name:<18} {value}", markup=False, soft_wrap=True)
    told = (
        f"{marked.marked} of {len(marked):,} different candidates are marked by {found.manifest.name!r}; "
        f"candidates {digest[:16]}, manifest {found.manifest_sha256[:16]}"
    )
    notes.print(told, markup=False, soft_wrap=True)


def _hits(one: Agreement, classes: int) -> str:
    chance = one.marked * one.differing / one.asked / (classes - 1)
    named = f"{one.named} of {one.marked} named, {chance:.1f} by chance"
    if one.surprise is None:
        return named
    return f"{named}; they stand in the highest {math.exp(-one.surprise):.1%} of its classes, 36.8% by chance"
