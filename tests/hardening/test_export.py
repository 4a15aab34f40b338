from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from garrison.bundle.manifest import InputSpec
from garrison.errors import SealingError
from garrison.hardening import export
from garrison.hardening.misinformation import train_network
from garrison.hardening.networks import Network, head, lenet, own_network
from garrison.hardening.scoring import open_session, score
from garrison.hardening.training import Training, apply

X = np.random.default_rng(0).random((37, 1, 28, 28)).astype(np.float32)


def test_a_victim_answers_as_torch_does() -> None:
    torch.manual_seed(0)
    network = lenet((1, 28, 28), 10)
    second = head(84, 10)
    session = open_session(export.victim_graph(network, second, X[:8]))
    found = score(session, {"image": X})
    assert list(found) == ["probabilities", "logits", "misinformation"]
    np.testing.assert_allclose(found["logits"], apply(network, X).numpy(), atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], torch.softmax(apply(network, X), 1).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.exp(found["misinformation"]).sum(axis=1), 1, atol=1e-5)
    wrong = torch.log_softmax(second(apply(network.body, X).clone()), 1).detach().numpy()
    np.testing.assert_allclose(found["misinformation"], wrong, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch() -> None:
    session = open_session(export.victim_graph(lenet((1, 28, 28), 10), head(84, 10), X[:8]))
    whole = score(session, {"image": X})
    for size in (1, 2):
        parts = score(session, {"image": X}, slice_rows=size)
        for name, value in whole.items():
            np.testing.assert_allclose(parts[name], value, atol=1e-6)


def test_equal_networks_give_equal_bytes() -> None:
    network = lenet((3, 16, 20), 4)
    sample = np.zeros((2, 3, 16, 20), dtype=np.float32)
    assert export.victim_graph(network, None, sample) == export.victim_graph(network, None, sample)


def test_an_f_of_its_own_takes_the_victims_inputs_whatever_they_are() -> None:
    rng = np.random.default_rng(0)
    age = rng.normal(40, 9, (60, 2))
    age[::7, 1] = np.nan
    inputs = {"age": age, "city": rng.integers(0, 9, (60, 1)), "member": rng.random((60, 1)) < 0.5}
    specs = (
        InputSpec(name="age", datatype="FP64", shape=(2,), minimum=0.0, maximum=99.0, may_be_missing=(False, True)),
        InputSpec(name="city", datatype="INT64", shape=(1,), minimum=0.0, maximum=9.0),
        InputSpec(name="member", datatype="BOOL", shape=(1,), minimum=0.0, maximum=1.0),
    )
    x = export.joined(inputs)
    assert x.shape == (60, 4)
    network = train_network(x, np.arange(60) % 4, 4, options=Training(epochs=1, threads=1))
    session = open_session(export.misinformation_graph(network, specs, inputs))
    found = score(session, inputs)
    assert list(found) == ["misinformation"]
    np.testing.assert_allclose(np.exp(found["misinformation"]).sum(axis=1), 1, atol=1e-5)


def test_one_number_a_row_is_enough() -> None:
    inputs = {"age": np.arange(40, dtype=np.int64)}
    spec = InputSpec(name="age", datatype="INT64", shape=(), minimum=0.0, maximum=99.0)
    network = train_network(export.joined(inputs), np.arange(40) % 3, 3, options=Training(epochs=1, threads=1))
    session = open_session(export.misinformation_graph(network, (spec,), inputs))
    assert score(session, inputs)["misinformation"].shape == (40, 3)


def test_an_image_network_is_exported() -> None:
    network = own_network((1, 28, 28), 5, torch.tensor([0.3]), torch.tensor([0.5]))
    spec = InputSpec(name="picture", datatype="FP32", shape=(1, 28, 28), minimum=0.0, maximum=1.0)
    session = open_session(export.misinformation_graph(network, (spec,), {"picture": X}))
    expected = torch.log_softmax(apply(network, X), 1).numpy()
    np.testing.assert_allclose(score(session, {"picture": X})["misinformation"], expected, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Conv2d(1, 1, 3, dilation=2), nn.Conv2d(1, 1, 3, padding="same")])
def test_layers_without_an_export(layer: nn.Module) -> None:
    with pytest.raises(SealingError, match="no export"):
        export.victim_graph(Network(nn.Sequential(layer, nn.Flatten()), 784, 3), None, X[:2])


def test_a_graph_that_disagrees_with_torch_is_never_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    network = lenet((1, 28, 28), 10)
    true = export._Graph.constant
    monkeypatch.setattr(export._Graph, "constant", lambda graph, value: true(graph, value * 1.01))
    with pytest.raises(SealingError, match="disagree"):
        export.victim_graph(network, None, X[:8])
