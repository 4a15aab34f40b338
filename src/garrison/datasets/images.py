"""Readers of the image sets: IDX files, PGM faces, patches of photographs. Out come float32 (n, 1, height, width) in [0, 1]."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from garrison.datasets.content import Content, ReadFile, mixed_order
from garrison.errors import DatasetCorruptError, MissingExtraError
from garrison.types import FloatArray

FASHION_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DIGIT_LABELS = tuple("0123456789")
PATCH = 28
STRIDE = 14
FLAT = 0.02
"""A patch whose standard deviation is below this (of a range of 1) shows nothing and is left out."""
PHOTOGRAPHS: Mapping[str, tuple[str, ...]] = {
    "train": ("astronaut", "brick", "chelsea", "coffee", "grass", "ihc", "moon", "motorcycle_left"),
    "test": ("camera", "clock_motion", "coins", "gravel"),
}
FACE = (112, 92)
"""Height and width of an ORL face."""
FACES_PER_PERSON = 10
TEST_FACES = 3


def read_idx(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """An array of unsigned bytes from the IDX format: two zero bytes, type 8, rank, sizes (big-endian 32 bit), values.

    Raises:
        DatasetCorruptError: the header or the length is wrong.
    """
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DatasetCorruptError(
            f"{name}: expected an IDX file of unsigned bytes, found it to begin with {data[:4].hex()}"
        )
    end = 4 + 4 * data[3]
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, end, 4))
    if len(data) != end + math.prod(shape):
        raise DatasetCorruptError(f"{name}: its header says shape {shape}, and {len(data) - end} values follow")
    return np.frombuffer(data, np.uint8, offset=end).reshape(shape)


def unit_images(pixels: npt.NDArray[np.uint8]) -> FloatArray:
    """(n, height, width) of 0..255 to float32 (n, 1, height, width) of 0..1."""
    return (pixels[:, None].astype(np.float32)) / np.float32(255)


@dataclass(frozen=True, slots=True)
class IdxReader:
    """Reads the four files of MNIST and of the sets made after it."""

    labels: tuple[str, ...]

    def __call__(self, read: ReadFile, split: str) -> Content:
        part = {"train": "train", "test": "t10k"}[split]
        images, labels = f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"
        x, y = read_idx(read(images), images), read_idx(read(labels), labels)
        if x.ndim != 3 or y.shape != x.shape[:1]:
            raise DatasetCorruptError(f"{images}: expected one label an image, found shapes {x.shape} and {y.shape}")
        return Content(unit_images(x), y.astype(np.int64), self.labels)


def read_pgms(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """All images of a file of joined binary PGM images (P5, 8 bits, one size): uint8 (n, height, width)."""
    images, at = [], 0
    header = re.compile(rb"P5\s+(\d+)\s+(\d+)\s+255\s")
    while at < len(data):
        match = header.match(data, at)
        if match is None:
            raise DatasetCorruptError(f"{name}: expected a PGM header at byte {at}, found {data[at : at + 8].hex()}")
        width, height = int(match[1]), int(match[2])
        at = match.end() + width * height
        if at > len(data):
            raise DatasetCorruptError(f"{name}: it ends within an image")
        images.append(np.frombuffer(data, np.uint8, width * height, match.end()).reshape(height, width))
    if len({image.shape for image in images}) != 1:
        raise DatasetCorruptError(f"{name}: expected images of one size")
    return np.stack(images)


def undo_text_mode(data: bytes) -> bytes:
    """Joined PGM faces as they were before somebody copied some of them in text mode.

    In those every lone line feed, of the header and of the pixels alike, became a carriage return and a line feed; their
    headers betray them. A pair that was there before cannot be told from a made one by itself; a picture that comes out
    one byte too short (two of 400) had one, and it is put where the rows then fit each other best.
    """
    pictures = re.split(rb"(?=P5\r?\n92 112\r?\n255\r?\n)", data)
    return b"".join(_undo_picture(picture) if picture.startswith(b"P5\r") else picture for picture in pictures)


def _undo_picture(picture: bytes) -> bytes:
    header, pixels = b"P5\n92 112\n255\n", picture[len(b"P5\r\n92 112\r\n255\r\n") :]
    pieces = pixels.split(b"\r\n")
    plain = b"\n".join(pieces)
    if len(plain) != FACE[0] * FACE[1] - 1:
        return header + plain
    with_pair = [b"\n".join(pieces[:k]) + b"\r\n" + b"\n".join(pieces[k:]) for k in range(1, len(pieces))]
    return header + min(with_pair, key=_roughness)


def _roughness(pixels: bytes) -> int:
    rows = np.frombuffer(pixels, np.uint8).reshape(FACE).astype(np.int64)
    return int(np.abs(np.diff(rows, axis=0)).sum())


def area_weights(old: int, new: int) -> npt.NDArray[np.float64]:
    """Matrix (new, old) that averages by area: row i covers [i, i+1) * old / new, and sums to 1."""
    edges = np.linspace(0, old, new + 1)
    left, right = np.arange(old), np.arange(1, old + 1)
    overlap = np.minimum(edges[1:, None], right) - np.maximum(edges[:-1, None], left)
    weights: npt.NDArray[np.float64] = np.clip(overlap, 0, None) * (new / old)
    return weights


def read_faces(read: ReadFile, split: str) -> Content:
    """The AT&T (ORL) faces, 112 x 92; of each person the last three pictures are the test split."""
    x = unit_images(read_pgms(read("orl-faces.pgm"), "orl-faces.pgm"))
    person, picture = np.divmod(np.arange(len(x)), FACES_PER_PERSON)
    is_test = picture >= FACES_PER_PERSON - TEST_FACES
    keep = {"train": ~is_test, "test": is_test, "all": np.ones_like(is_test)}[split]
    labels = tuple(f"s{i + 1}" for i in range(int(person[-1]) + 1))
    return Content(x[keep], person[keep].astype(np.int64), labels)


def read_small_faces(read: ReadFile, split: str) -> Content:
    """The same faces, averaged by area to 28 x 28 (the whole picture, so the aspect changes by 92/112)."""
    faces = read_faces(read, split)
    rows, columns = (area_weights(size, PATCH) for size in faces.x.shape[2:])
    small = np.einsum("ij,nkjl,ml->nkim", rows, faces.x.astype(np.float64), columns, optimize=True)
    return Content(np.clip(small, 0, 1).astype(np.float32), faces.y, faces.labels)


def grey_photograph(data: bytes, name: str) -> FloatArray:
    """A PNG photograph as float32 (height, width) in [0, 1]; colour by the integer weights 299, 587, 114 of BT.601."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "data") from error
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except (OSError, ValueError) as error:
        raise DatasetCorruptError(f"{name}: cannot be read as a PNG image: {error}") from error
    if pixels.ndim == 3:
        pixels = pixels[..., :3].astype(np.int64) @ np.array([299, 587, 114]) / 1000
    return (pixels / 255).astype(np.float32)


