"""`garrison seal`: a model, its guard and the owner's signature in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from garrison.api.budgets import derived_draft
from garrison.bundle.manifest import Manifest
from garrison.bundle.reader import entries_of
from garrison.bundle.secret import secret_path
from garrison.cli.numbers import FiniteRange
from garrison.cli.output import console, json_option, notes, show_json
from garrison.cli.owner_key import passphrase_option, read_owner_key
from garrison.errors import ConfigError
from garrison.guard.defenses import DEFENSES
from garrison.guard.defenses.budget import Budget
from garrison.guard.defenses.proof_of_work import ProofOfWork
from garrison.guard.defenses.repeat_watch import RepeatWatch
from garrison.guard.defenses.watermark import MOST_SHARE, Watermark
from garrison.guard.watching.book import ACTIONS
from garrison.hardening.data import read_npz
from garrison.hardening.ranges import SLACK
from garrison.protocol.work import work_in_words
from garrison.sealing.choices import budget_of, release_of
from garrison.sealing.draft import Draft
from garrison.sealing.formats import read_source
from garrison.sealing.options import SealOptions
from garrison.sealing.place import check_target
from garrison.sealing.seal import seal as seal_draft
from garrison.sealing.sources import draft_from_hardened, draft_from_source

_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--key", "key_file", required=True, type=_file, help="OWNER.key, from `garrison keygen`.")
@passphrase_option
@click.option(
    "-o", "--output-folder", "out", required=True, type=click.Path(path_type=Path), help="The BUNDLE to make."
)
@click.option(
    "--data", type=_file, help="Held-out rows (.npz, arrays x and perhaps y); needed unless SOURCE is HARDENED."
)
@click.option("--name", help="How clients ask for the model.  [default: the name of BUNDLE]")
@click.option(
    "--version", type=click.IntRange(min=1), default=1, show_default=True, help="A client may refuse older ones."
)
@click.option("--release", type=click.Choice(["full", "rounded", "top-k", "label"]), help="What of an answer leaves.")
@click.option("--k", type=click.IntRange(min=1), default=3, show_default=True, help="Classes in --release top-k.")
@click.option(
    "--decimals", type=click.IntRange(0, 12), help="Digits after the point, for --release rounded (3) and top-k."
)
@click.option("--budget", help="Rows a caller may ask: 5000, or 5000/day.")
@click.option("--budget-distinct", "distinct", type=click.IntRange(min=1), help="So many of them may be different.")
@click.option(
    "--budget-from",
    type=_file,
    help="REPORT.json of an audit of this model: a budget below the answers after which a clone reaches --budget-fidelity. "
    "With --budget it bounds the different rows.",
)
@click.option(
    "--budget-fidelity",
    type=FiniteRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Agreement with the model that no clone may reach, for --budget-from.",
)
@click.option(
    "--budget-margin",
    type=FiniteRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of those answers that a caller gets.",
)
@click.option("--price", type=FiniteRange(min=0), help="US dollars for 1,000 rows: told to clients, used by audits.")
@click.option(
    "--output",
    type=click.Choice(["auto", "logits", "probabilities", "scores", "values"]),
    default="auto",
    show_default=True,
    help="What the model's answer means.",
)
@click.option("--on-ood", type=click.Choice(["refuse", "uncertain"]), help="In place of misinformation.")
@click.option(
    "--defense",
    "defenses",
    multiple=True,
    metavar="NAME[:key=value,...]",
    help="A defense of your choice, in place of those that change answers; may be given several times.",
)
@click.option(
    "--benign-loss",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.005,
    show_default=True,
    help="Share of honest rows that the out-of-distribution threshold may cost; decided at hardening for HARDENED.",
)
@click.option(
    "--range-margin",
    type=FiniteRange(0, 10),
    default=SLACK,
    show_default=True,
    help="Room beyond the values seen in a table's feature, as a share of their range.",
)
@click.option("--may-be-missing", is_flag=True, help="NaN stands for a missing value, in every feature.")
@click.option("--labels", help="Class labels in the model's order: a,b,c or @FILE with one a line.")
@click.option(
    "--shadow",
    multiple=True,
    metavar="DEFENSE",
    type=click.Choice(sorted(DEFENSES)),
    help="Run this defense of the chain, and change nothing (docs/defenses).",
)
@click.option(
    "--arm",
    metavar="DEFENSE",
    multiple=True,
    type=click.Choice(sorted(DEFENSES)),
    help="Let this defense act that hardening put in shadow.",
)
@click.option(
    "--watch-action",
    type=click.Choice(ACTIONS),
    help="What an alarm of `watch` does at least; it acts then (else it runs in shadow, and would misinform).",
)
@click.option(
    "--detectors/--no-detectors", default=True, help="Calibrate detectors of callers who steal, for a model file."
)
@click.option(
    "--drift/--no-drift",
    default=True,
    help="Keep a signed reference of the rows, to see callers drift (docs/drift.md).",
)
@click.option(
    "--watermark",
    type=FiniteRange(0, MOST_SHARE, min_open=True),
    metavar="SHARE",
    help="Answer this share of all inputs wrongly, such as 0.01, so that clones can be told: `garrison watermark verify`.",
)
@click.option("--watch-repeats", is_flag=True, help="Name callers in the log who ask the same rows again and again.")
@click.option("--require-sealed", is_flag=True, help="Refuse requests that are not sealed to an enclave.")
@click.option("--double", is_flag=True, help="Convert a scikit-learn or LightGBM model in double precision.")
@click.option("--force", is_flag=True, help="Replace an older bundle.")
@json_option
def seal(source: Path, key_file: Path, passphrase_file: Path | None, out: Path, *, as_json: bool, **given: Any) -> None:
    """Seal SOURCE, a HARDENED folder or a model file, into BUNDLE.

    Model files: .onnx, .skops (scikit-learn), .pt2 (PyTorch), .json or .ubj (XGBoost), .txt (LightGBM).

    With a guard that misinforms, the model's secret is written to BUNDLE.secret: it belongs on the server, outside the bundle.
    OWNER.key does not.
    """
    check_target(out, force=given["force"])
    options = _options(out, given)
    owner = read_owner_key(key_file, passphrase_file)
    draft = _draft(source, given["data"], options, double=given["double"])
    if given["budget_from"] is not None:
        draft = derived_draft(
            draft, given["budget_from"], given["budget_fidelity"], given["budget_margin"], given["price"] or 0.0
        )
    manifest = seal_draft(draft, owner, out, force=given["force"])
    secret = secret_path(out) if manifest.key_commitment else None
    if as_json:
        show_json(_as_json(manifest, out, owner.public.fingerprint, secret, draft))
    else:
        _show(manifest, out, owner.public.fingerprint, secret, draft)


def _draft(source: Path, data: Path | None, options: SealOptions, *, double: bool) -> Draft:
    rows = None if data is None else read_npz(data)
    if source.is_dir():
        return draft_from_hardened(source, options, rows)
    model = read_source(source, double=double)
    if rows is None:
        raise ConfigError(f"{source}: --data is needed: held-out rows, from which ranges and thresholds are learned")
    return draft_from_source(model, rows, options)


def _options(out: Path, given: dict[str, Any]) -> SealOptions:
    return SealOptions(
        name=given["name"] or out.absolute().name,
        version=given["version"],
        release=release_of(given["release"], given["k"], given["decimals"]),
        budget=_budget(given),
        output=given["output"],
        may_be_missing=given["may_be_missing"],
        labels=_labels(given["labels"]),
        shadow=frozenset(given["shadow"]),
        arm=frozenset(given["arm"]),
        watch_action=given["watch_action"],
        detectors=given["detectors"],
        drift=given["drift"],
        range_margin=given["range_margin"],
        on_ood=given["on_ood"],
        benign_loss=given["benign_loss"],
        require_sealed=given["require_sealed"],
        watermark=None if given["watermark"] is None else Watermark(share=given["watermark"]),
        watch=RepeatWatch() if given["watch_repeats"] else None,
        defenses=given["defenses"],
    )


def _budget(given: dict[str, Any]) -> Budget | None:
    if given["budget_from"] is None or given["budget"] is not None:
        return budget_of(given["budget"], given["distinct"], given["price"])
    if given["distinct"] is not None:
        raise ConfigError("--budget-distinct: --budget-from finds it; leave one of them out")
    return None  # the report says


def _labels(text: str | None) -> tuple[str, ...]:
    if not text:
        return ()
    if not text.startswith("@"):
        return tuple(label.strip() for label in text.split(","))
    try:
        lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels: {text[1:]} cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def _as_json(manifest: Manifest, out: Path, signer: str, secret: Path | None, draft: Draft) -> dict[str, Any]:
    entries = entries_of(manifest)
    return {
        "bundle": str(out),
        "name": manifest.name,
        "version": manifest.version,
        "task": manifest.task.value,
        "signer": signer,
        "secret": None if secret is None else str(secret),
        "guard": [spec.name for spec in manifest.guard],
        "metrics": manifest.provenance.metrics,
        "files": len(entries),
        "bytes": sum(entry.size for entry in entries),
        "notes": [*draft.notes, *_work_notes(manifest), *_form_notes(manifest)],
    }


def _show(manifest: Manifest, out: Path, signer: str, secret: Path | None, draft: Draft) -> None:
    entries = entries_of(manifest)
    chain = ", ".join(f"{spec.name}{' (shadow)' if spec.shadow else ''}" for spec in manifest.guard)
    lines = {
        "sealed": str(out),
        "model": f"{manifest.name}, version {manifest.version}, {manifest.task.value}",
        "guard": chain,
        "signed by": signer,
        "files": f"{len(entries)} graphs and chunks, {sum(entry.size for entry in entries):,} bytes",
    }
    if secret is not None:
        lines["secret"] = f"{secret} (for the server; keep it outside the bundle)"
    for name, value in lines.items():
        console.print(f"{name:10}{value}", markup=False, soft_wrap=True)
    for note in (*draft.notes, *_work_notes(manifest), *_form_notes(manifest)):
        notes.print(f"note: {note}", markup=False, soft_wrap=True)


def _form_notes(manifest: Manifest) -> tuple[str, ...]:
    """Where the guard does not run as one graph with the model."""
    if manifest.guarded is not None or manifest.upstream is not None:
        return ()
    return (f"the guard runs in numpy beside the model, which takes longer: {manifest.numpy_because}",)


def _work_notes(manifest: Manifest) -> tuple[str, ...]:
    """What a proof of work costs an honest caller, measured here."""
    asked = next((spec for spec in manifest.guard if spec.name == ProofOfWork.name), None)
    if asked is None:
        return ()
    bits = int(asked.parameters.get("bits", ProofOfWork().bits))
    return (
        f"proof of work: {work_in_words(bits)}; a thief pays the same, and with hardware for SHA-256 next to nothing",
    )
