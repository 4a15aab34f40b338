"""kill -9 in the middle of the load: each answer that a client got stands in the ledger, once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.models import images
from tests.serving import Bundles

from garrison.client import Client
from garrison.errors import GarrisonError
from garrison.protocol.statement import read_proof
from garrison.server.ledger.finding import find_answer, parse_proof
from garrison.server.ledger.reader import answers_of
from garrison.server.ledger.recovery import recover
from garrison.server.ledger.trust import KeyTrust
from garrison.server.ledger.verify import verify_ledger

CLIENTS = 6
ARM = Path(__file__).with_name("arm.py")


def answers_before_the_kill(way: str, bundles: Bundles, folder: Path, least: int) -> list[bytes]:
    """The proofs of all answers that clients got from a server that is killed under them."""
    words = [
        sys.executable,
        str(ARM),
        way,
        str(bundles.sealed["mlp-1"].path),
        str(bundles.folder / "owner.pub"),
        str(folder),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GARRISON_SECRET": ""}
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    got: list[bytes] = []

    def ask(url: str, number: int) -> None:
        with Client(url, model="mlp", attempts=1) as client:
            x = images(1, seed=number)
            try:
                while True:
                    got.extend(client.predict(x).proofs)
            except (GarrisonError, OSError):
                return

    try:
        url = (server.stdout.readline() if server.stdout else "").strip()
        assert url, "the server did not start"
        threads = [threading.Thread(target=ask, args=(url, k)) for k in range(CLIENTS)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while len(got) < least and time.monotonic() < end:
            time.sleep(0.005)
        server.kill()
        for thread in threads:
            thread.join()
    finally:
        server.kill()
        server.communicate()
    return got


def how_often(ledger: Path, proofs: list[bytes]) -> Counter[int]:
    """By how often an answer stands in the ledger, how many answers."""
    entries = Counter((row.entry.request, row.entry.answer, row.entry.nonce) for row in answers_of(ledger))
    said = (read_proof(proof)[1] for proof in proofs)
    return Counter(entries[(one.request, one.answer, one.nonce)] for one in said)


@pytest.mark.parametrize("least", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_each_answer_that_left_stands_in_the_ledger_once(bundles: Bundles, tmp_path: Path, least: int) -> None:
    proofs = answers_before_the_kill("durable", bundles, tmp_path, least)
    ledger = tmp_path / "l"
    assert len(proofs) >= least
    assert how_often(ledger, proofs) == {1: len(proofs)}
    (report,) = verify_ledger(ledger, KeyTrust(unsafe_any_key=True))
    assert report.problem == ""
    recover(ledger / "chain-000")  # and the next server goes on
    (row,) = find_answer(ledger, *parse_proof(proofs[-1]))
    assert row.entry.rows == 1


@pytest.mark.slow
def test_without_the_wait_answers_leave_that_are_nowhere(bundles: Bundles, tmp_path: Path) -> None:
    """The control: the same load and the same kill, answers released when their entries are handed over."""
    proofs = answers_before_the_kill("hasty", bundles, tmp_path, 40)
    assert how_often(tmp_path / "l", proofs)[0] > 0
