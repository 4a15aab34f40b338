"""The guard of a model that is only asked: hardened, sealed, served, and attacked through the gateway and without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_sample_image
from tests.models import Sealed
from tests.serving import Served
from tests.upstream.guards import gateway, mlp_triton
from tests.upstream.triton import Triton, onnx_triton, serving

from garrison.cli import cli
from garrison.client import Client
from garrison.crypto.owner import OwnerKey
from garrison.errors import CalibrationError, UnavailableError, UnsupportedModelError, UpstreamError
from garrison.hardening import export, outliers
from garrison.hardening.artifact import read_hardened, write_hardened
from garrison.hardening.data import Rows
from garrison.hardening.harden import Options, Result
from garrison.hardening.upstream import Wish, harden_upstream
from garrison.hardening.victim import train_victim
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_hardened
from garrison.types import Array
from garrison.upstream.target import Target

from .conftest import QUICK, Digits

WISH = Wish(model="digits", version="1")
OPTIONS = Options(benign_loss=0.02)


def rows(x: Array, y: Array | None = None) -> Rows:
    return Rows({"x": x}, y, None, "0" * 64)


@pytest.fixture(scope="module")
def exposed(digits: Digits) -> bytes:
    """A victim that was trained with outlier exposure, as a careful owner does."""
    strange = outliers.outlier_set(digits.x.shape[1:], 1000, 0, benign=digits.x)
    network = train_victim(digits.x, digits.y, outliers=strange, options=QUICK)
    return export.victim_graph(network, None, digits.x[:16])


@pytest.fixture(scope="module")
def triton(exposed: bytes) -> Iterator[Triton]:
    with serving(onnx_triton(exposed, (1, 16, 16), 10, most_rows=32)) as found:
        yield found


@pytest.fixture(scope="module")
def hardened(triton: Triton, digits: Digits) -> Result:
    data, unseen = rows(digits.x, digits.y), rows(digits.unseen_x[:400], digits.unseen_y[:400])
    return harden_upstream(Target(triton.url), WISH, data, unseen, options=OPTIONS)


@pytest.fixture(scope="module")
def sealed(hardened: Result, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    folder, owner = tmp_path_factory.mktemp("upstream"), OwnerKey.generate()
    write_hardened(folder / "HARDENED", hardened.description, hardened.model, hardened.misinformation)
    draft = draft_from_hardened(folder / "HARDENED", SealOptions(name="guarded"))
    seal(draft, owner, folder / "BUNDLE")
    return Sealed(folder / "BUNDLE", owner, None, owner.misinformation_key("guarded"))


@pytest.fixture(scope="module")
def served(sealed: Sealed, triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with gateway(sealed, triton.url, tmp_path_factory.mktemp("state")) as found:
        yield found


def test_the_guard_is_calibrated_on_answers_alone(hardened: Result, triton: Triton) -> None:
    m, entry = hardened.description.metrics, hardened.description.upstream
    assert hardened.model is None
    assert hardened.misinformation is not None
    assert entry is not None
    assert (entry.model, entry.version, entry.output, entry.gives) == ("digits", "1", "probabilities", "probabilities")
    assert (entry.most_rows, entry.batched) == (32, True)
    assert m["accuracy"] > 0.9
    assert m["benign_loss"] <= m["benign_loss_high"] <= m["benign_loss_asked"] == 0.02
    assert m["misinformation_loss"] < m["misinformation_loss_untrained"]
    assert max(triton.asked) <= 32


def photographs(count: int) -> Array:
    """Pieces of two photographs, which are no digits."""
    pytest.importorskip("PIL")
    pictures = [load_sample_image(name).mean(axis=2) / 255 for name in ("china.jpg", "flower.jpg")]
    rng, found = np.random.default_rng(0), []
    for k in range(count):
        picture = pictures[k % 2]
        top, left = rng.integers(picture.shape[0] - 16), rng.integers(picture.shape[1] - 16)
        found.append(picture[top : top + 16, left : left + 16])
    return np.array(found, dtype=np.float32)[:, None]


def test_a_thief_gets_misinformation_and_an_honest_caller_answers(
    served: Served, triton: Triton, digits: Digits
) -> None:
    """Control arm: the same questions to the server without the gateway."""
    honest, strange = digits.unseen_x[400:], photographs(300)
    truth = digits.unseen_y[400:]
    with Client(served.url) as client:
        told, stolen = (client.predict(x).outputs["probabilities"].argmax(axis=1) for x in (honest, strange))
    own, victim = (triton.run(x).argmax(axis=1) for x in (honest, strange))
    assert (told == own).mean() >= 0.95
    assert (told == truth).mean() >= (own == truth).mean() - 0.03
    assert (stolen == victim).mean() <= 0.35, "of what the thief is told, most is wrong"
    assert len(np.unique(stolen)) >= 8
    again = triton.run(strange).argmax(axis=1)
    assert (again == victim).all(), "control: asked directly, the server tells the thief all"


def test_without_labels_f_learns_from_the_answers(triton: Triton, digits: Digits) -> None:
    triton.asked.clear()
    wish = Wish(model="digits", most_rows=100)
    found = harden_upstream(Target(triton.url), wish, rows(digits.x[:600]), options=Options(benign_loss=0.1))
    assert found.misinformation is not None
    assert "accuracy" not in found.description.metrics
    # 100 of those held out, 100 of the others, 2,000 outliers, and the trial.
    assert sum(triton.asked) <= 100 + 100 + 2_000 + 70


def test_owners_who_may_not_misinform_need_no_f(triton: Triton, digits: Digits) -> None:
    options = Options(benign_loss=0.1, on_ood="refuse")
    found = harden_upstream(Target(triton.url), WISH, rows(digits.x[:600], digits.y[:600]), options=options)
    assert found.misinformation is None
    assert found.description.guard[2].name == "reject-option"


QUICKLY = Options(benign_loss=0.1, on_ood="refuse")


def images(count: int = 600) -> Rows:
    return rows(np.random.default_rng(0).random((count, 1, 8, 8), dtype=np.float32))


def test_logits_rows_one_by_one_and_no_metadata() -> None:
    with serving(mlp_triton(output="logits", most_rows=0)) as server:
        found = harden_upstream(Target(server.url), WISH, images(), options=QUICKLY).description
    assert found.upstream is not None
    assert (found.upstream.gives, found.upstream.batched, found.upstream.most_rows) == ("logits", False, 1)
    with serving(mlp_triton(extensions=[])) as server:
        plain = server.page
        silent: dict[str, Any] = {"inputs": [], "outputs": []}
        server.page = lambda path: plain(path) | silent if path.startswith("/v2/m") else plain(path)  # type: ignore[method-assign]
        with pytest.raises(UnsupportedModelError, match="--upstream-output"):
            harden_upstream(Target(server.url), WISH, images(), options=QUICKLY)
        wish = Wish(model="digits", output="probabilities", inputs=("image",))
        told = harden_upstream(Target(server.url), wish, images(), options=QUICKLY).description
    assert told.upstream is not None
    assert told.upstream.most_rows == 8, "found out by asking"
    assert told.inputs[0].name == "image"


def test_rows_that_lean_on_their_batch_are_asked_alone() -> None:
    """A server whose answer depends on the other rows of a request would give one caller's rows away to another."""
    with serving(mlp_triton()) as server:
        plain = server.run
        server.run = lambda x: plain(x if len(x) == 1 else np.clip(x + 0.3, 0, 1))
        found = harden_upstream(Target(server.url), WISH, images(), options=QUICKLY).description
    assert found.upstream is not None
    assert found.upstream.most_rows == 1


