"""In segments a network answers as it does whole, within its budget, and with nothing that was changed outside."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from tests.runtime.networks import NETWORKS, SealedNetwork, rows_of, seal_named
from tests.runtime.test_store import Outside, Unchecked

from garrison.errors import BundleError, ChangedFileError, ConfigError
from garrison.runtime.on_demand import OnDemand, choose
from garrison.runtime.runner import ON_DEMAND, RESIDENT, Runner, pieces_of
from garrison.types import Array

Make = Callable[[str], SealedNetwork]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, SealedNetwork] = {}

    def make(name: str) -> SealedNetwork:
        if name not in made:
            made[name] = seal_named(name, tmp_path_factory.mktemp("networks") / "bundle")
        return made[name]

    return make


def least(sealed: SealedNetwork) -> int:
    pieces = pieces_of(sealed.bundle, sealed.bundle.manifest.graph, ["probabilities"])
    return max(pieces.sizes) + pieces.kept_bytes


def plain(model: onnx.ModelProto, x: Array) -> Array:
    found: Array = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]
    return found


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim > 1:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(array), tensor.name))
    return changed


# Answers


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_plain_runtime(network: Make, name: str) -> None:
    sealed = network(name)
    runner = Runner(sealed.bundle, parameter_memory=least(sealed))
    assert runner.parameters == ON_DEMAND
    for rows in (1, 2, 37):
        x = rows_of(sealed.shape, rows)
        found = runner.run({"x": x}).values
        np.testing.assert_allclose(found, plain(sealed.model, x), rtol=0, atol=1e-4)
        assert not np.allclose(found, plain(without_weights(sealed.model), x), rtol=0, atol=1e-2), (
            "control: zero weights"
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_cut_into_several_segments(network: Make, name: str) -> None:
    sealed = network(name)
    assert sealed.bundle.manifest.graph.whole == ""
    runner = Runner(sealed.bundle, parameter_memory=least(sealed))
    assert isinstance(runner._victim, OnDemand)
    assert len(runner._victim.parts) >= 2
    assert least(sealed) < sum(chunk.size for chunk in sealed.bundle.manifest.graph.chunks)


def test_with_room_for_all_it_runs_whole(network: Make) -> None:
    sealed = network("MLP")
    size = sum(chunk.size for chunk in sealed.bundle.manifest.graph.chunks)
    assert Runner(sealed.bundle).parameters == RESIDENT
    runner = Runner(sealed.bundle, parameter_memory=size)
    assert (runner.parameters, runner.budget.used) == (RESIDENT, size)


# The budget


def test_too_small_a_budget_names_the_least(network: Make) -> None:
    sealed = network("ResNet-18")
    needed = least(sealed)
    with pytest.raises(ConfigError, match=f"at least {needed:,} bytes"):
        Runner(sealed.bundle, parameter_memory=needed - 1)
    assert Runner(sealed.bundle, parameter_memory=needed).budget.used <= needed


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_parameters_in_memory_stay_within_the_budget(network: Make, share: float) -> None:
    """Counted by the budget, and seen from outside: a thousand requests allocate nothing that stays, and little at any time."""
    sealed = network("MLP")
    size = sum(chunk.size for chunk in sealed.bundle.manifest.graph.chunks)
    most = int(least(sealed) + share * (size - least(sealed)))
    runner = Runner(sealed.bundle, parameter_memory=most)
    x = {"x": rows_of(sealed.shape, 1)}
    runner.run(x)
    tracemalloc.start()
    before = runner.budget.used
    for _ in range(1000):
        runner.run(x)
        assert runner.budget.used == before <= most
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size // 10, "a copy of the parameters lies somewhere else"


def test_buffers_add_up_to_what_is_counted(network: Make) -> None:
    sealed = network("ResNet-18")
    most = sum(chunk.size for chunk in sealed.bundle.manifest.graph.chunks) * 3 // 4
    runner = Runner(sealed.bundle, parameter_memory=most)
    victim = runner._victim
    assert isinstance(victim, OnDemand)
    kept = pieces_of(sealed.bundle, sealed.bundle.manifest.graph, ["probabilities"]).kept_bytes
    places: dict[int, int] = {}
    for part in victim.parts:
        for value in part.parameters.values():
            start, size = value.data_ptr(), value.numpy().nbytes
            places[start] = max(places.get(start, 0), size)
    targets = [np.frombuffer(part.load.target, np.uint8) for part in victim.parts if part.load.chunks]
    first = min(target.ctypes.data for target in targets)
    stream = max(target.ctypes.data + target.nbytes for target in targets) - first
    pinned = sum(size for start, size in places.items() if not first <= start < first + stream)
    assert pinned > 0
    assert pinned + stream + kept <= runner.budget.used <= most


def test_the_choice_pins_as_much_as_fits() -> None:
    assert choose([5, 3, 8], None).pinned == {0, 1, 2}
    assert choose([5, 3, 8], 16).pinned == {0, 1, 2}
    for places in (1, 2, 3):  # there is no room for two of them
        tight = choose([5, 3, 8], 8, places)
        assert (tight.pinned, tight.stream_bytes, tight.most) == (frozenset(), 8, 8)
    some = choose([5, 3, 8], 13, 1)  # 8 stays, and 5 is enough for the others
    assert (some.pinned, some.stream_bytes) == (frozenset({2}), 5)
    with pytest.raises(ConfigError, match="8 bytes"):
        choose([5, 3, 8], 7)


@pytest.mark.parametrize("seed", range(20))
def test_a_choice_never_exceeds_the_room(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [int(n) for n in rng.integers(1, 100, 12)]
    for room in range(max(sizes), sum(sizes) + 1, 7):
        choice = choose(sizes, room)
        assert sum(sizes[i] for i in choice.pinned) + choice.stream_bytes <= room
        assert all(sizes[i] <= choice.most <= choice.stream_bytes for i in range(12) if i not in choice.pinned)


# Changes outside


def test_a_byte_changed_after_the_check_stops_the_answer(network: Make) -> None:
    """And once it is put right the service answers again: nothing of it stayed."""
    sealed = network("LeNet")
    outside = Outside()
    runner = Runner(sealed.bundle, parameter_memory=least(sealed), outside=outside)
    x = {"x": rows_of(sealed.shape, 2)}
    expected = runner.run(x).values
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(outside.data), 200):
        outside.data[place] ^= 64
        with pytest.raises(ChangedFileError, match="after they had been verified"):
            runner.run(x)
        outside.data[place] ^= 64
    np.testing.assert_array_equal(runner.run(x).values, expected)


def test_control_without_the_check_it_changes_the_answer(network: Make) -> None:
    sealed = network("LeNet")
    outside = Outside()
    runner = Runner(sealed.bundle, parameter_memory=least(sealed), outside=outside, tagger=Unchecked())
    x = {"x": rows_of(sealed.shape, 2)}
    expected = runner.run(x).values
    changed = 0
    for place in range(3, len(outside.data), len(outside.data) // 50):
        place -= place % 4 - 3  # the byte of sign and exponent
        outside.data[place] ^= 64
        changed += not np.array_equal(runner.run(x).values, expected)
        outside.data[place] ^= 64
    assert changed > 25


@pytest.mark.slow
def test_of_ten_thousand_flips_under_load_none_is_missed(network: Make) -> None:
    sealed = network("LeNet")
    outside = Outside()
    runner = Runner(sealed.bundle, parameter_memory=least(sealed), outside=outside)
    x = {"x": rows_of(sealed.shape, 1)}
    rng = np.random.default_rng(2)
    missed = 0
    for place, bit in zip(rng.integers(0, len(outside.data), 10_000), rng.integers(0, 8, 10_000), strict=True):
        outside.data[place] ^= 1 << int(bit)
        try:
            runner.run(x)
            missed += 1
        except BundleError:
            pass
        outside.data[place] ^= 1 << int(bit)
    assert missed == 0


# Two graphs, and models that cannot be cut: see test_runner.py


def test_the_bundle_is_not_kept(network: Make, tmp_path: Path) -> None:
    """The verified copy of all parameters goes when the caller lets go of it."""
    import gc

    sealed = seal_named("MLP", tmp_path / "b")
    runner = Runner(sealed.bundle, parameter_memory=least(sealed))
    files = list(sealed.bundle.files.values())
    gc.collect()
    holders = [h for data in files for h in gc.get_referrers(data) if h is not files]
    assert all(isinstance(h, dict) and set(h) == set(sealed.bundle.files) for h in holders)
    assert runner.run({"x": rows_of(sealed.shape, 1)}).values.shape == (1, 10)
