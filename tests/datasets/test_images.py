from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image
from tests.datasets.conftest import FILES, PIXELS, idx

from garrison.datasets.images import (
    FACE,
    IdxReader,
    area_weights,
    cut,
    grey_photograph,
    halve,
    read_idx,
    read_pgms,
    undo_text_mode,
)
from garrison.errors import DatasetCorruptError, MissingExtraError

RNG = np.random.default_rng(7)


def test_an_idx_file_is_read() -> None:
    np.testing.assert_array_equal(read_idx(FILES["images"], "images"), PIXELS)
    assert read_idx(FILES["labels"], "labels").tolist() == [1, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x08",
        FILES["images"][:-1],
        FILES["images"] + b"\x00",
        b"\x00\x00\x0d" + FILES["images"][3:],
        FILES["images"][:3] + b"\xff" + FILES["images"][4:],
        FILES["images"][:4] + b"\xff\xff\xff\xff" + FILES["images"][8:],
        b"\x1f\x8b\x08\x00" + bytes(40),
    ],
)
def test_an_idx_file_that_lies_about_itself_is_corrupt(data: bytes) -> None:
    with pytest.raises(DatasetCorruptError, match="images: "):
        read_idx(data, "images")


def test_images_become_floats_in_the_unit_range() -> None:
    pixels = np.array([[[0, 51], [102, 255]]], dtype=np.uint8)
    files = {"t10k-images-idx3-ubyte": idx(pixels), "t10k-labels-idx1-ubyte": idx(np.array([1], dtype=np.uint8))}
    content = IdxReader(("no", "yes"))(files.__getitem__, "test")
    assert content.x.dtype == np.float32
    assert content.x.shape == (1, 1, 2, 2)
    np.testing.assert_allclose(content.x.ravel(), [0, 0.2, 0.4, 1])
    assert content.y is not None
    assert content.y.dtype == np.int64
    assert (content.y.tolist(), content.labels) == ([1], ("no", "yes"))


def test_one_label_an_image() -> None:
    files = {"train-images-idx3-ubyte": FILES["images"], "train-labels-idx1-ubyte": idx(np.zeros(3, dtype=np.uint8))}
    with pytest.raises(DatasetCorruptError, match="one label an image"):
        IdxReader(())(files.__getitem__, "train")


def pgm(pixels: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> bytes:
    return b"P5\n%d %d\n255\n" % pixels.shape[::-1] + pixels.tobytes()


def test_joined_pgm_images_are_read() -> None:
    images = [RNG.integers(0, 256, (3, 5), dtype=np.uint8) for _ in range(3)]
    np.testing.assert_array_equal(read_pgms(b"".join(map(pgm, images)), "x"), np.stack(images))
    # a pixel that looks like white space directly after the header belongs to the picture
    spaces = np.full((3, 5), 0x0A, dtype=np.uint8)
    np.testing.assert_array_equal(read_pgms(pgm(spaces), "x"), spaces[None])


@pytest.mark.parametrize(
    "data", [b"P6\n1 1\n255\nabc", b"P5\n2 2\n255\nabc", b"P5\n1 1\n255\naP5\n2 1\n255\nab", b"junk"]
)
def test_broken_pgm_images_are_corrupt(data: bytes) -> None:
    with pytest.raises(DatasetCorruptError, match="x: "):
        read_pgms(data, "x")


def smooth_face(seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """A made picture whose rows resemble each other, with many line feeds in it."""
    row = np.random.default_rng(seed).integers(0, 40, FACE[1])
    picture = np.tile(row, (FACE[0], 1)) + np.arange(FACE[0])[:, None] // 8
    return picture.astype(np.uint8)


def in_text_mode(data: bytes) -> bytes:
    """What a copy in text mode does: lone line feeds grow, pairs stay as they are."""
    return data.replace(b"\r\n", b"\0PAIR\0").replace(b"\n", b"\r\n").replace(b"\0PAIR\0", b"\r\n")


def test_text_mode_is_undone() -> None:
    whole = [pgm(smooth_face(seed)) for seed in range(3)]
    copied = [whole[0], in_text_mode(whole[1]), whole[2]]
    assert len(copied[1]) > len(whole[1])
    assert undo_text_mode(b"".join(copied)) == b"".join(whole)


def test_a_pair_that_was_there_before_is_put_back_where_the_rows_fit() -> None:
    picture = smooth_face(0)
    picture[picture == 0x0D] = 0x0C
    picture[40, 30:32] = (0x0D, 0x0A)
    whole = pgm(picture)
    assert len(undo_text_mode(in_text_mode(whole))) == len(whole)
    assert undo_text_mode(in_text_mode(whole)) == whole


def test_area_weights_average() -> None:
    np.testing.assert_allclose(area_weights(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(area_weights(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])
    np.testing.assert_allclose(area_weights(92, 28).sum(axis=1), 1)
    np.testing.assert_allclose(area_weights(5, 5), np.eye(5))


def test_a_photograph_becomes_grey() -> None:
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[1, 0] = (255, 0, 0), (0, 255, 0), (255, 255, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    np.testing.assert_allclose(grey_photograph(stream.getvalue(), "x"), np.array([[0.299, 0.587], [1, 0]]), atol=1e-6)
    with pytest.raises(DatasetCorruptError, match="PNG"):
        grey_photograph(b"no picture", "x")


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"garrison\[data\]"):
        grey_photograph(b"", "x")


def test_patches_step_by_half_and_leave_flat_ones_out() -> None:
    image = RNG.random((56, 70), dtype=np.float32)
    patches = cut(image)
    assert patches.shape == (3 * 4, 28, 28)
    np.testing.assert_array_equal(patches[5], image[14:42, 14:42])
    image[:, :28] = 0.5
    assert len(cut(image)) == 3 * 3


def test_halving_averages_blocks() -> None:
    image = np.arange(15, dtype=np.float32).reshape(3, 5)
    np.testing.assert_allclose(halve(image), [[3, 5]])
