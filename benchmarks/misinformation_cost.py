"""Extra processor time that misinformation takes, as a share of inference, at batch 32 of honest inputs.

    python benchmarks/misinformation_cost.py --bundle out/demo/bundle --plain out/demo/training/plain.onnx --trust out/demo/keys/owner.pub

Two arms, interleaved in one process, each as it is served: the model without a misinformation head behind [bounds, release], sealed here, and the
sealed bundle's own graph and chain. The extra time (head, out-of-distribution score, mixing) is divided by a bare run of the runtime.
Median over rounds, with the quartiles.

Beside it, the same for an attacker's digits, nearly all of which are misinformed, at batch 32 and 250: what strange rows can make a server spend.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from garrison import datasets
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.secret import read_secret, secret_path
from garrison.crypto.owner import OwnerKey, OwnerPublicKey
from garrison.enclave.service import Service
from garrison.hardening.data import Rows
from garrison.runtime.runner import Runner
from garrison.sealing.formats import read_source
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_source
from garrison.types import DefenseSpec

SAMPLE = 32
BARE_CHAIN = (DefenseSpec(name="bounds"), DefenseSpec(name="release"))


@dataclass(frozen=True)
class Traffic:
    """What is sent: the first `batches` times `batch` test inputs of a data set, each batch three times a round."""

    data: str
    batch: int
    batches: int
    rounds: int


HONEST = Traffic("fashion-mnist", 32, 64, 31)
ATTACKS = (Traffic("mnist", 32, 32, 9), Traffic("mnist", 250, 8, 9))


def microseconds(call: Callable[[], Any], repeats: int) -> float:
    """Processor time of one call."""
    started = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - started) / repeats * 1e6


def sealed_plainly(model: Path, folder: Path) -> VerifiedBundle:
    """The model behind the plain chain."""
    x = datasets.load("fashion-mnist", "test").x[:SAMPLE]
    draft = draft_from_source(read_source(model), Rows({"x": x}, None, None, ""), SealOptions(name="plain"))
    owner = OwnerKey.generate()
    seal(replace(draft, guard=BARE_CHAIN), owner, folder / "plain")
    return verify(folder / "plain", [owner.public])


def measure(bundle: VerifiedBundle, plain: VerifiedBundle, key: bytes | None, traffic: Traffic) -> dict[str, Any]:
    """The extra time as a share of a bare run."""
    spec, batches = bundle.manifest.inputs[0], traffic.batches
    x = np.ascontiguousarray(datasets.load(traffic.data, "test").x[: traffic.batch * batches])
    x = x.reshape(batches, traffic.batch, *spec.shape)
    guarded, bare, runner = Service(bundle, key=key), Service(plain), Runner(plain)
    turn = iter(range(10**9))

    def rows() -> dict[str, Any]:
        return {
            spec.name: x[next(turn) % batches]
        }  # as they come: of honest ones about one in a hundred is misinformed

    arms: dict[str, Callable[[], Any]] = {
        "inference": lambda: runner.run(rows()),
        "bare": lambda: bare.predict(rows()),
        "guarded": lambda: guarded.predict(rows()),
    }
    for call in arms.values():
        microseconds(call, batches)
    rounds = [{arm: microseconds(call, 3 * batches) for arm, call in arms.items()} for _ in range(traffic.rounds)]
    shares = np.array([(r["guarded"] - r["bare"]) / r["inference"] for r in rounds])
    low, middle, high = np.percentile(shares, [25, 50, 75])
    medians = {f"{arm}_us": float(np.median([r[arm] for r in rounds])) for arm in arms}
    forms = {"guarded_form": guarded.guard_form, "bare_form": bare.guard_form}
    return {"extra_share": float(middle), "quartile_low": float(low), "quartile_high": float(high), **medians, **forms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--bundle", "--plain", "--trust"):
        parser.add_argument(option, type=Path, required=True)
    arguments = parser.parse_args()
    trust = [OwnerPublicKey.from_pem(arguments.trust.read_bytes())]
    key = read_secret(secret_path(arguments.bundle))
    with tempfile.TemporaryDirectory() as folder:
        plain = sealed_plainly(arguments.plain, Path(folder))
        bundle = verify(arguments.bundle, trust)
        found = measure(bundle, plain, key, HONEST)
        for attack in ATTACKS:
            found[f"digits_in_batches_of_{attack.batch}"] = measure(bundle, plain, key, attack)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
