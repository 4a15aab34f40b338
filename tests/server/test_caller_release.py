"""Release policies by caller through the whole service: plain and sealed, mixed in one batch, and in the metadata."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from tests.models import CLASSES, images
from tests.serving import Bundles

from garrison.config import CallerConfig, Config, ServerConfig, load_config
from garrison.enclave.quotes.sim import SimQuoter
from garrison.enclave.service import Service
from garrison.errors import ConfigError, GuardError
from garrison.protocol.messages import Ask
from garrison.protocol.oip_client import encode_request
from garrison.protocol.sealed import RequestHead, read_answer, seal_request
from garrison.server.auth import add_key
from garrison.server.root import assemble, background

POLICIES: dict[str, dict[str, Any]] = {
    "*": {"release": "labels"},
    "partner": {"release": "full"},
    "shop": {"release": "top-k", "k": 2, "decimals": 1},
}
LABELS = {"mode": "labels"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return file, {name: add_key(file, name) for name in ("partner", "shop", "stranger")}


def config(
    keys: tuple[Path, dict[str, str]], policies: dict[str, dict[str, Any]] | None = None, **server: Any
) -> Config:
    callers = msgspec.convert(POLICIES if policies is None else policies, dict[str, CallerConfig])
    return Config(server=ServerConfig(port=0, isolation="none", keys=str(keys[0]), **server), callers=callers)


@pytest.fixture(scope="module")
def url(bundles: Bundles, keys: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = str(tmp_path_factory.mktemp("state"))
    with background(assemble(config(keys, state=state), bundles.paths("mlp-1"), [bundles.owner.public])) as where:
        yield where


def outputs(url: str, key: str) -> dict[str, list[int]]:
    body, _ = encode_request({"image": images(2)}, binary=False)
    answer = httpx.post(f"{url}/v2/models/mlp/infer", content=body, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["shape"] for output in answer.json()["outputs"]}


def test_each_caller_gets_its_own(url: str, keys: tuple[Path, dict[str, str]]) -> None:
    assert outputs(url, keys[1]["partner"]) == {"probabilities": [2, CLASSES]}
    assert outputs(url, keys[1]["shop"]) == {"classes": [2, 2], "probabilities": [2, 2]}
    assert outputs(url, keys[1]["stranger"]) == {"classes": [2, 1]}


def test_the_metadata_is_the_callers(url: str, keys: tuple[Path, dict[str, str]]) -> None:
    found = {}
    for name, key in keys[1].items():
        for path in ("/v2/models/mlp", "/v2/models/mlp/versions/1"):
            page = httpx.get(url + path, headers={"authorization": f"Bearer {key}"}).json()
            found[name] = [output["name"] for output in page["outputs"]]
    assert found == {"partner": ["probabilities"], "shop": ["classes", "probabilities"], "stranger": ["classes"]}


def test_an_output_that_a_caller_does_not_get_cannot_be_asked_for(url: str, keys: tuple[Path, dict[str, str]]) -> None:
    body, _ = encode_request({"image": images(1)}, binary=False)
    question = json.loads(body) | {"outputs": [{"name": "probabilities"}]}
    headers = {"authorization": f"Bearer {keys[1]['stranger']}"}
    answer = httpx.post(f"{url}/v2/models/mlp/infer", json=question, headers=headers)
    assert (answer.status_code, "classes" in answer.json()["error"]) == (400, True)


def ask(caller: str, rows: int, seed: int) -> Ask:
    body, length = encode_request({"image": images(rows, seed=seed)}, binary=False)
    return Ask(caller, -1, body, length, "")


@pytest.mark.parametrize("form", ["graph", "numpy"])
def test_one_batch_of_many_policies(bundles: Bundles, form: str) -> None:
    """Each answer is what the same question gets alone, and a stricter one is made of the looser."""
    sealed = bundles.sealed["mlp-1"]
    policies: dict[str, dict[str, Any]] = {"shop": {"mode": "top-k", "k": 2}, "*": LABELS, "partner": {"mode": "full"}}
    tightened: dict[str, dict[str, Any]] = {} if form == "graph" else {"release": {"mode": "rounded", "decimals": 6}}
    if form == "numpy":
        policies["partner"] = {"mode": "rounded"}
    service = Service(sealed.verified(), key=sealed.key, callers=policies, tightened=tightened)
    assert service.guard_form.startswith(form)
    asks = [ask(name, 1 + i % 3, i) for i, name in enumerate(["partner", "shop", "a", "partner", "b", "shop", "shop"])]
    together = [json.loads(reply.body)["outputs"] for reply in service.answer(asks)]
    alone = [json.loads(service.answer([one])[0].body)["outputs"] for one in asks]
    full = [json.loads(service.answer([Ask("partner", -1, a.body, -1, "")])[0].body)["outputs"][0] for a in asks]
    assert together == alone
    for said, known in zip(together, full, strict=True):
        p = np.array(known["data"]).reshape(known["shape"])
        classes = next((np.array(o["data"]).reshape(o["shape"]) for o in said if o["name"] == "classes"), None)
        if classes is not None:
            np.testing.assert_array_equal(classes, np.argsort(-p, axis=1, kind="stable")[:, : classes.shape[1]])
    assert [len(said) for said in together] == [1, 2, 1, 1, 1, 2, 2]


def test_sealed_requests_too(bundles: Bundles) -> None:
    """The host cannot read which policy was used from the answer; the caller's key id stands inside and outside."""
    sealed, answer_key = bundles.sealed["mlp-1"], bytes(range(32))
    service = Service(sealed.verified(), key=sealed.key, quoter=SimQuoter(), callers={"shop": LABELS})
    keys = service.evidence(bytes(32), {}).keys
    body, length = encode_request({"image": images(2)}, binary=False)

    def envelope(caller: str) -> Ask:
        head = RequestHead(caller, length, "n", answer_key, int(time.time()))
        return Ask(caller, -1, seal_request(keys.suite, keys.hpke, keys.epoch, head, body), sealed=True)

    said = {}
    for caller, reply in zip(("shop", "partner"), service.answer([envelope("shop"), envelope("partner")]), strict=True):
        head, answer = read_answer(answer_key, reply.body)
        assert head.code == ""
        said[caller] = [output["name"] for output in json.loads(answer)["outputs"]]
    assert said == {"shop": ["classes"], "partner": ["probabilities"]}


