"""Images of an attack as a report keeps them: small PNG files in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from garrison.attacks.exam import Picture
from garrison.audit.report.content import PictureCard
from garrison.errors import MissingExtraError
from garrison.types import FloatArray

try:
    from PIL import Image
except ImportError as error:
    raise MissingExtraError("pillow", "audit") from error

MOST_PICTURES = 12
LARGEST_SIDE = 224


def cards(pictures: Sequence[Picture]) -> tuple[PictureCard, ...]:
    """The first pictures, each image a PNG file no larger than `LARGEST_SIDE`."""
    return tuple(
        PictureCard(caption=p.caption, names=p.names, images=tuple(_png(image) for image in p.images))
        for p in pictures[:MOST_PICTURES]
    )


def _png(image: FloatArray) -> str:
    levels = np.round(255 * np.clip(np.nan_to_num(image), 0, 1)).astype(np.uint8)
    shown = Image.fromarray(levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1))
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
