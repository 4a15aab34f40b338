"""The OpenAPI document says what the server does: schemathesis tries it on a running one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from tests.models import images
from tests.serving import Bundles, Served, serve

from garrison.protocol.oip_client import encode_request
from garrison.server.auth import add_key
from garrison.server.openapi import OPENAPI_PATH, openapi_document

MOST_SECONDS = 150


@pytest.fixture(scope="module")
def keyed(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    folder = tmp_path_factory.mktemp("openapi")
    keys = folder / "keys.json"
    key = add_key(keys, "ada")
    with serve(bundles, "mlp-1", "plain", state=folder, keys=str(keys)) as served:
        yield served, key


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_it_is_open_to_all_and_names_no_model(keyed: tuple[Served, str]) -> None:
    found = httpx.get(keyed[0].url + OPENAPI_PATH)
    assert found.status_code == 200
    assert found.json() == json.loads(json.dumps(openapi_document()))
    assert "mlp" not in found.text
    schemas = found.json()["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in references(found.json())} <= set(schemas)


def test_answers_are_as_it_says(keyed: tuple[Served, str]) -> None:
    """Each page, and an answer, against the schema of its path."""
    served, key = keyed
    document = openapi_document()
    headers = {"authorization": f"Bearer {key}"}
    for path, said in document["paths"].items():
        if "get" not in said or "attestation" in path:
            continue
        found = httpx.get(served.url + path.format(model="mlp", version="1"), headers=headers)
        assert found.status_code == 200, path
        check(found.json(), said["get"], 200)
    body, _ = encode_request({"image": images(2)}, binary=False)
    headers["content-type"] = "application/json"
    said = document["paths"]["/v2/models/{model}/infer"]["post"]
    check(httpx.post(f"{served.url}/v2/models/mlp/infer", content=body, headers=headers).json(), said, 200)
    check(httpx.post(f"{served.url}/v2/models/mlp/infer", content=b"{}", headers=headers).json(), said, 400)
    check(json.loads(body), {"responses": {"200": said["requestBody"]}}, 200)
    with pytest.raises(jsonschema.ValidationError):
        check({"error": 5}, said, 400)


def check(answer: Any, operation: Any, status: int) -> None:
    schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
    whole = schema | {"components": openapi_document()["components"]}
    jsonschema.Draft202012Validator(whole).validate(answer)


@pytest.mark.slow
def test_schemathesis_finds_nothing(keyed: tuple[Served, str], tmp_path: Path) -> None:
    """All of its checks but one: that a request is good cannot be told by a schema that knows no model (shapes, ranges)."""
    served, key = keyed
    document = json.loads(json.dumps(openapi_document()))
    known = {
        "model": ["mlp", "plain", "nope"],
        "version": ["1", "9"],
    }  # else nearly all of its requests would end at 404
    for path in document["paths"].values():
        for parameter in path.get("parameters", ()):
            parameter["schema"] = {"enum": known[parameter["name"]]}
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    words = [sys.executable, "-m", "schemathesis.cli", "run", str(file), "--url", served.url, "--checks", "all"]
    words += [
        "--exclude-checks",
        "positive_data_acceptance",
        "--max-examples",
        "40",
        "--phases",
        "coverage,fuzzing",
        "--seed",
        "1",
    ]
    words += ["-H", f"Authorization: Bearer {key}", "--generation-database", "none"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=MOST_SECONDS, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert httpx.get(f"{served.url}/v2/health/ready").status_code == 200
