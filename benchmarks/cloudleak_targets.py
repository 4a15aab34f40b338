"""The services that `benchmarks/cloudleak.py` steals from, made by the ordinary commands where they are not there yet."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from garrison import datasets
from garrison.attacks.exam import Exam
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.measures import total_variation
from garrison.audit.targets import ServiceTarget, unguarded
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerPublicKey

ROOT = Path(__file__).parents[1]
GARRISON = (sys.executable, "-m", "garrison")
TEST_ROWS = 2_000
SIDE = 224
MEAN = np.array([104.0, 117.0, 123.0], np.float32)
"""Open NSFW takes blue, green, red, 0 to 255, less these."""
THIEFS = ("astronaut", "coffee", "motorcycle_left")
OTHERS = ("chelsea", "ihc", "camera", "coins")
Images = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A target, what the thief has, what the clones are measured on, and the model's own accuracy there (None without labels),
    and how far an answer is from the model's that is the same for all rows."""

    oracle: ServiceTarget
    knowledge: Knowledge
    exam: Exam
    accuracy: float | None
    constant_total_variation: float


def open_target(name: str, out: Path) -> Opened:
    """One of "fashion", "faces", "nsfw"."""
    return {"fashion": _fashion, "faces": _faces, "nsfw": _nsfw}[name](out)


def _fashion(out: Path) -> Opened:
    """The thief's pictures are those that neither the model was trained on nor the clones are measured on."""
    del out
    folder = ROOT / "out" / "bench" / "seed-0"
    if not (folder / "plain").exists():
        sys.exit(f"there is no {folder / 'plain'}: run python -m benchmarks.run --seeds 1 first")
    with np.load(folder / "training" / "calibration.npz") as held:
        pool = held["x"]
    test = datasets.load("fashion-mnist", "test")
    return _opened(folder / "plain", folder / "owner.pub", pool, test.x[:TEST_ROWS], np.asarray(test.y)[:TEST_ROWS])


def _faces(out: Path) -> Opened:
    """Eighty pictures for the thief, two of each person."""
    folder = out / "faces"
    if not (folder / "training" / "victim.onnx").exists():
        _run(sys.executable, str(ROOT / "examples" / "faces" / "train.py"), "--out", str(folder / "training"))
    held = folder / "training" / "held_out.npz"
    _sealed(folder, folder / "training" / "victim.onnx", held)
    with np.load(held) as found:
        pool = found["x"]
    test = datasets.load("orl-faces", "test")
    return _opened(folder / "bundle", folder / "owner.pub", pool, test.x, np.asarray(test.y))


def _nsfw(out: Path) -> Opened:
    """Crops of photographs; nobody labelled them, so only fidelity is measured. No photograph is on both sides."""
    folder = out / "nsfw"
    folder.mkdir(parents=True, exist_ok=True)
    pool, test = _crops(THIEFS, 150, 0), _crops(OTHERS, 100, 1)
    if not (folder / "rows.npz").exists():
        edges = np.stack([np.zeros((SIDE, SIDE, 3)), np.full((SIDE, SIDE, 3), 255.0)]).astype(np.float32) - MEAN
        np.savez(folder / "rows.npz", x=np.concatenate([edges, _crops(OTHERS, 30, 2)]))
    _sealed(folder, datasets.fetch("open-nsfw"), folder / "rows.npz", "--labels", "safe,unsafe")
    return _opened(folder / "bundle", folder / "owner.pub", pool, test, None)


def _crops(names: tuple[str, ...], count: int, seed: int) -> Images:
    """Square crops of a random size and place, (count, 224, 224, 3)."""
    from PIL import Image

    rng, found = np.random.default_rng(seed), []
    opened = []
    for name in names:
        with Image.open(datasets.fetch("photo-patches", f"{name}.png"), formats=("PNG",)) as image:
            opened.append(image.convert("RGB"))
    for i in range(count):
        whole = opened[i % len(opened)]
        side = int(rng.integers(min(whole.size) // 4, min(whole.size)))
        left, top = (int(rng.integers(0, most - side + 1)) for most in whole.size)
        crop = whole.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        found.append(np.asarray(crop, np.float32)[:, :, ::-1] - MEAN)
    return np.stack(found)


def _sealed(folder: Path, model: Path, rows: Path, *more: str) -> None:
    if (folder / "bundle").exists():
        return
    if not (folder / "owner.key").exists():
        _run(*GARRISON, "keygen", "-o", str(folder / "owner"))
    key = ("--key", str(folder / "owner.key"))
    _run(*GARRISON, "seal", str(model), "--data", str(rows), *key, "-o", str(folder / "bundle"), *more)


def _run(*command: str) -> None:
    if subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode:
        sys.exit(f"that failed: {' '.join(command)}")


def _opened(bundle: Path, key: Path, pool: Images, x: Images, y: npt.NDArray[np.int64] | None) -> Opened:
    target = unguarded(verify(bundle, [OwnerPublicKey.from_pem(key.read_bytes())]))
    reference: Any = np.concatenate([target.raw(x[i : i + 50]) for i in range(0, len(x), 50)])
    accuracy = None if y is None else float((reference.argmax(axis=1) == y).mean())
    always = np.broadcast_to(reference.mean(axis=0), reference.shape)
    constant = float(total_variation(always, reference).mean())
    return Opened(target, Knowledge(pool, in_distribution=pool), Exam(x, y, reference), accuracy, constant)
