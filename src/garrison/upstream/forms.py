"""Questions and answers whose JSON part was written, or read, before: from one to the next only the id and the numbers are new.

For one row, the JSON takes a sixth of our own part of an exchange. Invariant: what is written and read here is what
`garrison.protocol.oip_client` makes of the same; whatever is not word for word as before is left to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from garrison.protocol.oip import ALL_JSON
from garrison.protocol.oip_client import encode_request
from garrison.types import Array

_MOST_FORMS, _MOST_HEAD_BYTES = 64, 4096
_ID = "garrison"


class QuestionForms:
    """Writes binary questions.

    Args:
        output: the output that is wanted.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._around: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}

    def write(self, inputs: Mapping[str, Array], number: str) -> tuple[bytes, int]:
        """As `encode_request`, of an id that JSON need not escape: the body, and the length of its JSON part.

        Raises:
            InputError: as there.
        """
        key = tuple([(name, x.dtype, x.shape) for name, x in inputs.items()])
        around = self._around.get(key)
        if around is None:
            around = self._around_id(inputs)
            _keep(self._around, key, around)
        head = number.encode("ascii").join(around)
        return b"".join([head, *[x.tobytes() for x in inputs.values()]]), len(head)

    def _around_id(self, inputs: Mapping[str, Array]) -> tuple[bytes, bytes]:
        body, end = encode_request(inputs, outputs=(self._output,), request_id=_ID)
        before, _, after = body[:end].partition(_ID.encode("ascii"))  # the id stands first
        return before, after


class _Layout(NamedTuple):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int


class AnswerForms:
    """Reads binary answers of one tensor."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[bytes, bytes], _Layout] = {}

    def read(self, body: bytes, json_bytes: int, number: str) -> Array | None:
        """The tensor of an answer to `number`, not to be written to; None where no answer was learned that differs in nothing but id and numbers."""
        if json_bytes == ALL_JSON or json_bytes > _MOST_HEAD_BYTES:
            return None
        before, _, after = body[:json_bytes].partition(number.encode("ascii"))
        layout = self._layouts.get((before, after))
        if layout is None or len(body) != json_bytes + layout.size:
            return None
        return np.ndarray(layout.shape, layout.dtype, body[json_bytes:])

    def learn(self, body: bytes, json_bytes: int, number: str, values: Array) -> None:
        """Take a good answer to `number`, that of `values` and nothing else, for a model of what will come."""
        if json_bytes == ALL_JSON or json_bytes > _MOST_HEAD_BYTES or len(body) != json_bytes + values.nbytes:
            return
        head, name = body[:json_bytes], number.encode("ascii")
        before, _, after = head.partition(name)
        # Else what stands here could be another text, and the id stand elsewhere, or be written with an escape.
        if head.count(name) == 1 and b"\\" not in head:
            _keep(self._layouts, (before, after), _Layout(values.dtype, values.shape, values.nbytes))


def _keep(known: dict[Any, Any], key: Any, value: object) -> None:
    if len(known) >= _MOST_FORMS:
        known.clear()
    known[key] = value
