"""Refusals load nothing new once an enclave is confined: each kind is sent to a real, confined worker."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.models import BOUNDS, RELEASE, SCORE, misinform, seal_mlp
from tests.runtime.networks import SealedNetwork, rows_of, seal_named

from garrison.bundle.manifest import InputSpec
from garrison.enclave.drill import drill
from garrison.enclave.host import Enclave, Launch, launch
from garrison.errors import IsolationError
from garrison.limits import DEFAULT_LIMITS
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.protocol.oip_client import encode_request
from garrison.protocol.sealed import RequestHead, read_answer, seal_request
from garrison.protocol.sealed_session import Bound, Offer, SessionHead, seal_within
from garrison.types import Array

KEY = bytes(range(32))
X = InputSpec(name="x", datatype="FP32", shape=(4,), minimum=0.0, maximum=1.0)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> SealedNetwork:
    return seal_named("MLP", tmp_path_factory.mktemp("network") / "bundle")


@pytest.fixture(scope="module")
def confined(network: SealedNetwork) -> Iterator[Enclave]:
    size = sum(chunk.size for chunk in network.bundle.manifest.graph.chunks)
    started = launch("process", Launch(network.path, [network.owner.public], parameter_memory=size * 2 // 3))
    assert started.card.parameters == "on demand"
    yield started
    started.stop()


def bodies(x: Array) -> dict[str, tuple[bytes, int, str]]:
    """By kind: a request's body, the length of its JSON part, and the code that it must be answered with."""
    good, head = encode_request({"x": x})
    many = json.loads(good[:head])
    many["inputs"][0]["shape"][0] = DEFAULT_LIMITS.request_rows + 1
    too_many = json.dumps(many).encode()
    wrong = {
        "not a number": encode_request({"x": np.full_like(x, np.nan)}),
        "infinite": encode_request({"x": np.full_like(x, np.inf)}),
        "out of range": encode_request({"x": np.full_like(x, 1e30)}),
        "another type": encode_request({"x": x.astype(np.float64)}),
        "another shape": encode_request({"x": x[:, None]}),
        "another name": encode_request({"y": x}),
        "no rows": encode_request({"x": x[:0]}),
        "another output": encode_request({"x": x}, outputs=["y"]),
    }
    return {
        "good": (good, head, ""),
        **{kind: (*found, "request.input") for kind, found in wrong.items()},
        "in JSON": (*encode_request({"x": x}, binary=False), ""),
        "not JSON": (b"{", -1, "request.malformed"),
        "nothing": (b"", -1, "request.malformed"),
        "cut off": (good[:-1], head, "request.malformed"),
        "too many rows": (too_many, len(too_many), "request.too_large"),
        "long id": (*encode_request({"x": x}, request_id="x" * 1000), "request.too_large"),
        "good again": (good, head, ""),
    }


def test_each_kind_of_refusal_is_told_and_the_worker_lives(confined: Enclave, network: SealedNetwork) -> None:
    key = confined.card.public_key
    for kind, (body, json_bytes, code) in bodies(rows_of(network.shape, 2)).items():
        (reply,) = confined.call([Ask("alice", -1, body, json_bytes)])
        assert (kind, reply.code) == (kind, code), reply.detail
    assert confined.ready
    assert confined.card.public_key == key, "the same worker"


