"""`garrison verify`: may this bundle be used?"""

from __future__ import annotations

from pathlib import Path

import click

from garrison.bundle.reader import verify as verify_bundle
from garrison.cli.output import console, json_option, show_json
from garrison.cli.trust import trust_option, trusted_keys_of_user


@click.command()
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@trust_option
@json_option
def verify(bundle: Path, trust: tuple[Path, ...], as_json: bool) -> None:
    """Check every byte of BUNDLE against a trusted key. Exit code 0 when all holds, 1 otherwise."""
    found = verify_bundle(bundle, trusted_keys_of_user(trust))
    manifest, size = found.manifest, sum(map(len, found.files.values()))
    if as_json:
        show_json(
            {
                "verified": True,
                "name": manifest.name,
                "version": manifest.version,
                "signer": found.signer,
                "manifest_sha256": found.manifest_sha256,
                "guard_digest": manifest.guard_digest(),
                "files": len(found.files),
                "bytes": size,
            }
        )
        return
    console.print("[bold green]verified[/]", end=" ")
    console.print(str(bundle), markup=False, soft_wrap=True)
    for key, value in (
        ("model", f"{manifest.name}, version {manifest.version}"),
        ("signed by", found.signer),
        ("manifest", found.manifest_sha256),
        ("files", f"{len(found.files)} graphs and chunks, {size:,} bytes"),
    ):
        console.print(f"  {key:10}{value}", markup=False, soft_wrap=True)