def test_a_busy_server_is_asked_again_and_a_wrong_one_is_not() -> None:
    with serving(mlp_triton()) as server:
        count = iter(range(1000))

        def busy(status: int, headers: dict[str, str], body: bytes) -> Any:
            return (503, {}, b"") if next(count) == 1 else (status, headers, body)

        server.change = busy
        harden_upstream(Target(server.url), WISH, images(), options=QUICKLY)
        server.change = lambda *_: (500, {}, b"secret")
        server.asked.clear()
        with pytest.raises(UpstreamError) as error:
            harden_upstream(Target(server.url), WISH, images(), options=QUICKLY)
    assert "secret" not in str(error.value)
    assert len(server.asked) == 3, "the rows of the trial, once"


@pytest.mark.parametrize(
    ("wish", "data", "options", "kind", "message"),
    [
        (Wish(model="nope"), images(), {}, UpstreamError, "does not know"),
        (WISH, rows(np.zeros((50, 3), np.float32)), {}, CalibrationError, "the model takes"),
        (WISH, images(), {"labels": ("a", "b")}, CalibrationError, "5 different labels"),
        (WISH, images(), {"output": "scores"}, UnsupportedModelError, "probabilities or logits"),
        (Wish(model="digits", output="other"), images(), {}, UnsupportedModelError, "--upstream-output"),
    ],
)
def test_wishes_that_cannot_be(wish: Wish, data: Rows, options: Any, kind: Any, message: str) -> None:
    with serving(mlp_triton()) as server, pytest.raises(kind, match=message):
        harden_upstream(Target(server.url), wish, data, options=Options(**{"benign_loss": 0.1} | options))


