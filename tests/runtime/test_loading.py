"""Loading ahead: what is handed out was checked in this run, and no place is overwritten before its segment is done."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.networks import SealedNetwork, rows_of, seal_named
from tests.runtime.test_store import Outside

from garrison.errors import BundleError, ChangedFileError, ConfigError
from garrison.runtime import loading, on_demand
from garrison.runtime import runner as runner_module
from garrison.runtime.loading import Load, Loader
from garrison.runtime.parting import NOT_PARTED
from garrison.runtime.runner import ON_DEMAND, Runner, pieces_of
from garrison.runtime.store import VerifiedStore

SIZE = 3000


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: the thread works on one core too."""
    monkeypatch.setattr(loading, "cores", lambda: 2)
    monkeypatch.setattr(on_demand, "cores", lambda: 2)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> SealedNetwork:
    return seal_named("ResNet-18", tmp_path_factory.mktemp("network") / "bundle")


def loading_threads() -> set[threading.Thread]:
    """Other tests' servers in this process have threads too."""
    return {thread for thread in threading.enumerate() if thread.name == "parameters"}


def filled(outside: Outside, count: int, places: int) -> tuple[VerifiedStore, list[Load], list[bytes]]:
    """Loads of so many segments into a buffer for a few."""
    store, buffer, loads, contents = VerifiedStore(outside), memoryview(bytearray(places * SIZE)), [], []
    store.reserve(count * SIZE)
    for i in range(count):
        at = i % places * SIZE
        contents.append(np.random.default_rng(i).bytes(SIZE))
        chunks = store.put(memoryview(contents[-1]))
        loads.append(Load(chunks, buffer[at : at + SIZE], max(0, i - places + 1)))
    return store, loads, contents


def use(loader: Loader, loads: list[Load], contents: list[bytes]) -> None:
    """One run, in which each segment must find its content."""
    with loader.run(loads) as turn:
        for i, load in enumerate(loads):
            turn.wait(i)
            assert bytes(load.target) == contents[i]
            turn.done(i)


@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize("thread", [False, True])
def test_each_segment_finds_its_own_parameters(thread: bool, places: int) -> None:
    store, loads, contents = filled(Outside(), 20, places)
    loader = Loader(store)
    assert not thread or loader.start_thread()
    for _ in range(20):
        use(loader, loads, contents)


def test_nothing_is_overwritten_that_is_in_use() -> None:
    store, loads, contents = filled(Outside(), 6, 2)
    loader = Loader(store)
    assert loader.start_thread()
    with loader.run(loads) as turn:
        turn.wait(0)
        turn.wait(1)
        assert not turn._loaded.acquire(timeout=0.2), "the third one takes the first one's place"
        assert (bytes(loads[0].target), bytes(loads[1].target)) == (contents[0], contents[1])


def test_a_change_is_told_where_it_is_waited_for_and_the_next_run_is_clean() -> None:
    outside = Outside()
    store, loads, contents = filled(outside, 8, 3)
    loader = Loader(store)
    assert loader.start_thread()
    for number in range(8):
        outside.data[number * SIZE + 5] ^= 1
        with pytest.raises(ChangedFileError):
            use(loader, loads, contents[:number])
        outside.data[number * SIZE + 5] ^= 1
    with loader.run(loads) as turn:
        turn.wait(0)


def test_a_run_that_ends_early_leaves_no_load_behind() -> None:
    store, loads, _ = filled(Outside(), 6, 2)
    loader, before = Loader(store), loading_threads()
    assert loader.start_thread()
    for _ in range(50):
        with contextlib.suppress(ZeroDivisionError), loader.run(loads) as turn:
            turn.wait(0)
            raise ZeroDivisionError
        loads[0].target[:] = bytes(SIZE)
        assert not any(loads[0].target), "the thread still writes"
    assert len(loading_threads() - before) == 1


def test_it_starts_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(VerifiedStore(Outside()))
    before = loading_threads()
    assert loader.start_thread()
    assert loader.start_thread()
    assert len(loading_threads() - before) == 1
    monkeypatch.setattr(loading, "cores", lambda: 1)
    assert not Loader(VerifiedStore(Outside())).start_thread(), "control: there is no second core"


def test_a_thread_that_is_stopped_ends_and_later_runs_load_in_turn() -> None:
    store, loads, contents = filled(Outside(), 6, 2)
    loader, before = Loader(store), loading_threads()
    loader.stop_thread()
    assert loader.start_thread()
    use(loader, loads, contents)
    loader.stop_thread()
    loader.stop_thread()
    assert not loading_threads() - before
    use(loader, loads, contents)
    assert loader.start_thread()
    use(loader, loads, contents)
    loader.stop_thread()


def test_ahead_the_answers_are_the_same_and_a_flip_is_found(network: SealedNetwork, tmp_path: Path) -> None:
    del tmp_path
    pieces, outside = pieces_of(network.bundle, network.bundle.manifest.graph, ["probabilities"]), Outside()
    runner = Runner(network.bundle, parameter_memory=3 * max(pieces.sizes) + pieces.kept_bytes, outside=outside)
    x = {"x": rows_of(network.shape, 3)}
    expected = runner.run(x).values
    assert runner.load_ahead()
    for _ in range(10):
        np.testing.assert_array_equal(runner.run(x).values, expected)
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(outside.data), 200):
        outside.data[place] ^= 2
        with pytest.raises(BundleError):
            runner.run(x)
        outside.data[place] ^= 2
    np.testing.assert_array_equal(runner.run(x).values, expected)


def test_on_one_core_layers_stay_whole_unless_the_memory_is_too_small(
    network: SealedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, small = network.bundle.manifest.graph, 300_000
    monkeypatch.setattr(runner_module, "PART_BYTES", small)
    whole, parts = (pieces_of(network.bundle, graph, ["probabilities"], size) for size in (NOT_PARTED, small))
    assert max(parts.sizes) < max(whole.sizes)
    monkeypatch.setattr(runner_module, "cores", lambda: 1)
    monkeypatch.setattr(loading, "cores", lambda: 1)
    monkeypatch.setattr(on_demand, "cores", lambda: 1)
    x = {"x": rows_of(network.shape, 3)}
    expected = Runner(network.bundle).run(x).values
    for pieces in (whole, parts):
        most = max(pieces.sizes) + pieces.kept_bytes
        runner = Runner(network.bundle, parameter_memory=most)
        assert runner.parameters == ON_DEMAND
        assert runner.budget.used <= most
        assert not runner.load_ahead()
        np.testing.assert_allclose(runner.run(x).values, expected, atol=1e-4)
    with pytest.raises(ConfigError, match="needs at least"):
        Runner(network.bundle, parameter_memory=max(parts.sizes) + parts.kept_bytes - 1)


def test_without_parameters_on_demand_there_is_no_thread(network: SealedNetwork) -> None:
    assert not Runner(network.bundle).load_ahead()
