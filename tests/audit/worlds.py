"""A small world for the audit's tests: a sealed model with and without outlier exposure, its test rows, a thief's rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.models import BOUNDS, LABELS, PIXELS, RELEASE, SCORE, images, misinform, mlp

from garrison.audit.data import AuditData, Rows
from garrison.audit.plan import Plan, parse_plan
from garrison.audit.targets import unguarded
from garrison.bundle.manifest import InputSpec, Provenance
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.secret import secret_path, write_secret
from garrison.config import Config, ServerConfig
from garrison.crypto.owner import OwnerKey
from garrison.sealing.draft import Draft
from garrison.sealing.seal import seal
from garrison.server.root import assemble, background
from garrison.types import Array, DefenseSpec, Task

TAU = 0.6
GUARD = (BOUNDS, SCORE, misinform(TAU), RELEASE)
PLAN = """
name = "small"
seeds = [0]
test_rows = 300
outside_rows = 200
usd_per_1000_queries = 2.0

[[attacks]]
budgets = [40, 80]
parameters = { epochs = 2, fewest_steps = 2 }

[[attacks]]
answers = "labels"
budgets = [80]
parameters = { epochs = 2, fewest_steps = 2 }

[control]
budgets = [80]
parameters = { epochs = 2, fewest_steps = 2 }
"""


@dataclass(frozen=True, slots=True)
class World:
    """A served bundle, the plain model's bundle, their owner, and rows."""

    bundle: Path
    plain: Path
    owner: OwnerKey
    key: bytes
    data: AuditData

    @property
    def plan(self) -> Plan:
        return parse_plan(PLAN, "a test")

    def opened(self, path: Path) -> VerifiedBundle:
        return verify(path, [self.owner.public])


def sealed(
    out: Path,
    owner: OwnerKey,
    guard: tuple[DefenseSpec, ...],
    *,
    seed: int = 0,
    exposed: bool = False,
    name: str = "small",
) -> Path:
    provenance = Provenance(
        created="2026-01-01T00:00:00Z", source_format="onnx", source_sha256="0" * 64, outlier_exposure=exposed
    )
    draft = Draft(
        name=name,
        version=1,
        model=mlp(seed),
        task=Task.CLASSIFICATION,
        labels=LABELS,
        inputs=(InputSpec(name="image", datatype="FP32", shape=PIXELS, minimum=0.0, maximum=1.0),),
        guard=guard,
        provenance=provenance,
        rows={"image": images(4)},
    )
    seal(draft, owner, out)
    return out


def rows(x: Array, y: Array | None, source: str) -> Rows:
    return Rows(x, y, (), source, f"{abs(hash(source)):064x}"[:64])


def build(folder: Path, guard: tuple[DefenseSpec, ...] = GUARD, *, exposed: bool = True) -> World:
    """The plain model is the same network, so that the test rows' labels, which are its own, fit both."""
    owner = OwnerKey.generate()
    bundle = sealed(folder / "bundle", owner, guard, exposed=exposed)
    plain = sealed(folder / "plain", owner, (BOUNDS, RELEASE), name="small-plain")
    key = owner.misinformation_key("small")
    write_secret(secret_path(bundle), key, "small")
    (folder / "owner.pub").write_bytes(owner.public.pem)
    return World(bundle, plain, owner, key, _data(bundle, owner))


def _data(bundle: Path, owner: OwnerKey) -> AuditData:
    """Test rows are labelled by the served model, so that its accuracy is 1; the thief's rows are paler."""
    x = images(300, seed=3)
    y = unguarded(verify(bundle, [owner.public])).raw(x).argmax(axis=1)
    pale = (0.3 * images(400, seed=4)).astype(np.float32)
    return AuditData(rows(x, y, "own"), rows(pale, None, "pale"), rows(pale[-200:], None, "pale"))


@contextmanager
def served(world: World, state: Path) -> Iterator[str]:
    """The world's bundle behind a real server on a real port; gives its URL."""
    config = Config(server=ServerConfig(port=0, state=str(state), isolation="none"))
    with background(assemble(config, [world.bundle], [world.owner.public])) as url:
        yield url
