"""gRPC on a real port: an unmodified `tritonclient[grpc]`, and what it is not asked by honest clients."""

from __future__ import annotations

import asyncio
import binascii
import ctypes
import gc
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.fuzzing.rpc import recorded
from tests.models import CLASSES, images
from tests.server.pki import Authority
from tests.serving import Bundles, Served, serve
from tests.stalls import wait_until

from garrison.config import ServerConfig
from garrison.enclave.service import Service
from garrison.errors import ConfigError, ProofError
from garrison.limits import Limits
from garrison.protocol.statement import verify_answer
from garrison.server.admission import Admission
from garrison.server.auth import Authenticator, add_key
from garrison.server.grpc import make_grpc
from garrison.server.grpc.service import peer_of
from garrison.server.held import HeldBytes

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
pb = pytest.importorskip("tritonclient.grpc.service_pb2")

INFER = "/inference.GRPCInferenceService/ModelInfer"
SECONDS = 60


def address(served: Served) -> str:
    assert served.assembly.grpc is not None
    return served.assembly.grpc.address


@pytest.fixture(scope="module")
def running(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("grpc")
    limits = Limits(grpc_message_bytes=100_000)
    with serve(bundles, "mlp-1", "mlp-2", "plain", "metered", state=folder, limits=limits, grpc_port=0) as served:
        yield served


@pytest.fixture(scope="module")
def client(running: Served) -> Iterator[Any]:
    found = triton.InferenceServerClient(address(running))
    yield found
    found.close()


@pytest.fixture(scope="module")
def channel(running: Served) -> Iterator[Any]:
    with grpc.insecure_channel(address(running)) as found:
        yield found


def tensor(x: Any) -> Any:
    found = triton.InferInput("image", list(x.shape), "FP32")
    found.set_data_from_numpy(x)
    return found


def message(x: Any, model: str = "mlp", version: str = "1") -> bytes:
    found = pb.ModelInferRequest(model_name=model, model_version=version)
    one = found.inputs.add(name="image", datatype="FP32")
    one.shape.extend(x.shape)
    found.raw_input_contents.append(x.tobytes())
    data: bytes = found.SerializeToString()
    return data


def ask(
    channel: Any, data: bytes, *metadata: tuple[str, str], seconds: float = SECONDS
) -> tuple[bytes, dict[str, str]]:
    """The answer's bytes and its trailing metadata."""
    answer, call = channel.unary_unary(INFER).with_call(data, metadata=metadata, timeout=seconds)
    return answer, dict(call.trailing_metadata() or ())


def failure(channel: Any, data: bytes, *metadata: tuple[str, str], seconds: float = SECONDS) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, data, *metadata, seconds=seconds)
    return caught.value


def code(error: Any) -> str:
    return str(dict(error.trailing_metadata() or ()).get("garrison-code", ""))


def expected(bundles: Bundles, x: Any, name: str = "mlp-1") -> Any:
    sealed = bundles.sealed[name]
    return Service(sealed.verified(), key=sealed.key).predict({"image": x}).outputs["probabilities"]


def test_health_and_metadata(client: Any, channel: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mlp")
    assert client.is_model_ready("mlp", "1")
    assert not client.is_model_ready("mlp", "9")
    assert not client.is_model_ready("nope")
    server = client.get_server_metadata()
    assert (server.name, "garrison_proof" in server.extensions) == ("garrison", True)
    model = client.get_model_metadata("mlp", "1")
    assert (model.name, list(model.versions), list(model.inputs[0].shape)) == ("mlp", ["1", "2"], [-1, 1, 8, 8])
    assert [entry.name for entry in client.get_model_repository_index().models] == ["metered", "mlp", "mlp", "plain"]
    assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=SECONDS) == b"\x08\x01", "serving"


def test_infer(client: Any, bundles: Bundles) -> None:
    x = images(3)
    result = client.infer("mlp", [tensor(x)], model_version="1", request_id="mine")
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected(bundles, x), atol=1e-6)
    assert result.as_numpy("probabilities").shape == (3, CLASSES)
    assert result.get_response().id == "mine"
    wanted = [triton.InferRequestedOutput("classes")]
    assert client.infer("plain", [tensor(x)], outputs=wanted).as_numpy("classes").shape == (3, 1)


def test_typed_contents_are_answered_so(channel: Any, bundles: Bundles) -> None:
    x = images(2)
    asked = pb.ModelInferRequest(model_name="mlp", model_version="1")
    one = asked.inputs.add(name="image", datatype="FP32")
    one.shape.extend(x.shape)
    one.contents.fp32_contents.extend(x.ravel().tolist())
    answer = pb.ModelInferResponse.FromString(ask(channel, asked.SerializeToString())[0])
    assert not answer.raw_output_contents
    values = np.reshape(answer.outputs[0].contents.fp32_contents, (2, CLASSES))
    np.testing.assert_allclose(values, expected(bundles, x), atol=1e-6)


