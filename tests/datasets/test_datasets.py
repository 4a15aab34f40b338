"""The public face, on real data. Fashion-MNIST and MNIST run always, every other set under `slow`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from garrison import datasets
from garrison.datasets.registry import ENTRIES
from garrison.errors import UnknownDatasetError

DOCS = Path(__file__).parents[2] / "docs" / "datasets.md"
MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def check_images(data: datasets.Dataset, counts: list[int]) -> None:
    assert data.x.shape == (sum(counts), 1, 28, 28)
    assert data.x.dtype == np.float32
    assert (data.x.min(), data.x.max()) == (0, 1)
    assert data.y is not None
    assert np.bincount(data.y).tolist() == counts
    assert len(data.labels) == len(counts)


def test_fashion_mnist() -> None:
    train, test = datasets.load("fashion-mnist"), datasets.load("fashion-mnist", "test")
    check_images(train, [6000] * 10)
    check_images(test, [1000] * 10)
    assert train.sha256 != test.sha256
    assert train.x.mean() == pytest.approx(0.2860, abs=1e-4)  # the set's published mean
    assert train.y is not None
    assert [train.labels[y] for y in train.y[:3]] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]


def test_mnist() -> None:
    check_images(datasets.load("mnist"), MNIST_TRAIN)
    check_images(datasets.load("mnist", "test"), MNIST_TEST)
    assert datasets.load("mnist").x.mean() == pytest.approx(0.1307, abs=1e-4)


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(UnknownDatasetError, match=r"no data set 'minst'; there are .*mnist"):
        datasets.load("minst")
    with pytest.raises(UnknownDatasetError, match="has the splits train, test; found 'validation'"):
        datasets.load("mnist", "validation")
    with pytest.raises(UnknownDatasetError, match="is a model file"):
        datasets.load("magika")
    with pytest.raises(UnknownDatasetError, match=r"has the files model.onnx, config.min.json; found 'x'"):
        datasets.fetch("magika", "x")
    with pytest.raises(UnknownDatasetError, match="no data set"):
        datasets.describe("../mnist")


def test_a_given_cache_is_used(tmp_path: Path) -> None:
    source = datasets.fetch("mnist", "t10k-labels-idx1-ubyte")
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / source.name).write_bytes(source.read_bytes())
    assert datasets.fetch("mnist", source.name, cache=tmp_path) == tmp_path / "mnist" / source.name


@pytest.mark.parametrize("name", datasets.names())
def test_the_registry_is_sound(name: str) -> None:
    entry, described = ENTRIES[name], datasets.describe(name)
    assert len({file.name for file in entry.files}) == len(entry.files) > 0
    for file in entry.files:
        assert len(file.sha256) == 64
        assert int(file.sha256, 16)
        assert Path(file.name).name == file.name  # one flat folder a set
    assert described.licence
    assert described.source
    assert described.roads
    assert (entry.read is None) == (entry.kind == "model") == (not entry.splits)


@pytest.mark.parametrize("name", datasets.names())
def test_every_set_is_documented(name: str) -> None:
    text = DOCS.read_text(encoding="utf-8")
    row = next((line for line in text.splitlines() if line.startswith(f"| `{name}` |")), None)
    assert row is not None, f"docs/datasets.md has no row for {name}"
    for package in (getattr(road, "spec", getattr(road, "package", None)) for road in ENTRIES[name].roads):
        assert package is None or package in row


@pytest.mark.slow
@pytest.mark.parametrize("name", datasets.names())
def test_every_set_is_what_its_description_says(name: str) -> None:
    described = datasets.describe(name)
    for file, size in described.files.items():
        assert datasets.fetch(name, file).stat().st_size == size
    for split, rows in described.splits.items():
        data = datasets.load(name, split)
        assert data.y is not None
        assert len(data.x) == len(data.y) == rows
        if data.labels:
            assert data.y.dtype == np.int64
            assert 0 <= data.y.min() <= data.y.max() < len(data.labels)
        if described.kind == "images":
            assert data.x.dtype == np.float32
            assert 0 <= data.x.min() < data.x.max() <= 1
        else:
            assert data.x.dtype == np.float64
            assert data.x.shape == (rows, len(data.features))
            for column, categories in data.categories.items():
                cells = data.x[:, data.features.index(column)]
                cells = cells[~np.isnan(cells)]
                assert set(np.unique(cells)) <= set(range(len(categories)))


@pytest.mark.slow
def test_known_facts_of_the_tables() -> None:
    def counts(name: str, split: str) -> list[int]:
        y = datasets.load(name, split).y
        return [] if y is None else np.bincount(y).tolist()

    assert counts("adult", "train") == [24720, 7841]
    assert counts("adult", "test") == [12435, 3846]
    assert counts("german-credit", "all") == [700, 300]
    assert counts("compas", "all") == [3963, 3251]
    assert counts("spam", "all") == [2788, 1813]
    assert counts("kdd-census", "train") == [187141, 12382]
    assert counts("gss-happiness", "all") == [2086, 9791, 5260]
    assert counts("breast-cancer", "all") == [212, 357]
    assert counts("letters", "all")[:3] == [789, 766, 736]
    assert counts("orl-faces-28", "train") == [7] * 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["breast-cancer", "digits", "iris", "wine"])
def test_the_small_sets_are_scikit_learns_own(name: str) -> None:
    loaders = pytest.importorskip("sklearn.datasets")
    loaded = getattr(loaders, f"load_{name.replace('-', '_')}")()
    data = datasets.load(name, "all")
    np.testing.assert_array_equal(data.x, loaded.data)
    np.testing.assert_array_equal(data.y, loaded.target)
    if name != "digits":
        assert list(data.features) == list(loaded.feature_names)


@pytest.mark.slow
def test_diabetes_is_scikit_learns_own() -> None:
    loaded = pytest.importorskip("sklearn.datasets").load_diabetes(scaled=False)
    data = datasets.load("diabetes", "all")
    np.testing.assert_array_equal(data.x, loaded.data)
    np.testing.assert_array_equal(data.y, loaded.target)
    assert list(data.features) == list(loaded.feature_names)
