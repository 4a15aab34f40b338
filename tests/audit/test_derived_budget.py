"""Effect: the budget that an audit of this very model gives keeps a thief with the model's own kind of rows below 0.9 fidelity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import garrison
from garrison import datasets
from garrison.attacks.exam import Exam
from garrison.attacks.extraction.knockoff import Knockoff
from garrison.attacks.knowledge import Knowledge
from garrison.audit.opening import Opening
from garrison.audit.plan import parse_plan
from garrison.audit.targets import HttpTarget, unguarded
from garrison.bundle.key_files import read_public_key
from garrison.bundle.reader import verify
from garrison.client import Client
from garrison.hardening.training import Training
from garrison.hardening.victim import train_victim
from garrison.server.auth import add_key

SEEDS = (0, 1, 2)
MOST = 4000
PLAN = parse_plan(
    f"""
name = "own"
test = "fashion-mnist:test"
surrogate = "fashion-mnist:train"
outside = "mnist:test"
test_rows = 3000
seeds = {list(SEEDS)}
[[attacks]]
name = "knockoff"
budgets = [1000, {MOST}]
""",
    "a test",
)


@pytest.mark.slow
def test_the_derived_budget_stops_an_in_distribution_thief_below_the_fidelity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, held = datasets.load("fashion-mnist", "train"), datasets.load("fashion-mnist", "test")
    assert own.y is not None
    network = train_victim(own.x[:20_000], own.y[:20_000], options=Training(threads=1))
    keys = garrison.keygen(tmp_path / "owner")
    rows = (held.x[5000:], held.y[5000:]) if held.y is not None else held.x[5000:]
    sealing = {"key": keys.private, "data": rows, "output": "logits", "name": "clothes"}
    garrison.seal(network, tmp_path / "audited", **sealing)  # type: ignore[arg-type]  # by name, as a person would
    opening = Opening(reference=tmp_path / "audited")
    report = garrison.run_audit(
        tmp_path / "audited", tmp_path / "report", plan=PLAN, trust=keys.public, opening=opening, cpu_threads=1
    )
    control = report.find("defended", "fidelity", answers="soft", budget=MOST)
    assert control is not None
    assert control.value is not None
    assert control.value >= 0.9  # without a budget

    found = garrison.seal(network, tmp_path / "sold", budget_from=tmp_path / "report" / "report.json", **sealing)  # type: ignore[arg-type]
    budget = next(spec.parameters["rows"] for spec in found.guard if spec.name == "budget")
    needed = found.provenance.metrics["budget_queries_to_fidelity_0.90"]
    assert budget == int(needed / 2)
    assert json.loads((tmp_path / "sold" / "manifest.json").read_text())["provenance"]["data_sha256"]["budget report"]

    bundle = verify(tmp_path / "sold", [read_public_key(keys.public)])
    exam = Exam(held.x[:5000], None, unguarded(bundle).raw(held.x[:5000]))
    file = tmp_path / "keys.json"
    callers = [add_key(file, f"thief-{seed}") for seed in SEEDS]
    reached, answered = [], []
    serving = garrison.serve(tmp_path / "sold", trust=[keys.public], isolation="none", state=tmp_path / "s", keys=file)
    with serving as server:
        for seed, key in zip(SEEDS, callers, strict=True):
            with Client(server.url, api_key=key) as client:
                target = HttpTarget(client, server.url)
                trial = Knockoff().carry_out(target, Knowledge(own.x), exam, budget=MOST, seed=seed)
            reached.append(float(trial.scores["fidelity"].mean()))
            answered.append(trial.queries - trial.unanswered)
    with capsys.disabled():
        print(  # noqa: T201  the figure
            f"\nin-distribution thief: fidelity {control.value:.3f} from {MOST} answers, 0.9 after {needed:.0f}; with a budget of "
            f"{budget} rows {np.mean(reached):.3f} ({min(reached):.3f} to {max(reached):.3f}) from {answered}"
        )
    assert max(answered) <= budget
    assert max(reached) < 0.9
