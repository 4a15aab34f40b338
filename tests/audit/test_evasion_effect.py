"""Effect: a real victim of clothes, sealed by the ordinary commands and served over HTTP, attacked by Square and HopSkipJump.

Slow. The undefended arm is the control: it is fooled, and raises no alarm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.attacks.victims import clothes

from garrison.attacks.evasion.base import Evasion, EvasionTrial, Pictures
from garrison.attacks.evasion.hopskipjump import HopSkipJump
from garrison.attacks.evasion.square import Square
from garrison.attacks.oracle import LabelsOnly
from garrison.audit.targets import HttpTarget, ServiceTarget, unguarded
from garrison.bundle.reader import verify
from garrison.client import Client
from garrison.confidence import upper_limit
from garrison.config import Config, ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.guard.defenses.watch import load_detector
from garrison.guard.detectors.base import Seen
from garrison.hardening.export import victim_graph
from garrison.hardening.fits import Honest
from garrison.hardening.shifts import shifted
from garrison.hardening.watching import look, simulated_callers, sums
from garrison.sealing.formats import read_source
from garrison.sealing.inputs import rows_from_arrays
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_source
from garrison.server.key_file import add_key
from garrison.server.operator import Wish, ask_servers
from garrison.server.root import assemble, background
from garrison.types import Array, DefenseSpec

pytestmark = pytest.mark.slow
PICTURES = 30
HONEST = 20
CHOSEN: dict[str, dict[str, Any]] = {
    "plain": {"detectors": False},
    "watched": {
        "arm": frozenset({"watch"}),
        "watch_action": "refuse",
        "defenses": ("feature-squeezing:false_alarms=0.02",),
    },
}


@dataclass(frozen=True, slots=True)
class World:
    folder: Path
    owner: OwnerKey
    x: Array
    y: Array
    honest: Array

    def truth(self) -> ServiceTarget:
        return unguarded(verify(self.folder / "plain", [self.owner.public]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder, owner, made = tmp_path_factory.mktemp("evasion"), OwnerKey.generate(), clothes()
    (folder / "m.onnx").write_bytes(victim_graph(made.victim.network, None, made.x[:4]))  # type: ignore[arg-type]
    rows = rows_from_arrays({"image": made.x[:5_000]}, made.y[:5_000].astype(np.int64))
    for name, chosen in CHOSEN.items():
        options = SealOptions(name=name, drift=False, **chosen)
        seal(draft_from_source(read_source(folder / "m.onnx"), rows, options), owner, folder / name)
    assert made.exam.reference is not None
    assert made.exam.y is not None
    right = np.flatnonzero(made.exam.reference.argmax(axis=1) == made.exam.y)
    return World(folder, owner, made.exam.x[right[:PICTURES]], made.exam.y[right[:PICTURES]], made.exam.x[5_000:])


@dataclass(frozen=True, slots=True)
class Attacked:
    trial: EvasionTrial
    rows: Array
    honest_alarmed: bool


def attacked(world: World, name: str, attack: Evasion, budget: int, *, labels: bool, tmp: Path) -> Attacked:
    """The attack over HTTP with a key for each picture; the row at which each key's first alarm rang, 0 for none."""
    truth, file, state = world.truth(), tmp / "keys.json", tmp / "state"
    secrets = [add_key(file, f"attacker-{i}") for i in range(PICTURES)]
    honest, another = add_key(file, "honest"), add_key(file, "another-user")
    config = Config(server=ServerConfig(port=0, state=str(state), isolation="none", keys=str(file)))
    with background(assemble(config, [world.folder / name], [world.owner.public])) as url:
        clients = [Client(url, api_key=key) for key in (honest, *secrets, another)]
        target = HttpTarget(clients[0], url, accounts=clients[1:])
        target.query(world.honest[:500])
        judges = {
            "served": lambda x: target.query_as(x, PICTURES + 1).labels,
            "undefended": lambda x: truth.raw(x).argmax(axis=1),
        }
        pictures = Pictures(world.x, world.y, None, np.arange(1, PICTURES + 1))
        oracle = LabelsOnly(target) if labels else target
        trial = attack.carry_out(oracle, pictures, judges, budget=budget, seed=0, at_once=10)
        asked = ask_servers(state, Wish()) if name == "watched" else []  # a model without detectors tells nothing
        told = [a for one in asked for model in one.models for a in model.alarms]
        for client in clients:
            client.close()
    first = {a.caller: a.row for a in sorted(told, key=lambda a: -a.row) if a.action}
    rows = np.array([first.get(f"attacker-{i}", 0) for i in range(PICTURES)])
    return Attacked(trial, rows, "honest" in first)


ATTACKS: list[tuple[Evasion, int, bool]] = [
    (Square(epsilon=0.1), 150, False),
    (Square(epsilon=0.1), 150, True),
    (HopSkipJump(norm="l2", epsilon=2.0), 300, True),
]


@pytest.mark.parametrize(("attack", "budget", "labels"), ATTACKS, ids=["square", "square-labels", "hopskipjump"])
def test_it_is_seen_within_a_hundred_questions_and_gets_less(
    world: World, attack: Evasion, budget: int, tmp_path: Path, *, labels: bool
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = attacked(world, "plain", attack, budget, labels=labels, tmp=tmp_path / "a")
    watched = attacked(world, "watched", attack, budget, labels=labels, tmp=tmp_path / "b")
    shares = {
        name: float(one.trial.fools["undefended"].mean()) for name, one in (("plain", plain), ("watched", watched))
    }
    print(f"{attack.name}: {shares}, alarms at {np.sort(watched.rows).tolist()}")  # noqa: T201, the figures of a slow test
    assert not plain.rows.any(), "control: nobody watches"
    assert shares["watched"] <= shares["plain"]
    long = watched.trial.queries >= 100
    assert (watched.rows[long] > 0).all()
    assert watched.rows.max() <= 100
    assert not watched.honest_alarmed
    if not labels:
        assert shares["plain"] > 0.5, "control: the undefended model can be fooled"
        assert shares["watched"] < shares["plain"] - 0.3


def test_a_thousand_honest_callers_raise_no_alarm(world: World) -> None:
    """Rows of the test split, which neither training nor calibration saw; moved, mirrored, brighter and plain in turn."""
    bundle = verify(world.folder / "watched", [world.owner.public])
    given = next(spec for spec in bundle.manifest.guard if spec.name == "watch").parameters["detectors"]
    truth, facts = world.truth(), bundle.manifest.facts()
    looks = (DefenseSpec(name="projection"), DefenseSpec(name="max-probability"))
    name = facts.inputs[0].name
    kinds = shifted({name: world.honest}, np.random.default_rng(5))
    pools: dict[str, Seen] = {
        kind: look(lambda rows: {"probabilities": truth.raw(rows[name])}, facts, looks, x) for kind, x in kinds.items()
    }
    callers = simulated_callers(Honest(pools, {}, 10, 3), 1_000, np.random.default_rng(6))
    over = {n: sums(load_detector(n, dict(one)), callers).max(axis=1) for n, one in given.items()}
    alarmed = {n: int((peak >= given[n]["threshold"]).sum()) for n, peak in over.items()}
    print(f"alarmed of 1,000: {alarmed}, upper limit {upper_limit(sum(alarmed.values()), 1_000):.4f}")  # noqa: T201
    assert sum(alarmed.values()) == 0
