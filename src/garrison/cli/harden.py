"""`garrison harden`: misinformation and calibration for a model that is already trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from garrison.cli.numbers import FiniteRange
from garrison.cli.output import console, json_option, notes, progress, show_json
from garrison.cli.upstream import upstream_model_options, upstream_wish
from garrison.hardening.artifact import Hardened, check_target, write_hardened
from garrison.hardening.data import read_npz
from garrison.hardening.harden import Options
from garrison.hardening.upstream import harden_upstream
from garrison.sealing.formats import read_source
from garrison.sealing.harden import harden_source

FILE = click.Path(path_type=Path, dir_okay=False)


def _budget(_: click.Context, __: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """ROWS or ROWS/day."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+)(/day)?", value)
    if found is None:
        raise click.BadParameter(f"expected a number of rows, such as 10000 or 10000/day, found {value!r}")
    return {"rows": int(found[1]), "period": "day" if found[2] else "ever"}


@click.command()
@click.argument("model", type=FILE, required=False)
@click.option("--data", "data", type=FILE, required=True, help="Training rows: an .npz with x, y and perhaps labels.")
@click.option("-o", "--out", "target", type=click.Path(path_type=Path), required=True, help="HARDENED folder.")
@click.option(
    "--calibration", type=FILE, help="Rows that the model has not seen; without it a fifth of --data is held out."
)
@click.option(
    "--outliers", type=FILE, help="Rows that are not the model's business, to measure on; drawn where not given."
)
@click.option(
    "--benign-loss",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.005,
    show_default=True,
    help="Accuracy that honest callers may lose, as a share.",
)
@click.option(
    "--score",
    type=click.Choice(["max-probability", "energy", "mahalanobis", "knn"]),
    default="max-probability",
    show_default=True,
    help="What tells honest inputs from others; energy needs logits, mahalanobis and knn a dense last layer.",
)
@click.option(
    "--misinformation",
    type=click.Choice(["adaptive", "deceptive", "label-preserving"]),
    default="adaptive",
    show_default=True,
    help="How to misinform: a class drawn for each input, a plausible one, or none but the other probabilities.",
)
@click.option(
    "--on-ood",
    type=click.Choice(["misinform", "refuse", "uncertain"]),
    default="misinform",
    show_default=True,
    help="What inputs that look out of distribution are answered.",
)
@click.option("--labels", help="Names of the classes, in the model's order: a,b,c.")
@click.option(
    "--output",
    type=click.Choice(["auto", "logits", "probabilities"]),
    default="auto",
    show_default=True,
    help="What the model answers; a softmax is appended to logits.",
)
@click.option("--input-range", type=(float, float), help="Range of all input values; else the range in the data.")
@click.option("--budget", callback=_budget, metavar="ROWS[/day]", help="Rows that one caller may ask, in all or a day.")
@click.option(
    "--release",
    type=click.Choice(["full", "rounded", "top-k", "label"]),
    default="full",
    show_default=True,
    help="How much of an answer leaves.",
)
@click.option("--decimals", type=int, help="Digits after the point, for --release rounded (3) and top-k.")
@click.option("--k", type=int, default=3, show_default=True, help="Classes, for --release top-k.")
@click.option("--constant-time", is_flag=True, help="Compute misinformation for every row.")
@click.option("--detectors/--no-detectors", default=True, help="Calibrate detectors of callers who steal, in shadow.")
@click.option(
    "--drift/--no-drift", default=True, help="Keep a signed reference of held-out rows, to see callers drift."
)
@click.option("--outlier-exposure", is_flag=True, help="Note down that the model was trained with outlier exposure.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the held-out rows and of training.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the runtime and of training.")
@upstream_model_options
@click.option("--force", is_flag=True, help="Replace an earlier HARDENED folder.")
@json_option
def harden(model: Path | None, data: Path, target: Path, force: bool, as_json: bool, **given: Any) -> None:
    """Calibrate MODEL's guard on your data, and train a misinformation model where it has none.

    MODEL is a file that `garrison seal` takes too: .onnx, .skops, .pt2, .json or .ubj (XGBoost), .txt (LightGBM).

    A graph with an output `misinformation` keeps it. The folder is what `garrison seal` takes.

    With --upstream URL --model NAME there is no file: the model stays on the Open Inference Protocol server that runs it, and is asked.
    `garrison gateway` serves the bundle that is sealed then.
    """
    wish = upstream_wish(given)
    if (model is None) == (wish is None):
        raise click.UsageError("give either a MODEL file or --upstream URL with --model NAME")
    check_target(target, force=force)
    options = Options(
        benign_loss=given["benign_loss"],
        score=given["score"],
        on_ood=given["on_ood"],
        misinformation=given["misinformation"],
        output=given["output"],
        labels=_names(given["labels"]),
        bounds=given["input_range"],
        budget=given["budget"],
        release=_release(given["release"], given["decimals"], given["k"]),
        constant_time=given["constant_time"],
        detectors=given["detectors"],
        drift=given["drift"],
        outlier_exposure=given["outlier_exposure"],
        seed=given["seed"],
        threads=given["threads"],
    )
    files = {name: None if given[name] is None else read_npz(given[name]) for name in ("calibration", "outliers")}
    with progress("hardening") as report:
        rows = read_npz(data)
        if model is not None:
            source = read_source(model)
            result = harden_source(source, rows, files["calibration"], files["outliers"], options, report)
        elif wish is not None:
            result = harden_upstream(*wish, rows, files["calibration"], files["outliers"], options, report)
    written = write_hardened(target, result.description, result.model, result.misinformation, force=force)
    if as_json:
        show_json({"path": str(target), "notes": result.notes, "hardened": written})
        return
    _show(target, written, result.calibration.labelled)
    for note in result.notes:
        notes.print("[yellow]note:[/] ", end="")
        notes.print(note, markup=False, soft_wrap=True)


