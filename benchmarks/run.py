"""What theft gets, in docs/benchmarks.md: every seed is a whole way of its own, from training to the clones.

    python -m benchmarks.run [--seeds 5] [--out out/bench] [--no-page]

For each seed: two victims are trained, hardened, sealed and attacked by the ordinary commands, with that seed for all randomness. What is finished is
reused. The part of the page is written from the figures alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks import pages

ROOT = Path(__file__).parents[1]
GARRISON = (sys.executable, "-m", "garrison")
PLAN = """name = "benchmark"
test = "fashion-mnist:test"
surrogate = "mnist:train"
outside = "mnist:test"
seeds = [{seed}]

[[attacks]]
name = "knockoff"
answers = "soft"
budgets = [5000]

[[attacks]]
name = "knockoff"
answers = "labels"
budgets = [5000]

[control]
budgets = [5000]
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the page: what must be reached, how it is read from a seed's findings, how it is judged over seeds."""

    name: str
    must: str
    read: Callable[[dict[tuple[str, str, str], float]], float]
    holds: Callable[[list[float]], bool]
    percent: bool = True


def of(target: str, metric: str, answers: str = "none") -> Callable[[dict[tuple[str, str, str], float]], float]:
    return lambda found: found[target, metric, answers]


def mean_at_most(limit: float, most: float = 1.0) -> Callable[[list[float]], bool]:
    return lambda values: statistics.mean(values) <= limit and max(values) <= most


CLONE = "clone_accuracy"
ROWS = (
    Row("undefended accuracy", "each at least 89.5 %", of("undefended", "served_accuracy"), lambda v: min(v) >= 0.895),
    Row(
        "accuracy lost to misinformation at the calibrated tau",
        "each at most 0.5 points",
        of("defended", "benign_loss_guard"),
        lambda v: max(v) <= 0.005,
    ),
    Row(
        "accuracy lost, with outlier exposure",
        "each at most 1.3 points",
        of("defended", "benign_loss_total"),
        lambda v: max(v) <= 0.013,
    ),
    Row(
        "clone of the undefended model, soft labels",
        "mean at least 35 %",
        of("undefended", CLONE, "soft"),
        lambda v: statistics.mean(v) >= 0.35,
    ),
    Row("clone of the undefended model, labels only", "(shown)", of("undefended", CLONE, "labels"), lambda _: True),
    Row(
        "clone with outlier exposure only, soft labels",
        "(shown)",
        of("outlier-exposure", CLONE, "soft"),
        lambda _: True,
    ),
    Row(
        "clone with outlier exposure only, labels only",
        "(shown)",
        of("outlier-exposure", CLONE, "labels"),
        lambda _: True,
    ),
    Row(
        "clone of the defended model, soft labels",
        "mean at most 13 %, none above 25 %",
        of("defended", CLONE, "soft"),
        mean_at_most(0.13, 0.25),
    ),
    Row(
        "clone of the defended model, labels only",
        "mean at most 13 %, none above 25 %",
        of("defended", CLONE, "labels"),
        mean_at_most(0.13, 0.25),
    ),
    Row(
        "control: clone trained on random labels", "(beside the two above)", of("none", CLONE, "labels"), lambda _: True
    ),
    Row(
        "classes used for digits",
        "at least 8 of 10",
        of("defended", "outside_classes_used"),
        lambda v: min(v) >= 8,
        percent=False,
    ),
    Row(
        "normalised entropy of these classes",
        "at least 0.8",
        of("defended", "outside_entropy"),
        lambda v: min(v) >= 0.8,
        percent=False,
    ),
    Row("same input, same answer in another batch", "all", of("defended", "repeated_alike"), lambda v: min(v) == 1),
)


def run(*command: str) -> str:
    shown = shlex.join(["garrison", *command[3:]] if command[:3] == GARRISON else ["python", *command[1:]])
    print(f"$ {shown}", flush=True)
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"that command failed with exit code {done.returncode}")
    return done.stdout


def one_seed(out: Path, seed: int) -> Path:
    """Train, harden, seal and attack with one seed; the report's path."""
    report = out / "report" / "report.json"
    if report.exists():
        return report
    training, owner = out / "training", str(out / "owner")
    out.mkdir(parents=True, exist_ok=True)
    run(sys.executable, str(ROOT / "examples/fashion_mnist/train.py"), "--out", str(training), "--seed", str(seed))
    if not Path(f"{owner}.key").exists():
        run(*GARRISON, "keygen", "-o", owner)
    data = (
        "--data",
        str(training / "train.npz"),
        "--calibration",
        str(training / "calibration.npz"),
        "--outlier-exposure",
    )
    run(
        *GARRISON,
        "harden",
        str(training / "victim.onnx"),
        *data,
        "--seed",
        str(seed),
        "-o",
        str(out / "hardened"),
        "--force",
    )
    key = ("--key", f"{owner}.key", "--force")
    run(*GARRISON, "seal", str(out / "hardened"), *key, "--name", "victim", "-o", str(out / "bundle"))
    plain = (str(training / "plain.onnx"), "--data", str(training / "calibration.npz"))
    run(*GARRISON, "seal", *plain, *key, "--name", "plain", "-o", str(out / "plain"))
    (out / "plan.toml").write_text(PLAN.format(seed=seed))
    arms = ("--reference", str(out / "bundle"), "--baseline", str(out / "plain"), "--trust", f"{owner}.pub")
    run(*GARRISON, "audit", str(out / "bundle"), "--plan", str(out / "plan.toml"), *arms, "-o", str(out / "report"))
    return report


def figures_of(report: Path) -> dict[tuple[str, str, str], float]:
    content = json.loads(report.read_text())
    rows = content["findings"] + content["controls"]
    return {(f["target"], f["metric"], f["answers"]): f["value"] for f in rows if f["value"] is not None}


def table(found: list[dict[tuple[str, str, str], float]]) -> list[str]:
    lines = ["| figure | must | mean | each seed | holds |", "|---|---|---|---|---|"]
    for row in ROWS:
        values = [row.read(f) for f in found]

        def show(value: float, row: Row = row) -> str:
            return f"{100 * value:.2f}" if row.percent else f"{value:.3g}"

        unit = " %" if row.percent else ""
        verdict = "" if row.must.startswith("(") else ("yes" if row.holds(values) else "**no**")
        lines.append(
            f"| {row.name} | {row.must} | {show(statistics.mean(values))}{unit} | {', '.join(map(show, values))} | {verdict} |"
        )
    return lines


def page(seeds: int, lines: list[str]) -> str:
    made = pages.made(f"python -m benchmarks.run --seeds {seeds}").replace(
        "; Python", f"; torch {version('torch')}, Python"
    )
    return "\n".join([made, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--no-page", action="store_true", help="do not write docs/benchmarks.md")
    given = parser.parse_args()
    found = [figures_of(one_seed(given.out / f"seed-{seed}", seed)) for seed in range(given.seeds)]
    text = page(given.seeds, table(found))
    print(text)
    if not given.no_page:
        pages.write("theft", text)


if __name__ == "__main__":
    main()