def halve(image: FloatArray) -> FloatArray:
    """Mean of each 2 x 2 block; an odd last row or column is dropped."""
    height, width = (size // 2 * 2 for size in image.shape)
    blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2)
    halved: FloatArray = blocks.mean(axis=(1, 3), dtype=np.float32)
    return halved


def cut(image: FloatArray) -> FloatArray:
    """All 28 x 28 patches at steps of 14 that show something: float32 (n, 28, 28)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (PATCH, PATCH))[::STRIDE, ::STRIDE]
    patches = windows.reshape(-1, PATCH, PATCH)
    shown: FloatArray = patches[patches.std(axis=(1, 2)) >= FLAT]
    return shown


def read_patches(read: ReadFile, split: str) -> Content:
    """Patches of photographs at full, half and quarter size, mixed in a fixed order; y is the photograph.

    The splits share no photograph.
    """
    names = PHOTOGRAPHS["train"] + PHOTOGRAPHS["test"]
    chosen = names if split == "all" else PHOTOGRAPHS[split]
    patches, photographs = [], []
    for name in chosen:
        full = grey_photograph(read(f"{name}.png"), f"{name}.png")
        half = halve(full)
        for image in (full, half, halve(half)):
            patches.append(cut(image))
            photographs.append(np.full(len(patches[-1]), names.index(name), dtype=np.int64))
    x, y = np.concatenate(patches), np.concatenate(photographs)
    order = mixed_order(len(x))
    return Content(np.ascontiguousarray(x[order, None]), y[order], names)