def test_nobody_there() -> None:
    with serving(mlp_triton()) as server:
        url = server.url
    with pytest.raises(UnavailableError):
        harden_upstream(Target(url), WISH, images(), options=QUICKLY)


def test_the_commands(tmp_path: Path) -> None:
    (tmp_path / "pass").touch(0o600)
    (tmp_path / "pass").write_text("word\n")
    np.savez(tmp_path / "data.npz", x=images().inputs["x"])
    run = CliRunner()

    def garrison(*words: str) -> Any:
        done = run.invoke(cli, [*words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    with serving(mlp_triton()) as server:
        more = ["--upstream", server.url, "--model", "digits", "--data", str(tmp_path / "data.npz")]
        garrison("harden", *more, "-o", str(tmp_path / "H"), "--on-ood", "uncertain", "--benign-loss", "0.1")
    description = read_hardened(tmp_path / "H")
    assert description.model is None
    assert description.upstream is not None
    key = ["--passphrase-file", str(tmp_path / "pass")]
    garrison("keygen", "-o", str(tmp_path / "OWNER"), *key)
    sealing = ["seal", str(tmp_path / "H"), "--key", str(tmp_path / "OWNER.key"), *key, "-o", str(tmp_path / "B")]
    refused = run.invoke(cli, [*sealing, "--require-sealed"])
    assert "no enclave can open" in str(refused.exception)
    garrison(*sealing)
    trust = ["--trust", str(tmp_path / "OWNER.pub")]
    garrison("verify", str(tmp_path / "B"), *trust)
    shown = garrison("inspect", str(tmp_path / "B"), *trust).output
    assert "digits, version 1, on another server" in shown
    wrong = run.invoke(cli, ["harden", *more, "-o", str(tmp_path / "X"), "a.onnx"])
    assert wrong.exit_code == 2
    assert run.invoke(cli, ["gateway", str(tmp_path / "B"), *trust]).exit_code == 2


@pytest.mark.slow
def test_detectors_are_calibrated_from_answers_alone() -> None:
    """In shadow, as for a model at hand; and that step asks no more rows than it may."""
    options = Options(benign_loss=0.1, on_ood="refuse", drift=False)
    with serving(mlp_triton()) as server:
        unseen = images(2_600)
        quiet = harden_upstream(Target(server.url), WISH, images(), unseen, options=replace(options, detectors=False))
        without = sum(server.asked)
        server.asked.clear()
        found = harden_upstream(Target(server.url), WISH, images(), unseen, options=options)
        assert without < sum(server.asked) <= without + WISH.most_rows
        few = Wish(model="digits", version="1", most_rows=10_000)
        assert any(
            "no detectors" in n
            for n in harden_upstream(Target(server.url), few, images(), unseen, options=options).notes
        )
    chain = {spec.name: spec for spec in found.description.guard}
    assert list(chain)[:4] == ["bounds", "projection", "max-probability", "watch"]
    assert chain["watch"].shadow
    assert chain["watch"].parameters["detectors"]
    assert "watch" not in {spec.name for spec in quiet.description.guard}, "control"