def test_many_at_once_form_batches(client: Any, bundles: Bundles) -> None:
    found: list[Any] = []
    for k in range(1, 13):
        client.async_infer(
            "mlp", [tensor(images(k))], lambda result, error: found.append(error or result), model_version="1"
        )
    end = time.monotonic() + SECONDS
    while len(found) < 12 and time.monotonic() < end:
        time.sleep(0.01)
    by_rows = {len(x): x for x in (result.as_numpy("probabilities") for result in found)}
    assert sorted(by_rows) == list(range(1, 13))
    np.testing.assert_allclose(by_rows[5], expected(bundles, images(5)), atol=1e-6)


@pytest.mark.parametrize(
    ("data", "status", "said", "words"),
    [
        (message(images(1), "nope"), "NOT_FOUND", "request.not_found", "unknown model"),
        (message(images(1), "mlp", "9"), "NOT_FOUND", "request.not_found", "unknown version"),
        (message(images(1), "a/b"), "INVALID_ARGUMENT", "request.malformed", "no slash"),
        (message(images(1) + 5), "INVALID_ARGUMENT", "request.input", "outside the range"),
        (message(images(1)[:, :, :4]), "INVALID_ARGUMENT", "request.input", "expected shape"),
        (b"\xff\xff", "INVALID_ARGUMENT", "request.malformed", "does not end"),
        (b"", "NOT_FOUND", "request.not_found", "unknown model"),
        (message(np.zeros((1000, 1, 8, 8), np.float32)), "RESOURCE_EXHAUSTED", "", "larger than max"),
    ],
)
def test_errors_are_told(channel: Any, data: bytes, status: str, said: str, words: str) -> None:
    error = failure(channel, data)
    assert (error.code().name, code(error)) == (status, said)
    assert words in error.details()


def test_what_is_not_offered(client: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="UNIMPLEMENTED"):
        client.get_model_config("mlp")
    with pytest.raises(triton.InferenceServerException, match="UNIMPLEMENTED"):
        client.infer("mlp", [tensor(images(1))], compression_algorithm="gzip")


def test_the_proof_is_over_the_messages_bytes(channel: Any, running: Served) -> None:
    data = message(images(2))
    answer, told = ask(channel, data, ("garrison-nonce", "once"))
    key = next(model.card.public_key for model in running.assembly.hosting if (model.name, model.version) == ("mlp", 1))
    proof = binascii.a2b_base64(told["garrison-proof"])
    statement = verify_answer(proof, key, request=data, answer=answer, nonce="once")
    assert statement.nonce == "once"
    again = pb.ModelInferResponse.FromString(answer).SerializeToString(deterministic=True)
    verify_answer(proof, key, request=data, answer=again, nonce="once")
    for asked, told_, nonce in (
        (data, answer + b"\x32\x00", "once"),
        (data + b"\x1a\x01x", answer, "once"),
        (data, answer, "twice"),
    ):
        with pytest.raises(ProofError):
            verify_answer(proof, key, request=asked, answer=told_, nonce=nonce)


def test_budgets_count_for_both_ways(channel: Any, running: Served) -> None:
    rows = message(images(40), "metered")
    assert ask(channel, rows)[1]["ratelimit"].startswith('"rows";r=60')
    assert running.infer(images(40), path="/v2/models/metered/infer").status_code == 200
    error = failure(channel, rows)
    assert (error.code().name, code(error)) == ("RESOURCE_EXHAUSTED", "request.budget_exhausted")
    assert dict(error.trailing_metadata())["ratelimit"].startswith('"rows";r=20')


def silent(until: threading.Event) -> Iterator[bytes]:
    until.wait(SECONDS)
    yield from ()


