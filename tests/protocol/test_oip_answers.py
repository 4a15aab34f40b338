"""What is written for a batch is what `encode_response` writes for each request alone."""

from __future__ import annotations

import numpy as np
import pytest

from garrison.protocol.oip import InferRequest, WantedOutput, encode_response
from garrison.protocol.oip_answers import AnswerWriter
from garrison.types import Released

ROWS = (1, 3, 1, 2, 1)
WANTED = (
    (),
    (WantedOutput("classes", None),),
    (WantedOutput("probabilities", False), WantedOutput("classes", True)),
    (WantedOutput("probabilities", True),),
)


def released(*, uncertain: bool = False, seed: int = 0) -> Released:
    rng, rows = np.random.default_rng(seed), sum(ROWS)
    wide = rng.random((rows, 8), dtype=np.float32)
    marks = np.zeros(rows, dtype=np.bool_)
    marks[2] = uncertain
    return Released({"probabilities": wide[:, ::2], "classes": rng.integers(0, 4, (rows, 1))}, marks)


@pytest.mark.parametrize("uncertain", [False, True])
@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("name", ["", "mine", 'a "b" \\ \n é'])
def test_each_answer_is_its_own(name: str, wanted: tuple[WantedOutput, ...], default: bool, uncertain: bool) -> None:
    writer = AnswerWriter("m", "7")
    for seed in range(2):  # the second batch goes by what was remembered of the first
        found = released(uncertain=uncertain, seed=seed)
        batch, start = writer.batch(found), 0
        for rows in ROWS:
            request = InferRequest(name, {}, rows, wanted, default)
            mine = slice(start, start + rows)
            alone = Released({n: x[mine] for n, x in found.outputs.items()}, found.uncertain[mine])
            assert batch.write(request, start) == encode_response(request, alone, "m", "7")
            start += rows


def test_what_is_remembered_of_an_answer_holds_for_others_ids() -> None:
    writer = AnswerWriter("m", "7")
    found = Released({"probabilities": np.ones((1, 4), np.float32)}, np.zeros(1, np.bool_))
    for name in ("first", "", "second", '"', ""):
        request = InferRequest(name, {}, 1, (), True)
        assert writer.batch(found).write(request, 0) == encode_response(request, found, "m", "7")


def test_other_outputs_get_another_json_part() -> None:
    writer, request = AnswerWriter("m", "7"), InferRequest("", {}, 1, (), True)
    for shape, dtype in (((1, 2), np.float32), ((1, 3), np.float32), ((1, 3), np.float64)):
        found = Released({"probabilities": np.zeros(shape, dtype)}, np.zeros(1, np.bool_))
        assert writer.batch(found).write(request, 0) == encode_response(request, found, "m", "7")
