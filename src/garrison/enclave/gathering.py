"""Rows of several requests as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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
    requests = [item.request for item in opened]
    names = requests[0].inputs
    return Batch(
        inputs={
            n: requests[0].inputs[n] if len(requests) == 1 else np.concatenate([r.inputs[n] for r in requests])
            for n in names
        },
        request_of_row=_request_of_row([r.rows for r in requests]),
        callers=tuple(_caller(item.ask.caller) for item in opened),
        remaining=tuple(item.ask.remaining for item in opened),
        fresh=tuple(item.ask.fresh for item in opened) if distinct else (),
        worked=() if toll is None else tuple(toll.rows(i.ask.work, i.ask.caller, i.ask.body) for i in opened),
    )


def _request_of_row(rows: list[int]) -> npt.NDArray[np.intp]:
    found = np.arange(len(rows), dtype=np.intp)
    return found if max(rows) == 1 else np.repeat(found, rows)


@lru_cache(maxsize=4096)
def _caller(name: str) -> Caller:
    return Caller(name)
