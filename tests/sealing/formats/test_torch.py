"""PyTorch: modules and .pt2 files are sealed, and a forged .pt2 file runs nothing."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerKey
from garrison.errors import ModelFileError, UnsupportedModelError
from garrison.runtime.runner import Runner
from garrison.sealing.formats import read_source
from garrison.sealing.inputs import rows_from_arrays
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_source

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's own deprecations

IMAGES = np.random.default_rng(0).random((40, 1, 28, 28), dtype=np.float32)


def lenet() -> Any:
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Dropout(0.5), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def probabilities(module: Any) -> Any:
    with torch.no_grad():
        return torch.softmax(module.eval()(torch.from_numpy(IMAGES)), dim=1).numpy()


def answers(source: Any, folder: Path) -> Any:
    draft = draft_from_source(source, rows_from_arrays({"x": IMAGES}), SealOptions(name="m", output="logits"))
    owner = OwnerKey.generate()
    seal(draft, owner, folder / "b")
    bundle = verify(folder / "b", [owner.public])
    assert bundle.manifest.provenance.source_format == "torch"
    name = bundle.manifest.inputs[0].name
    parts = [Runner(bundle).run({name: IMAGES[i : i + n]}).values for i, n in ((0, 1), (1, 2), (3, 37))]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "lenet.pt2"
    program = torch.export.export(
        lenet().eval(), (torch.from_numpy(IMAGES[:2]),), dynamic_shapes=({0: torch.export.Dim("rows")},)
    )
    torch.export.save(program, path)
    return path


def test_a_module_is_sealed_and_answers_like_the_original(tmp_path: Path) -> None:
    from garrison.sealing.formats.torch import convert

    module = lenet()
    assert np.allclose(
        answers(convert(module, (torch.from_numpy(IMAGES[:2]),)), tmp_path), probabilities(module), atol=1e-5
    )


def test_an_exported_program_is_sealed_and_answers_like_the_original(exported: Path, tmp_path: Path) -> None:
    assert np.allclose(answers(read_source(exported), tmp_path), probabilities(lenet()), atol=1e-5)


def test_a_fixed_batch_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fixed.pt2"
    torch.export.save(torch.export.export(lenet().eval(), (torch.from_numpy(IMAGES[:2]),)), path)
    with pytest.raises(UnsupportedModelError, match="batch"):
        answers(read_source(path), tmp_path)


def test_a_module_that_cannot_be_exported_is_told() -> None:
    from garrison.sealing.formats.torch import convert

    class Odd(torch.nn.Module):  # type: ignore[name-defined,misc]
        def forward(self, x: Any) -> Any:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(UnsupportedModelError, match="Odd"):
        convert(Odd(), (torch.rand(2, 3),))
    with pytest.raises(UnsupportedModelError, match="two rows"):
        convert(lenet(), (torch.from_numpy(IMAGES[:1]),))


# Forged files


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (eval, (f"open({str(self.path)!r}, 'w').close()",))


def forged(exported: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(exported) as archive:
        entries = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"lenet/{name}", data)
    return target


def in_json(path: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def edited(entries: dict[str, bytes]) -> None:
        found = json.loads(entries[path])
        change(found)
        entries[path] = json.dumps(found).encode()

    return edited


PROGRAM, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


def torch_pickle(thing: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def test_an_untouched_copy_is_read(exported: Path, tmp_path: Path) -> None:
    """The control arm of all forgeries: rewriting the archive alone changes nothing."""
    path = forged(exported, tmp_path / "copy.pt2", lambda _: None)
    assert np.allclose(answers(read_source(path), tmp_path), probabilities(lenet()), atol=1e-5)


def test_pickled_sample_inputs_run_nothing_here_and_do_in_pytorch(exported: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = forged(exported, tmp_path / "m.pt2", lambda e: e.update({SAMPLES: torch_pickle((Bomb(trap),))}))
    with pytest.raises(UnsupportedModelError, match="sample inputs"):
        read_source(path)
    assert not trap.exists()
    with pytest.raises(Exception):  # noqa: B017  the control arm: PyTorch's own loader springs the trap
        torch.export.load(path)
    assert trap.exists()


def pickled_weight(trap: Path) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        in_json(WEIGHTS, lambda c: next(iter(c["config"].values())).update(use_pickle=True))(entries)
        entries["data/weights/weight_0"] = torch_pickle(Bomb(trap))

    return change


def opaque_constant(trap: Path) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
        in_json(CONSTANTS, lambda c: c["config"].update(c=entry))(entries)
        entries["data/constants/opaque_obj_0"] = pickle.dumps(Bomb(trap))

    return change


def evaluated_size(trap: Path) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        text = entries[PROGRAM].decode()
        start = text.index('"expr_str": "') + len('"expr_str": "')
        bomb = f"open('{trap}', 'w').close()"
        entries[PROGRAM] = (text[:start] + bomb + text[text.index('"', start) :]).encode()

    return change


@pytest.mark.parametrize("forge", [pickled_weight, opaque_constant, evaluated_size])
def test_what_would_run_is_refused_and_not_run(
    exported: Path, tmp_path: Path, forge: Callable[[Path], Callable[[dict[str, bytes]], None]]
) -> None:
    trap = tmp_path / "trap"
    with pytest.raises(UnsupportedModelError, match=r"m\.pt2"):
        read_source(forged(exported, tmp_path / "m.pt2", forge(trap)))
    assert not trap.exists()


def first_node(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"][0]


@pytest.mark.parametrize(
    "change",
    [
        in_json(PROGRAM, lambda p: first_node(p).update(target="torch.hub.load")),
        in_json(PROGRAM, lambda p: first_node(p).update(target="torch.ops.load_library")),
        in_json(PROGRAM, lambda p: first_node(p).update(target="_operator.methodcaller")),
        in_json(PROGRAM, lambda p: first_node(p).update(target="#extension.op")),
        in_json(PROGRAM, lambda p: p["range_constraints"].update({"__import__('os')": {"min_val": 0, "max_val": 1}})),
        in_json(
            PROGRAM,
            lambda p: p["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec=json.dumps([1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}])
            ),
        ),
        in_json(
            PROGRAM,
            lambda p: p["graph_module"]["module_call_graph"][0]["signature"].update(
                in_spec=json.dumps([1, {"type": "builtins.dict", "context": '{"__enum__": 1}', "children_spec": []}])
            ),
        ),
        lambda e: e.update({"extra/code.py": b"import os"}),
        lambda e: e.update({"data/aotinductor/model/code.so": b"\x7fELF"}),
        in_json(WEIGHTS, lambda c: next(iter(c["config"].values())).update(path_name="../../outside")),
    ],
)
def test_what_is_not_known_to_be_harmless_is_refused(
    exported: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    with pytest.raises(UnsupportedModelError):
        read_source(forged(exported, tmp_path / "m.pt2", change))


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.pop(WEIGHTS),
        lambda e: e.update({PROGRAM: b"[]"}),
        lambda e: e.update({PROGRAM: b"{"}),
        lambda e: e.update({PROGRAM: b"[" * 100_000}),
        lambda e: e.update({WEIGHTS: b'{"config": 1}'}),
        lambda e: e.update({WEIGHTS: b'{"config": {"a": 1}}'}),
        lambda e: e.pop("data/weights/weight_0"),
        lambda e: e.update({"data/weights/weight_0": b""}),
        lambda e: e.update({"data/weights/weight_0": b"1234"}),
    ],
)
def test_a_damaged_file_is_told(exported: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with pytest.raises((ModelFileError, UnsupportedModelError), match=r"m\.pt2"):
        read_source(forged(exported, tmp_path / "m.pt2", change))
