"""The zoo's networks: EfficientNet-Lite0 knows what it was trained on; the small one learns a public set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.attacks.adversarial.nets import blocks, digits

from garrison import datasets
from garrison.attacks.extraction import zoo
from garrison.errors import AuditError

TABBY, EGYPTIAN, ESPRESSO, TRIPOD = 281, 285, 967, 872


def test_fresh_weights_follow_the_seed() -> None:
    first, again, other = (zoo.backbone("small-cnn", side=0, public="", public_rows=1, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.blocks[0][0].weight, again.blocks[0][0].weight)  # type: ignore[index]
    assert not torch.equal(first.blocks[0][0].weight, other.blocks[0][0].weight)  # type: ignore[index]
    assert first.parameters(0) == first.parameters(0, 2) + first.parameters(2) == 97_408


def test_pretraining_learns_and_fresh_weights_know_nothing() -> None:
    """A nearest centroid on features tells how much they know."""
    x, y = digits()
    fresh = torch.nn.Sequential(*zoo.backbone("small-cnn", side=0, public="", public_rows=1, seed=0).blocks)

    def right(net: torch.nn.Module) -> float:
        with torch.inference_mode():
            z = torch.nn.functional.normalize(net(zoo._for_small(torch.as_tensor(x))), dim=1).numpy()
        middles = np.stack([z[:400][y[:400] == k].mean(axis=0) for k in range(10)])
        return float((((z[400:, None] - middles) ** 2).sum(-1).argmin(1) == y[400:]).mean())

    assert right(blocks()) > max(0.9, right(fresh) + 0.03)


def test_copies_may_be_trained_and_the_zoo_stays() -> None:
    own = zoo.backbone("small-cnn", side=0, public="", public_rows=1, seed=0).blocks
    before = own[0][0].weight.clone()  # type: ignore[index]
    copy = zoo.copied(own)
    assert all(p.requires_grad for p in copy.parameters())
    assert not any(p.requires_grad for block in own for p in block.parameters())
    with torch.no_grad():
        copy[0][0].weight.zero_()  # type: ignore[index]
    assert torch.equal(own[0][0].weight, before)  # type: ignore[index]


def test_a_public_set_must_be_one_of_pictures() -> None:
    with pytest.raises(AuditError, match="wine"):
        zoo.backbone("small-cnn", side=0, public="wine:all", public_rows=10, seed=0)


def test_padding_is_on_the_right_and_below_where_it_is_odd() -> None:
    one = zoo.SamePadded(torch.ones(1, 1, 3, 3), torch.zeros(1), 2, 1)
    picture = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Windows begin at 0 and 2; the last row and column of the second ones are padding.
    assert one(picture).flatten().tolist() == [45.0, 39.0, 66.0, 50.0]
    assert one(torch.ones(1, 1, 5, 5)).shape == (1, 1, 3, 3)


@pytest.mark.slow
def test_efficientnet_lite0_names_what_photographs_show() -> None:
    """The published last layer on our blocks: a mistake in any layer would name something else."""
    image = pytest.importorskip("PIL.Image")
    own = zoo.backbone("efficientnet-lite0", side=224, public="", public_rows=1, seed=0)
    assert len(own.blocks) == 18
    last = torch.load(datasets.fetch("efficientnet-lite0"), weights_only=True)
    for name, wanted in (("chelsea", {TABBY, 282, EGYPTIAN}), ("coffee", {ESPRESSO}), ("camera", {TRIPOD})):
        with image.open(datasets.fetch("photo-patches", f"{name}.png")) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        side = min(pixels.shape[:2])
        top, left = ((n - side) // 2 for n in pixels.shape[:2])
        square = pixels[top : top + side, left : left + side].copy()
        with torch.inference_mode():
            z = own.prepare(torch.as_tensor(square).permute(2, 0, 1)[None] / 255.0)
            for block in own.blocks:
                z = block(z)
            found = int((z @ last["_fc.weight"].T + last["_fc.bias"]).argmax())
        assert found in wanted, name
