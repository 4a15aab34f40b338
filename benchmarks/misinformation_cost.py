"""Extra processor time that misinformation takes, as a share of inference, at batch 32 of honest inputs.

    python benchmarks/misinformation_cost.py --hardened out/demo/hardened --plain out/demo/training/plain.onnx

Arms interleaved call by call in one process, each sealed here and asked as it is served:

    inference       a bare run of the runtime
    bare            the model without a misinformation head behind [bounds, release]
    misinformation  the hardened model behind [bounds, score, misinformation, release]: the extra time is head, score and mixing
    whole           the hardened model behind its whole chain: projection, detectors of thieves and drift too

Median over rounds of the differences to `bare` as shares of `inference`, with the quartiles.

Beside it, the same for an attacker's digits, nearly all of which are misinformed, at batch 32 and 250: what strange rows can make a server spend.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from garrison import datasets
from garrison.bundle.reader import verify
from garrison.bundle.secret import read_secret, secret_path
from garrison.crypto.owner import OwnerKey
from garrison.enclave.service import Service
from garrison.hardening.data import Rows
from garrison.runtime.runner import Runner
from garrison.sealing.draft import Draft
from garrison.sealing.formats import read_source
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_hardened, draft_from_source
from garrison.types import DefenseSpec

SAMPLE = 32
BARE_CHAIN = (DefenseSpec(name="bounds"), DefenseSpec(name="release"))
MISINFORMATION = frozenset({"bounds", "max-probability", "adaptive-misinformation", "release"})


@dataclass(frozen=True)
class Traffic:
    """What is sent: the first `batches` times `batch` test inputs of a data set, each batch to every arm in each round, as they come: of honest rows one in a hundred is misinformed."""

    data: str
    batch: int
    batches: int
    rounds: int


HONEST = Traffic("fashion-mnist", 32, 64, 41)
ATTACKS = (Traffic("mnist", 32, 32, 9), Traffic("mnist", 250, 8, 9))


def nanoseconds(call: Callable[[], Any]) -> int:
    """Processor time of one call."""
    started = time.process_time_ns()
    call()
    return time.process_time_ns() - started


def drafts(hardened: Path, plain: Path) -> dict[str, Draft]:
    """What each arm seals."""
    x = datasets.load("fashion-mnist", "test").x[:SAMPLE]
    bare = draft_from_source(read_source(plain), Rows({"x": x}, None, None, ""), SealOptions(name="bare"))
    whole = draft_from_hardened(hardened, SealOptions(name="whole"))
    alone = tuple(spec for spec in whole.guard if spec.name in MISINFORMATION)
    return {
        "bare": replace(bare, guard=BARE_CHAIN),
        "misinformation": replace(whole, name="misinformation", guard=alone),
        "whole": whole,
    }


def sealed(draft: Draft, folder: Path) -> tuple[Service, Runner]:
    """The arm as it is served, and the runtime alone on its graph."""
    owner, out = OwnerKey.generate(), folder / draft.name
    manifest = seal(draft, owner, out)
    bundle = verify(out, [owner.public])
    key = read_secret(secret_path(out)) if manifest.key_commitment else None
    return Service(bundle, key=key), Runner(bundle)


def measure(arms: dict[str, tuple[Service, Runner]], traffic: Traffic) -> dict[str, Any]:
    """The extra times as shares of a bare run."""
    spec, batches = arms["bare"][0].manifest.inputs[0], traffic.batches
    x = np.ascontiguousarray(datasets.load(traffic.data, "test").x[: traffic.batch * batches])
    x = x.reshape(batches, traffic.batch, *spec.shape)

    def asking(call: Callable[[dict[str, Any]], Any]) -> Callable[[int], Any]:
        return lambda i: call({spec.name: x[i]})

    calls = {"inference": asking(arms["bare"][1].run)}
    calls |= {name: asking(service.predict) for name, (service, _) in arms.items()}
    names = [*calls]
    order = np.random.default_rng(0)
    took = np.zeros((len(calls), traffic.rounds + 1, batches))
    for turn in range(traffic.rounds + 1):
        for i in range(batches):
            # No arm always runs after the same other one and profits from its caches.
            for arm in order.permutation(len(names)):
                took[arm, turn, i] = nanoseconds(partial(calls[names[arm]], i)) / 1e3
    rounds = dict(zip(names, took[:, 1:].mean(axis=2), strict=True))  # the first round warms up
    found: dict[str, Any] = {f"{arm}_us": float(np.median(each)) for arm, each in rounds.items()}
    for name in ("misinformation", "whole"):
        low, middle, high = np.percentile((rounds[name] - rounds["bare"]) / rounds["inference"], [25, 50, 75])
        found[name] = {"extra_share": float(middle), "quartile_low": float(low), "quartile_high": float(high)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--hardened", "--plain"):
        parser.add_argument(option, type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arms = {
            name: sealed(draft, Path(folder)) for name, draft in drafts(arguments.hardened, arguments.plain).items()
        }
        found = measure(arms, HONEST) | {"forms": {name: service.guard_form for name, (service, _) in arms.items()}}
        for attack in ATTACKS:
            found[f"digits_in_batches_of_{attack.batch}"] = measure(arms, attack)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
