"""Garrison and its peers side by side: processor time a request, throughput, latency.

    python -m benchmarks.serving                    # everything, about 35 minutes; goes on where it was interrupted
    python -m benchmarks.serving --quick            # Garrison's own servers, LeNet size, against the kept ratios, within 2 minutes
    python -m benchmarks.serving --report           # the page again, from what was measured
    python -m benchmarks.serving --smoke            # everything, as short as can be: figures mean nothing

The server is pinned to one core, the load to another. Best on a machine that does nothing else; the ratios bear more than the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from benchmarks.serving.arms import OURS, peer_arm
from benchmarks.serving.driving import has_wrk
from benchmarks.serving.environments import PEERS, Environment
from benchmarks.serving.models import MODELS
from benchmarks.serving.quick import EXPECTED, compare, ratios
from benchmarks.serving.records import Book, fingerprint
from benchmarks.serving.stages import Run, Settings

from benchmarks import pages
from benchmarks.serving import page

QUICK = Settings(
    peers=(),
    guard_arms=tuple(arm.name for arm in OURS),
    guard_rounds=5,
    throughput_rounds=0,
    latency_rounds=0,
    starts=1,
)
SMOKE = Settings(
    guard_rounds=1,
    peer_rounds=dict.fromkeys(MODELS, 1),
    throughput_rounds=1,
    latency_rounds=1,
    starts=1,
    seconds=1.0,
    large_seconds=1.0,
    latency_seconds=1.0,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Garrison alone, against benchmarks/serving/expected.json")
    parser.add_argument("--keep", action="store_true", help="with --quick: keep what was found as what is expected")
    parser.add_argument("--smoke", action="store_true", help="as short as can be")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--fresh", action="store_true", help="do not go on with an interrupted run")
    parser.add_argument("--no-page", action="store_true", help="do not write docs/benchmarks.md")
    parser.add_argument("--peers", help="names, with commas between; all of them by default", default=",".join(PEERS))
    parser.add_argument("--models", help="names, with commas between", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, help="where records are kept  [out/bench/serving]")
    given = parser.parse_args()
    if given.quick:
        quick(given.out or Path("out/bench/quick"), keep=given.keep)
        return
    unknown = ({*given.peers.split(",")} - PEERS.keys() - {""}) | ({*given.models.split(",")} - MODELS.keys())
    if unknown:
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    peers, models = tuple(p for p in given.peers.split(",") if p), tuple(given.models.split(","))
    settings = dataclasses.replace(SMOKE if given.smoke else Settings(), peers=peers, models=models)
    folder: Path = given.out or Path("out/bench") / ("smoke" if given.smoke else "serving")
    mark = (folder / "fingerprint").read_text() if given.report and folder.exists() else fingerprint(settings)
    book = Book(folder.absolute(), mark, fresh=given.fresh or given.smoke)
    run = Run(settings, book, folder.absolute())
    if not given.report:
        run.everything()
    write(book, remember(folder, run.environments), to_page=not given.no_page and not given.smoke)


def quick(folder: Path, *, keep: bool) -> None:
    book = Book(folder.absolute(), fingerprint(QUICK), fresh=True)
    Run(QUICK, book, folder.absolute()).everything()
    found = ratios(book.records)
    if keep:
        EXPECTED.write_text(json.dumps({name: round(value, 3) for name, value in found.items()}, indent=2) + "\n")
        return
    lines, held = compare(found, json.loads(EXPECTED.read_text()))
    print("\n".join(lines))
    if not held:
        sys.exit("make bench-quick: slower than kept in benchmarks/serving/expected.json")


def remember(folder: Path, environments: dict[str, Environment]) -> dict[str, Environment]:
    """The peers' versions, also for a report that is made later."""
    file = folder / "peers.json"
    if environments:
        file.write_text(json.dumps({name: found.versions for name, found in environments.items()}))
    kept = json.loads(file.read_text()) if file.exists() else {}
    return {name: Environment(Path(), versions) for name, versions in kept.items()}


def write(book: Book, environments: dict[str, Environment], *, to_page: bool) -> None:
    arms = (*OURS, *map(peer_arm, PEERS))
    generator = "wrk" if has_wrk() else "the generator of `benchmarks/serving/generator.py` (wrk is not installed)"
    plot = page.PLOT if to_page and page.draw(book.records, arms, pages.PAGE.parent / page.PLOT) else ""
    text = page.text(book.records, arms, environments, generator, plot)
    print(text)
    if to_page:
        pages.write("serving", text)
    broken = sorted({r.arm for r in book.records if r.failure and r.arm in {arm.name for arm in OURS}})
    if broken:
        sys.exit(f"not all of Garrison's own servers could be measured: {', '.join(broken)}")


if __name__ == "__main__":
    main()
