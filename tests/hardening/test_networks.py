from __future__ import annotations

import numpy as np
import pytest
import torch

from garrison.errors import UnsupportedModelError
from garrison.hardening.networks import Standardise, lenet, own_network, parameters
from garrison.hardening.training import Training, apply, seeded


def test_lenet_is_lenet() -> None:
    assert parameters(lenet((1, 28, 28), 10)) == 61_706


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 32, 20), (1, 29, 31)])
def test_lenet_fits_other_images(shape: tuple[int, int, int]) -> None:
    assert apply(lenet(shape, 7), np.zeros((3, *shape), dtype=np.float32)).shape == (3, 7)


def test_lenet_needs_room() -> None:
    with pytest.raises(UnsupportedModelError, match="at least 12"):
        lenet((1, 8, 28), 10)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 33), (1, 8, 8), (64,), (5, 4)])
def test_a_network_for_every_shape(shape: tuple[int, ...]) -> None:
    network = own_network(shape, 6, torch.zeros(1), torch.ones(1))
    assert apply(network, np.zeros((2, *shape), dtype=np.float32)).shape == (2, 6)
    assert parameters(network) < 40_000


def test_missing_values_become_the_mean() -> None:
    layer = Standardise(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]))
    found = layer(torch.tensor([[torch.nan, 6.0], [3.0, torch.nan]]))
    assert found.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_training_leaves_torch_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    with seeded(3, threads + 1):
        torch.rand(5)
        assert torch.get_num_threads() == threads + 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert Training().epochs > 0
