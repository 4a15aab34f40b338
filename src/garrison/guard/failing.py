"""What is done where a defense raises on a batch: it is run again request by request, and refuses the requests on which it raises again."""

from __future__ import annotations

import logging

import numpy as np

from garrison.guard.base import RecordDefense, ReleaseDefense, RowDefense, Verdict, View
from garrison.guard.parts import narrow, stitch
from garrison.types import Released

logger = logging.getLogger(__name__)

DEFENSE_FAILED = "guard.defense_failed"

Codes = list[str | None]
"""One entry a request: why it is refused, or None; written to."""


def judge_by_request(defense: RowDefense, view: View, refused: Codes, refuser: dict[int, str]) -> Verdict:
    """The verdict of a defense that has just raised over all rows: request by request, refusing those on which it raises again."""
    requests = view.batch.requests
    logger.exception("defense %s raised on a batch of %d requests; running it by request", defense.name, requests)
    parts = [_judge_request(defense, view, request) for request in range(requests)]
    for request, part in enumerate(parts):
        if part is None and refused[request] is None:
            refused[request], refuser[request] = DEFENSE_FAILED, defense.name
    return stitch(defense, view, parts)


def _judge_request(defense: RowDefense, view: View, request: int) -> Verdict | None:
    try:
        return defense(narrow(view, np.flatnonzero(view.batch.request_of_row == request), (request,)))
    except Exception:  # noqa: BLE001  see judge_by_request
        return None


def record(defense: RecordDefense, view: View, released: Released, refused: Codes) -> None:
    """Record all rows; where that raises, request by request, refusing those on which it raises again. What it counted before it raised
    is counted twice then."""
    try:
        defense(view, released)
        return
    except Exception:
        logger.exception("defense %s raised on %d requests; running it by request", defense.name, view.batch.requests)
    for request in range(view.batch.requests):
        rows = np.flatnonzero(view.batch.request_of_row == request)
        part = released
        if released.outputs:
            part = Released({name: x[rows] for name, x in released.outputs.items()}, released.uncertain[rows])
        try:
            defense(narrow(view, rows, (request,)), part)
        except Exception:  # noqa: BLE001  see judge_by_request
            refused[request] = refused[request] or DEFENSE_FAILED


def release(defense: ReleaseDefense, view: View, refused: Codes) -> Released:
    """What may leave; nothing where the policy raises, and then every request is refused."""
    try:
        return defense(view)
    except Exception:
        logger.exception("release policy raised on a batch of %d requests; refusing all of them", view.batch.requests)
    refused[:] = [code or DEFENSE_FAILED for code in refused]
    return Released({}, np.zeros(view.batch.rows, dtype=np.bool_))
