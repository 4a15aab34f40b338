"""Rows of several requests as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from garrison.enclave.replies import Opened
from garrison.enclave.toll import Toll
from garrison.types import Batch, Caller


def gather(opened: Sequence[Opened], toll: Toll | None, *, distinct: bool) -> Batch:
    """The batch of requests that could be read, at least one.

    Args:
        toll: checks their proofs of work, where any are asked for.
        distinct: whether different rows are limited.
    """
    inputs = opened[0].request.inputs
    if len(opened) > 1:
        inputs = {name: np.concatenate([item.request.inputs[name] for item in opened]) for name in inputs}
    return Batch(
        inputs=inputs,
        request_of_row=_request_of_row([item.request.rows for item in opened]),
        callers=tuple(_caller(item.ask.caller) for item in opened),
        remaining=tuple(item.ask.remaining for item in opened),
        fresh=tuple(item.ask.fresh for item in opened) if distinct else (),
        worked=() if toll is None else tuple(toll.rows(i.ask.work, i.ask.caller, i.ask.body) for i in opened),
    )


def _request_of_row(rows: list[int]) -> npt.NDArray[np.intp]:
    found = _numbers(len(rows))
    return found if max(rows) == 1 else np.repeat(found, rows)


@cache
def _numbers(requests: int) -> npt.NDArray[np.intp]:
    """0, 1, ...; the same array each time, and so not to be written to. A batch has a few thousand requests at most."""
    found = np.arange(requests, dtype=np.intp)
    found.flags.writeable = False
    return found


@lru_cache(maxsize=4096)
def _caller(name: str) -> Caller:
    return Caller(name)
