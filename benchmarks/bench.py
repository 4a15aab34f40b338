"""`make bench`: every benchmark, one part after the other, each into its own part of docs/benchmarks.md.

    python -m benchmarks.bench                          # all parts
    python -m benchmarks.bench --only serving,sealed    # make bench ONLY=serving,sealed
    python -m benchmarks.bench --skip theft             # make bench SKIP=theft

A part that fails does not stop the others; its old text stays on the page, and the command ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import pages

ROOT = Path(__file__).parents[1]
SEED = Path("out/bench/seed-0")


@dataclass(frozen=True, slots=True)
class Part:
    """One benchmark.

    Attributes:
        words: what follows `python`.
        writes: it writes its part of the page itself; else what it prints is put there.
        needs: files that another part makes.
    """

    name: str
    title: str
    words: tuple[str, ...]
    writes: bool = False
    needs: tuple[Path, ...] = ()
    made_by: str = ""


VICTIM = (SEED / "hardened", SEED / "training" / "calibration.npz", SEED / "bundle", SEED / "owner.pub")

PARTS = (
    Part("serving", "Garrison and its peers, about 25 minutes", ("-m", "benchmarks.serving"), writes=True),
    Part("request", "a guarded request, and the web server and runtime alone", ("-m", "benchmarks.serve_lenet")),
    Part(
        "budget",
        "what each part adds to a guarded request",
        ("-m", "benchmarks.request_budget", "--json"),
        needs=VICTIM,
        made_by="theft",
    ),
    Part(
        "detectors",
        "what the detectors take of a row",
        ("-m", "benchmarks.detection", "--cost"),
        needs=VICTIM,
        made_by="theft",
    ),
    Part("sealed", "a sealed request against a plain one", ("-m", "benchmarks.sealed_requests")),
    Part("middleware", "the guard inside a FastAPI app", ("-m", "benchmarks.middleware_cost")),
    Part("gateway", "what a gateway adds, at 1 and 32 connections", ("-m", "benchmarks.gateway_cost")),
    Part(
        "identity",
        "TLS, keys and quotas",
        ("-m", "benchmarks.identity_cost", "--rounds", "15", "--arms", "plain", "again", "tls", "key", "quota"),
    ),
    Part(
        "drift",
        "drift: what must hold, three seeds",
        ("-m", "benchmarks.drift", "--table", "--seeds", "3", "--only", "benign,skew,cost"),
        writes=True,
    ),
    Part("overload", "two minutes at twice the capacity", ("-m", "benchmarks.overload")),
    Part(
        "endurance",
        "minutes at full load with everything on (MINUTES, 10)",
        ("-m", "benchmarks.endurance", "--table"),
        writes=True,
    ),
    Part(
        "everything",
        "throughput with everything on against unguarded, ResNet-18 size",
        ("-m", "benchmarks.everything_resnet"),
        needs=(SEED / "hardened",),
        made_by="theft",
    ),
    Part("fuzzing", "a million malformed requests (COUNT)", ("-m", "benchmarks.fuzzing", "--table"), writes=True),
    Part(
        "evasion",
        "pictures changed until they are misnamed",
        ("-m", "benchmarks.evasion"),
        writes=True,
        needs=(*VICTIM, SEED / "plain"),
        made_by="theft",
    ),
    Part("parameters", "parameters on demand", ("benchmarks/parameters_on_demand.py",)),
    Part("theft", "five seeds from training to the clones, hours", ("-m", "benchmarks.run"), writes=True),
    Part(
        "misinformation",
        "misinformation as a share of inference",
        (
            *("benchmarks/misinformation_cost.py", "--hardened", str(SEED / "hardened")),
            *("--plain", str(SEED / "training" / "plain.onnx")),
        ),
        needs=(SEED / "hardened", SEED / "training" / "plain.onnx"),
        made_by="theft",
    ),
)


def chosen(only: str, skip: str) -> list[Part]:
    """The parts that are asked for, in their order.

    Raises:
        ValueError: a name that is not known.
    """
    names = [part.name for part in PARTS]
    wanted, unwanted = split(only) or names, split(skip)
    unknown = sorted({*wanted, *unwanted} - {*names})
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}, only {', '.join(names)}")
    return [part for part in PARTS if part.name in wanted and part.name not in unwanted]


def split(names: str) -> list[str]:
    return [name.strip() for name in names.replace(",", " ").split()]


def block(part: Part, said: str) -> str:
    """What a benchmark printed, as a part of the page."""
    try:
        said = json.dumps(json.loads(said), indent=2)
        kind = "json"
    except ValueError:
        kind = "text"
    return f"{pages.made(f'make bench ONLY={part.name}')}\n\n```{kind}\n{said.strip()}\n```"


def run(part: Part) -> str:
    """Why a part failed; "" where it did not."""
    missing = [str(path) for path in part.needs if not (ROOT / path).exists()]
    if missing:
        return f"{missing[0]} is missing: it is made by `make bench ONLY={part.made_by}`"
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [sys.executable, *part.words], cwd=ROOT, check=False, stdout=None if part.writes else output, text=True
        )
        output.seek(0)
        said = output.read()
    if done.returncode:
        return f"exit code {done.returncode}"
    if not part.writes:
        print(said)
        pages.write(part.name, block(part, said))
    return ""


def run_all(parts: Sequence[Part]) -> dict[str, str]:
    """Each part's failure, "" where there was none."""
    found = {}
    for number, part in enumerate(parts, 1):
        print(f"\n=== {number}/{len(parts)} {part.name}: {part.title} ===", flush=True)
        started = time.monotonic()
        try:
            found[part.name] = run(part)
        except (OSError, pages.PageError) as error:
            found[part.name] = str(error)
        took = time.monotonic() - started
        print(f"=== {part.name}: {found[part.name] or 'done'}, {took:.0f} s ===", flush=True)
    return found


def main() -> None:
    names = ", ".join(part.name for part in PARTS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"of {names}, with commas between")
    parser.add_argument("--skip", default="", help="the same names")
    given = parser.parse_args()
    try:
        parts = chosen(given.only, given.skip)
    except ValueError as error:
        parser.error(str(error))
    found = run_all(parts)
    failed = {name: why for name, why in found.items() if why}
    if failed:
        sys.exit("these parts failed: " + "; ".join(f"{name} ({why})" for name, why in failed.items()))


if __name__ == "__main__":
    main()