def test_within_the_process_too(bundles: Bundles) -> None:
    sealed = bundles.sealed["mlp-1"]
    service = Service(sealed.verified(), key=sealed.key, callers={"*": LABELS})
    assert set(service.predict({"image": images(2)}, caller="anyone").outputs) == {"classes"}


def test_a_looser_policy_does_not_start(bundles: Bundles, keys: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    settings = config(keys, {"shop": {"release": "full"}}, state=str(tmp_path))
    with pytest.raises(GuardError, match=r"callers\.shop: .*tighten"):
        assemble(settings, bundles.paths("plain"), [bundles.owner.public])


def test_a_caller_who_cannot_come_is_an_error(
    bundles: Bundles, keys: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    for server, says in ((config(keys, {"shpo": LABELS_CHOICE}), "partner, shop"), (NO_KEYS, "addresses")):
        with pytest.raises(ConfigError, match=rf"callers\.shpo: .*{says}"):
            assemble(server, bundles.paths("mlp-1"), [bundles.owner.public])


LABELS_CHOICE = {"release": "labels"}
NO_KEYS = Config(server=ServerConfig(port=0, isolation="none"), callers={"shpo": CallerConfig(release="labels")})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[callers.shop]\nrelaese = "labels"', r"callers\.shop\.relaese.*did you mean callers\.shop\.release"),
        ("[callers.shop]\nk = 2", "release"),
        ('[callers.shop]\nrelease = "label"', "label"),
        ('[callers]\nshop = "labels"', "callers"),
    ],
)
def test_settings_are_strict(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "garrison.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_config(file)