def test_nobody_waits_for_a_slow_message(channel: Any, bundles: Bundles, tmp_path: Path) -> None:
    end = threading.Event()
    with (
        serve(bundles, "plain", state=tmp_path, limits=Limits(body_read_seconds=0.4), grpc_port=0) as hasty,
        grpc.insecure_channel(address(hasty)) as other,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            other.stream_unary(INFER)(silent(end), timeout=SECONDS)
        end.set()
    assert caught.value.code().name == "DEADLINE_EXCEEDED"
    assert code(caught.value) == "request.slow"
    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(INFER)(iter(()), timeout=SECONDS)
    assert "expected one message" in caught.value.details()


def test_a_deadline_that_has_passed_costs_nothing(channel: Any, running: Served) -> None:
    given_up = threading.Event()

    def late() -> Iterator[bytes]:
        given_up.wait(SECONDS)
        yield message(images(1))

    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(INFER)(late(), timeout=0.1)
    given_up.set()
    assert caught.value.code().name in {"DEADLINE_EXCEEDED", "UNAVAILABLE"}, "who of the two notices first"
    beside, held, end = running.assembly.grpc, running.assembly.rsgi.held, time.monotonic() + SECONDS
    assert beside is not None
    while (beside.in_flight or held.bytes) and time.monotonic() < end:
        time.sleep(0.01)
    assert (beside.in_flight, held.bytes) == (0, 0)


def test_metadata_that_stands_twice_or_is_odd(channel: Any) -> None:
    nonces = [("garrison-nonce", "a"), ("garrison-nonce", "b")]
    assert code(failure(channel, message(images(1)), *nonces)) == "request.malformed"
    assert code(failure(channel, message(images(1)), ("garrison-nonce", "x" * 300))) == "request.too_large"


def test_any_bytes_harm_nobody(channel: Any, client: Any) -> None:
    rng, good = np.random.default_rng(3), message(images(1))
    calls = []
    for _ in range(150):
        data = bytearray(good)
        for _ in range(3):
            data[int(rng.integers(60))] = int(rng.integers(256))
        calls.append(channel.unary_unary(INFER).future(bytes(data), timeout=SECONDS))
    names = {call.code().name for call in calls}
    assert names <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
    assert "INVALID_ARGUMENT" in names
    assert client.is_server_ready()


def test_keys_are_needed_where_they_are_used(bundles: Bundles, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    key = add_key(keys, "ada")
    with (
        serve(bundles, "plain", state=tmp_path, grpc_port=0, keys=str(keys)) as served,
        grpc.insecure_channel(address(served)) as channel,
    ):
        data = message(images(1), "plain", "")
        for metadata in ((), (("authorization", "Bearer gk_ada_wrong"),)):
            error = failure(channel, data, *metadata)
            assert (error.code().name, code(error)) == ("UNAUTHENTICATED", "request.unauthenticated")
        assert ask(channel, data, ("authorization", f"Bearer {key}"))[0]
        client = triton.InferenceServerClient(address(served))
        assert client.is_server_live(), "open to all, as over HTTP"
        with pytest.raises(triton.InferenceServerException, match="UNAUTHENTICATED"):
            client.get_model_metadata("plain")
        assert client.get_model_metadata("plain", headers={"authorization": f"Bearer {key}"}).name == "plain"
        client.close()


def test_nobody_keeps_all_places_by_calls_that_say_nothing(bundles: Bundles, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    ada, bob = ((("authorization", f"Bearer {add_key(keys, name)}"),) for name in ("ada", "bob"))
    limits, end = Limits(grpc_requests=8), threading.Event()

    with (
        serve(bundles, "plain", state=tmp_path, grpc_port=0, keys=str(keys), limits=limits) as served,
        grpc.insecure_channel(address(served)) as channel,
        grpc.insecure_channel(address(served), options=[("grpc.use_local_subchannel_pool", 1)]) as other,
    ):
        data = message(images(1), "plain", "")
        assert ask(channel, data, *ada)[0]  # control
        waiting = [channel.stream_unary(INFER).future(silent(end), metadata=ada, timeout=SECONDS) for _ in range(8)]
        until = time.monotonic() + SECONDS
        while sum(call.done() for call in waiting) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        refused = [call for call in waiting if call.done()]
        assert len(refused) == 3, "one caller may keep no more than it leaves, and one"
        assert {code(call.exception()) for call in refused} == {"unavailable"}
        assert ask(other, data, *bob)[0]
        end.set()


def test_tls_is_that_of_http(bundles: Bundles, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    pair, mine = authority.issue("server", "localhost"), authority.issue("client", "ada")
    files: dict[str, Any] = {"tls_cert": str(pair.cert), "tls_key": str(pair.key), "tls_client_ca": str(authority.file)}
    data, root = message(images(1), "plain", ""), authority.file.read_bytes()
    with serve(bundles, "plain", state=tmp_path, grpc_port=0, **files) as served:
        good = grpc.ssl_channel_credentials(root, mine.key.read_bytes(), mine.cert.read_bytes())
        with grpc.secure_channel(address(served), good) as channel:
            assert ask(channel, data)[0]
        for channel in (
            grpc.secure_channel(address(served), grpc.ssl_channel_credentials(root)),
            grpc.insecure_channel(address(served)),
        ):
            with channel:
                assert failure(channel, data, seconds=2).code().name in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def end_the_server(address_: str, good: bytes) -> None:
    """A call whose path is no text, sent over a connection of its own."""
    host, _, port = address_.rpartition(":")
    assert good.count(b"ModelInfer") == 1
    with socket.create_connection((host, int(port)), timeout=SECONDS) as stranger:
        stranger.sendall(good.replace(b"ModelInfer", b"\x80\xffdelInfer"))
        assert stranger.recv(1)


def served_anew(address_: str) -> None:
    with grpc.insecure_channel(address_) as channel:
        channel.unary_unary(INFER)(message(images(1)), wait_for_ready=True, timeout=SECONDS)


def test_a_path_that_is_no_text_ends_the_service_for_nobody(
    bundles: Bundles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """grpcio ends its whole server at such a call; another one takes its place at the same port."""
    with serve(bundles, "mlp-1", state=tmp_path, grpc_port=0) as served:
        good = recorded(address(served), message(images(1)))
        for done in range(3):
            end_the_server(address(served), good)
            wait_until(lambda: caplog.text.count("another one begins") > done)  # noqa: B023  called now
            served_anew(address(served))
        assert "delInfer" not in caplog.text


def test_a_call_that_is_kept_open_puts_the_next_server_off_for_a_moment_only(
    bundles: Bundles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else whoever holds a call, and then ends the server, keeps gRPC from all for as long as a message may take to come."""
    limits = Limits(body_read_seconds=10 * SECONDS)
    with serve(bundles, "mlp-1", state=tmp_path, grpc_port=0, limits=limits) as served:
        good = recorded(address(served), message(images(1)))
        end = threading.Event()

        def never() -> Iterator[bytes]:
            end.wait()
            yield from ()

        with grpc.insecure_channel(address(served)) as channel:
            held = channel.stream_unary(INFER).future(never(), wait_for_ready=True)
            wait_until(lambda: served.assembly.grpc is not None and served.assembly.grpc.in_flight == 1)
            end_the_server(address(served), good)
            wait_until(lambda: "another one begins" in caplog.text)
            served_anew(address(served))
            assert held.exception().code().name == "UNAVAILABLE"
            end.set()


class _Allocated(ctypes.Structure):
    """`struct mallinfo2` (mallinfo(3))."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "used", "free", "keepcost")
    ]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not say what it has given")
def test_a_server_that_has_ended_by_itself_keeps_no_memory(
    bundles: Bundles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """grpcio's own end leaves about 6 KiB behind each time; whoever sends such calls could do so for hours."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Allocated
    kept = []
    with serve(bundles, "mlp-1", state=tmp_path, grpc_port=0) as served:
        good = recorded(address(served), message(images(1)))
        for done in range(60):
            end_the_server(address(served), good)
            wait_until(lambda: caplog.text.count("another one begins") > done)  # noqa: B023  called now
            served_anew(address(served))
            if done % 50 == 9:
                gc.collect()
                kept.append(mallinfo2().used)
    assert kept[1] - kept[0] < 50 * 3_000


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="one worker"):
        ServerConfig(grpc_port=0, workers=2)
    with pytest.raises(ValueError, match="grpc_port must lie"):
        ServerConfig(grpc_port=70_000)


def test_names_of_certificates_are_not_taken(bundles: Bundles, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pki")
    pair = authority.issue("server", "localhost")
    files: dict[str, Any] = {"tls_cert": str(pair.cert), "tls_key": str(pair.key), "tls_client_ca": str(authority.file)}
    with (
        pytest.raises(ConfigError, match="name no callers over gRPC"),
        serve(bundles, "plain", state=tmp_path, grpc_port=0, tls_client_names=True, **files),
    ):
        pass


def test_a_port_that_is_taken(running: Served) -> None:
    async def start() -> None:
        config = ServerConfig(grpc_port=int(address(running).rpartition(":")[2]))
        beside = make_grpc(config, running.assembly.app, Admission(Authenticator(None)), HeldBytes(1))
        assert beside is not None
        await beside.start()

    with pytest.raises(ConfigError, match=r"choose another --grpc-port \(Address already in use\)"):
        asyncio.run(start())


def test_an_enclave_reads_the_messages(bundles: Bundles, tmp_path: Path) -> None:
    x = images(4)
    with serve(bundles, "mlp-1", state=tmp_path, grpc_port=0, isolation="process") as served:
        client = triton.InferenceServerClient(address(served))
        found = client.infer("mlp", [tensor(x)]).as_numpy("probabilities")
        client.close()
    np.testing.assert_allclose(found, expected(bundles, x), atol=1e-6)
    with pytest.raises(grpc.RpcError) as caught, grpc.insecure_channel(address(served)) as channel:
        ask(channel, message(x), seconds=2)
    assert caught.value.code().name in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}, "stopped with the server"


@pytest.mark.parametrize(
    ("peer", "address"),
    [("ipv4:127.0.0.1:5000", "127.0.0.1:5000"), ("ipv6:%5B::1%5D:80", "[::1]:80"), ("unix:", ""), ("", "")],
)
def test_addresses_of_clients(peer: str, address: str) -> None:
    assert peer_of(peer) == address