def _names(labels: str | None) -> tuple[str, ...] | None:
    return None if labels is None else tuple(name.strip() for name in labels.split(","))


def _release(mode: str, decimals: int | None, k: int) -> dict[str, Any]:
    match mode:
        case "label":
            return {"mode": "labels"}
        case "rounded":
            return {"mode": "rounded", "decimals": 3 if decimals is None else decimals}
        case "top-k":
            return {"mode": "top-k", "k": k, "decimals": decimals}
        case _:
            return {"mode": "full"}


def _show(target: Path, written: Hardened, labelled: bool) -> None:
    m = written.metrics
    what = "accuracy lost by honest rows" if labelled else "honest rows whose answer changes"
    lines = [
        ("chain", " > ".join(f"{spec.name}{' (shadow)' * spec.shadow}" for spec in written.guard)),
        ("tau", f"{m['tau']:g}, on {m['calibration_rows']:.0f} held-out rows"),
        (
            what,
            f"{m['benign_loss']:.2%}, below {m['benign_loss_high']:.2%} with 95 % confidence; asked {m['benign_loss_asked']:.2%}",
        ),
    ]
    if "accuracy" in m:
        lines.append(("accuracy", f"{m['accuracy']:.2%} as it is, {m['served_accuracy']:.2%} as served"))
    if "misinformation_loss" in m:
        lines.append(
            (
                "misinformation loss",
                f"{m['misinformation_loss']:.4f}, untrained {m['misinformation_loss_untrained']:.4f}",
            )
        )
    if "outliers_caught" in m:
        lines.append(("outliers caught", f"{m['outliers_caught']:.1%}, AUROC {m['outliers_auroc']:.4f}"))
    if "watch_callers" in m:
        callers, rows, high = m["watch_callers"], m["watch_rows_a_caller"], m["watch_alarmed_high"]
        alarmed = f"alarm {m['watch_alarmed']:.0f} of {callers:.0f} simulated honest callers of {rows:.0f} rows"
        lines.append(("detectors", f"{alarmed}, below {high:.2%} with 95 % confidence"))
    if "misinformation_classes" in m:
        classes, spread = m["misinformation_classes"], m["misinformation_entropy"]
        lines.append(
            ("misinformation", f"{classes:.0f} of {len(written.labels)} classes used, normalised entropy {spread:.2f}")
        )
    console.print(str(target), style="bold", markup=False, soft_wrap=True)
    for name, value in lines:
        console.print(f"  {name:<32} {value}", markup=False, soft_wrap=True)