def test_each_kind_of_refusal_under_seal(confined: Enclave, network: SealedNetwork) -> None:
    keys = confined.evidence(bytes(32)).keys
    key = confined.card.public_key

    def sealed(body: bytes, json_bytes: int, epoch: int = keys.epoch, **inside: object) -> bytes:
        head = RequestHead("alice", json_bytes, "n", KEY, int(time.time()))
        return seal_request(keys.suite, keys.hpke, epoch, msgspec.structs.replace(head, **inside), body)

    def ask(envelope: bytes) -> Reply:
        (reply,) = confined.call([Ask("alice", -1, envelope, sealed=True)])
        return reply

    found = bodies(rows_of(network.shape, 2))
    for kind, (body, json_bytes, code) in found.items():
        head, _ = read_answer(KEY, ask(sealed(body, json_bytes)).body)
        assert (kind, head.code) == (kind, code), head.detail
    body, json_bytes, _ = found["good"]
    once = sealed(body, json_bytes)
    assert [ask(once).code, ask(once).code] == ["", "request.replayed"]
    for other in ({"caller": "bob"}, {"time": 0}, {"nonce": "\n"}):
        head, _ = read_answer(KEY, ask(sealed(body, json_bytes, **other)).body)
        assert head.code == "request.sealed"
    assert ask(sealed(body, json_bytes, epoch=keys.epoch + 1)).code == "request.stale_key"
    changed = sealed(body, json_bytes)
    for envelope in (b"", b"junk", b"junk" * 99, changed[:40], changed[:-1] + bytes([changed[-1] ^ 1])):
        assert ask(envelope).code == "request.sealed"
    assert ask(sealed(body, json_bytes, answer_key=b"short")).code == "request.sealed"
    offer = Offer(keys.suite)
    first = sealed(body, json_bytes, offer=offer.content)
    grant = read_answer(KEY, ask(first).body)[0].grant
    assert grant is not None
    card = confined.card
    within = offer.take(grant, first, Bound(keys.signing, card.manifest_digest, card.guard_digest, "alice"))
    for counter, (kind, (body, json_bytes, code)) in enumerate(found.items()):
        later, answer_key = seal_within(
            within, grant.session, counter, SessionHead(json_bytes, "n", int(time.time())), body
        )
        head, _ = read_answer(answer_key, ask(later).body)
        assert (kind, head.code) == (kind, code), head.detail
    assert ask(later).code == "request.replayed"
    assert ask(later[:4] + bytes(16) + later[20:]).code == "request.stale_session"
    assert ask(later[:30]).code == "request.sealed"
    assert confined.card.public_key == key, "the same worker"


LOADED = """
import sys
from pathlib import Path
from garrison.bundle.reader import verify
from garrison.crypto.owner import OwnerPublicKey
from garrison.enclave.quotes.sim import SimQuoter
from garrison.enclave.service import Service
from garrison.enclave.worker import _warm_up
_warm_up()
owner, key = OwnerPublicKey.from_pem(bytes.fromhex(sys.argv[2])), bytes.fromhex(sys.argv[3])
service = Service(verify(Path(sys.argv[1]), [owner]), key=key, quoter=SimQuoter())
service.drill()
before = set(sys.modules)
service.drill()
print(*sorted(set(sys.modules) - before))
"""


def test_the_second_drill_loads_nothing(tmp_path: Path) -> None:
    sealed = seal_mlp(tmp_path / "b", (BOUNDS, SCORE, misinform(0.6), RELEASE))
    words = [sys.executable, "-c", LOADED, str(sealed.path), sealed.owner.public.pem.hex(), sealed.key.hex()]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.split() == []


def test_a_service_that_fails_on_a_drill_does_not_start() -> None:
    asked: list[Ask] = []

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        asked.extend(asks)
        code = "internal" if len(asked) == 20 else ""
        return [Reply(code, "", b"", -1, b"", Outcome(code, 0)) for _ in asks]

    with pytest.raises(IsolationError, match="fails on a request of its own"):
        drill(answer, (X,), DEFAULT_LIMITS)
    asked.clear()
    drill(lambda asks: [Reply("", "", b"", -1, b"", Outcome("ok", 0)) for _ in asks], (X,), DEFAULT_LIMITS)


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT8", "BOOL"])
def test_every_datatype_can_be_drilled(datatype: str) -> None:
    spec = msgspec.structs.replace(X, datatype=datatype)
    kinds: list[bytes] = []

    def answer(asks: Sequence[Ask]) -> list[Reply]:
        kinds.extend(ask.body for ask in asks)
        return [Reply("", "", b"", -1, b"", Outcome("ok", 0)) for _ in asks]

    drill(answer, (spec,), DEFAULT_LIMITS)
    assert len(kinds) > 20
