"""The client against a real server."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.models import CLASSES, LABELS, RELEASE, SCORE, images, seal_mlp
from tests.serving import Bundles, Served, serve

from garrison.client import AsyncClient, Client
from garrison.client import http as http_client
from garrison.enclave.service import Service
from garrison.errors import (
    AuthenticationError,
    BudgetExhaustedError,
    ConfigError,
    InputError,
    NotFoundError,
    ProofError,
    RefusedError,
    ServiceError,
    UnavailableError,
)
from garrison.protocol.oip_client import encode_request
from garrison.server.auth import add_key
from garrison.types import DefenseSpec


def test_predictions_are_those_of_the_service(served: Served, bundles: Bundles) -> None:
    x = images(70)
    for version in (1, 2):
        sealed = bundles.sealed[f"mlp-{version}"]
        expected = Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]
        with Client(served.url, model="mlp", version=version) as client:
            for binary in (True, False):
                found = client.predict(x, rows_a_request=32, binary=binary)
                assert found.probabilities is not None
                np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
                np.testing.assert_array_equal(found.classes, expected.argmax(axis=1))
                assert (found.rows, found.model, found.model_version) == (70, "mlp", str(version))
                assert found.proved
                assert found.labels == LABELS
                assert found.class_labels[0] == LABELS[expected[0].argmax()]
                assert not found.uncertain.any()


def test_the_newest_version_answers_where_none_is_named(served: Served) -> None:
    with Client(served.url, model="mlp") as client:
        assert client.predict(images(1)).model_version == "2"


def test_labels_only(served: Served) -> None:
    with Client(served.url, model="plain") as client:
        found = client.predict(images(4))
    assert found.outputs.keys() == {"classes"}
    assert (found.probabilities, found.first_values) == (None, None)
    assert found.classes.shape == (4,)


def test_the_asynchronous_client_says_the_same(served: Served) -> None:
    x = images(9)

    async def main() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        async with AsyncClient(served.url, model="mlp") as client:
            many = await asyncio.gather(*(client.predict(x) for _ in range(8)))
            assert len(await client.index()) == 3
            assert (await client.metadata()).name == "mlp"
        assert all(found.proved for found in many)
        return many[0].classes

    with Client(served.url, model="mlp") as client:
        np.testing.assert_array_equal(asyncio.run(main()), client.predict(x).classes)


def test_inputs_may_be_named_and_are_cast_without_loss_of_meaning(served: Served) -> None:
    x = images(2)
    with Client(served.url, model="mlp") as client:
        expected = client.predict(x).classes
        np.testing.assert_array_equal(client.predict({"image": x}).classes, expected)
        np.testing.assert_array_equal(client.predict(x.astype(np.float64)).classes, expected)
        np.testing.assert_array_equal(client.predict(np.zeros((1, 1, 8, 8), np.uint8)).classes.shape, (1,))
        with pytest.raises(InputError, match="complex128 cannot become float32"):
            client.predict(x.astype(np.complex128))
        with pytest.raises(InputError, match=r"expected shape \[rows, 1, 8, 8\], found \[1, 8, 8\]"):
            client.predict(x[0])
        with pytest.raises(InputError, match="at least 1"):
            client.predict(x[:0])
        with pytest.raises(InputError, match="expected the inputs 'image', found 'picture'"):
            client.predict({"picture": x})
        with pytest.raises(InputError, match="this model gives 'probabilities'"):
            client.predict(x, outputs=("logits",))


def test_errors_of_the_server_come_back_as_their_types(served: Served) -> None:
    with Client(served.url) as client, pytest.raises(NotFoundError, match="2 models; name one of mlp, plain"):
        client.predict(images(1))
    with Client(served.url, model="nope") as client, pytest.raises(NotFoundError, match="unknown model 'nope'"):
        client.metadata()
    with Client(served.url, model="mlp", version=9) as client, pytest.raises(NotFoundError):
        client.metadata()
    with Client(served.url, model="mlp") as client, pytest.raises(InputError, match="outside the range"):
        client.predict(images(1) * 9)


def test_keys_budgets_and_refusals(bundles: Bundles, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.json", "alice")
    strict = seal_mlp(
        tmp_path / "strict",
        (SCORE, DefenseSpec(name="reject-option", parameters={"tau": 0.999999, "action": "refuse"}), RELEASE),
        name="strict",
        owner=bundles.owner,
    )
    bundles.sealed["strict"] = strict
    with serve(bundles, "metered", "strict", state=tmp_path / "state", keys=str(tmp_path / "keys.json")) as running:
        with Client(running.url, model="metered") as client, pytest.raises(AuthenticationError):
            client.predict(images(1))
        with Client(running.url, model="metered", api_key=key) as client:
            assert client.predict(images(60)).rows == 60
            with pytest.raises(BudgetExhaustedError, match="100 rows"):
                client.predict(images(60))
            assert client.predict(images(40)).rows == 40
        with Client(running.url, model="strict", api_key=key) as client, pytest.raises(RefusedError) as caught:
            client.predict(images(20))
        assert str(caught.value) == "the service refuses this request"


def test_uncertain_rows_keep_their_places_over_several_requests(bundles: Bundles, tmp_path: Path) -> None:
    x = images(50)
    expected = Service(bundles.sealed["reserved"].verified()).predict({"image": x}).uncertain
    with serve(bundles, "reserved", state=tmp_path) as running, Client(running.url) as client:
        np.testing.assert_array_equal(client.predict(x, rows_a_request=7).uncertain, expected)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_a_url_that_is_none_is_told(url: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL like"):
        Client(url)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with Client("http://127.0.0.1:1", attempts=2) as client, pytest.raises(UnavailableError, match="after 2 attempts"):
        client.metadata()


class _Meddler(http.server.BaseHTTPRequestHandler):
    """A man in the middle: hands everything on, and changes what it is told to change."""

    upstream = ""
    change = "nothing"
    last: tuple[bytes, dict[str, str]] | None = None

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        sent = {k: v for k, v in self.headers.items() if k.lower() not in {"host", "content-length"}}
        answer = httpx.request(self.command, self.upstream + self.path, headers=sent, content=body)
        content = answer.content
        headers = {k: v for k, v in answer.headers.items() if k.startswith(("garrison", "inference", "content-type"))}
        if self.path.endswith("/infer"):
            content, headers = self._meddle(content, headers)
        self.send_response(answer.status_code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _pass_on  # noqa: N815  names that the standard library asks for

    def _meddle(self, content: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        kind = type(self)
        match kind.change:
            case "flip":
                # The last bit of the last number: whole rows are still probabilities, which every client looks at.
                content = content[:-4] + bytes([content[-4] ^ 1]) + content[-3:]
            case "strip":
                headers.pop("garrison-proof")
            case "garble":
                headers["garrison-proof"] = "AAAA" + headers["garrison-proof"][4:]
            case "no base64":
                headers["garrison-proof"] = "?"
            case "replay":
                if kind.last is not None:
                    return kind.last
                kind.last = (content, headers)
        return content, headers

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def meddler(url: str, change: str) -> Iterator[str]:
    handler = type("Handler", (_Meddler,), {"upstream": url, "change": change})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("change", ["flip", "strip", "garble", "no base64", "replay"])
def test_an_answer_that_was_changed_on_the_way_is_noticed(served: Served, change: str) -> None:
    with meddler(served.url, change) as url, Client(url, model="mlp") as client:
        if change == "replay":
            assert client.predict(images(2)).proved
        with pytest.raises(ProofError):
            client.predict(images(2))


@pytest.mark.parametrize("change", ["flip", "strip", "garble", "replay"])
def test_without_the_check_it_is_not_noticed(served: Served, change: str) -> None:
    """The control: the same changes, with a client that does not check, go unseen."""
    with meddler(served.url, change) as url, Client(url, model="mlp", verify=False) as client:
        for _ in range(2):
            found = client.predict(images(2))
            assert not found.proved
            assert found.outputs["probabilities"].shape == (2, CLASSES)


def test_nothing_is_wrong_with_the_man_in_the_middle_who_only_hands_on(served: Served) -> None:
    with meddler(served.url, "nothing") as url, Client(url, model="mlp") as client:
        assert client.predict(images(2)).proved


def test_a_server_of_another_make_makes_no_sense(tmp_path: Path) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with Client(url, model="m") as client, pytest.raises(ServiceError, match="metadata cannot be read"):
            client.metadata()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    monkeypatch.setattr(http_client, "MOST_ANSWER_BYTES", 200)
    with Client(served.url, model="mlp") as client, pytest.raises(ServiceError, match="more than 200 bytes"):
        client.metadata()


def test_a_plain_client_goes_on_with_a_service_that_was_started_anew(bundles: Bundles, tmp_path: Path) -> None:
    """Another start, another signing key; the same port."""
    with serve(bundles, "mlp-1", state=tmp_path) as first, Client(first.url) as client:
        assert client.predict(images(2)).proved
        known = client._core._key
    with serve(bundles, "mlp-1", state=tmp_path) as second, Client(second.url) as fresh:
        fresh._core._key = known
        assert fresh.predict(images(2)).proved
        assert fresh._core._key != known


@pytest.mark.parametrize("name", ["garrison-nonce", "inference-header-content-length"])
@pytest.mark.parametrize("values", [[b"\xe9"], [b"1", b"2"]])
def test_a_header_that_cannot_be_read_does_not_count_as_absent(served: Served, name: str, values: list[bytes]) -> None:
    body, _ = encode_request({"image": images(1)}, binary=False)
    headers = [(name.encode(), value) for value in values]
    answer = httpx.post(f"{served.url}/v2/models/mlp/infer", content=body, headers=headers)
    assert answer.status_code == 400
    assert name in answer.json()["error"]
