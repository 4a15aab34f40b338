"""The clients over HTTP: the same conversations, once with threads and once with an event loop."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
import numpy as np

from garrison.attest.policy import Policy
from garrison.client.bounded import BoundedTransport, Deadline, trusting
from garrison.client.core import ROWS_A_REQUEST, Core
from garrison.client.prediction import Prediction
from garrison.client.sealed import Attested
from garrison.client.signed import http_signatures
from garrison.client.talk import Pause, Result, Talk, Unreachable, Work
from garrison.errors import (
    ConfigError,
    InputError,
    NotFoundError,
    PlaintextKeyError,
    ServiceError,
    UnavailableError,
)
from garrison.protocol.addresses import is_loopback
from garrison.protocol.http_messages import Request, Response
from garrison.protocol.oip_metadata import IndexEntry, ModelMetadata
from garrison.protocol.work import Progress
from garrison.types import Array

TIMEOUT_SECONDS = 60.0
ATTEMPTS = 5
MOST_ANSWER_BYTES = 256 * 1024 * 1024
"""Longest answer that is taken from a server."""
_LATE = "the server's answer did not arrive whole in time after the request was sent; it may have been charged"
_HEAD_SHARE = 2
"""An answer's head must be there within so many times the time-out: once for connecting and sending, once for waiting."""
AS_IT_IS = {"accept-encoding": "identity"}  # a short compressed answer could unpack into all of the memory


class _Options:
    """What both clients are told; see `Client`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        version: int | str | None = None,
        timeout: float | None = TIMEOUT_SECONDS,
        attempts: int = ATTEMPTS,
        verify: bool = True,
        sealed: bool = False,
        policy: Policy | None = None,
        allow_simulated: bool = False,
        on_work: Progress | None = None,
        signatures: str | None = None,
        signature_secret: bytes | None = None,
        caller: str = "",
        tls: ssl.SSLContext | None = None,
        insecure_plaintext: bool = False,
    ) -> None:
        self._seconds = _seconds(timeout)
        self._core = Core(
            api_key=api_key,
            model=model,
            version=version,
            attempts=_at_least_one("attempts", attempts),
            verify=verify,
            policy=_policy(policy, sealed=sealed, allow_simulated=allow_simulated),
            on_work=on_work,
            signatures=http_signatures(signatures, signature_secret),
            caller=caller,
        )
        self._connect(checked_url(url, api_key=api_key, insecure_plaintext=insecure_plaintext), tls)

    def _connect(self, url: httpx.URL, tls: ssl.SSLContext | None) -> None:
        raise NotImplementedError

    @property
    def left(self) -> Mapping[str, int]:
        """What this caller may still ask of the model, as the server said in its last answer (header `RateLimit`): "rows", and "distinct-rows"
        where different rows are limited too. Empty where there is no budget. No enclave vouches for it."""
        return self._core.left


class Client(_Options):
    """Asks a prediction service.

        with Client("http://127.0.0.1:8080") as client:
            print(client.predict(images).classes)

    Args:
        url: the server's.
        api_key: "gk_...", where the server asks for one.
        model: the model's name; may be left out where the server has one model.
        version: the model's version; the newest where it is left out.
        timeout: seconds to connect, to send, and to wait for bytes of the answer. Its head must be whole in twice that time, its body in that time. None
            for no bound.
        attempts: how often a request is tried while the server cannot be reached or has no time.
        verify: check the signature of each answer under the key that the server names at first. That key is *not attested*: it
            shows that no answer was changed on the way, and not who runs the server or what it computes.
        sealed: ask an enclave that has shown evidence, in requests that only it can open; answers are then checked under its
            attested key. Without `sealed`, inputs can be read by whoever runs the server.
        policy: what is demanded of the evidence; without one, the default, which no enclave passes before measurements are listed.
        allow_simulated: take evidence of the kind "sim" too, which proves nothing and is there for trials.
        on_work: where the service asks for proofs of work, which are made by themselves: told now and then of the hashes that
            were made for a request, and how many it takes on average.
        signatures: "rfc9421" to have each answer signed in the form of HTTP too, and to check that as well; see docs/signed-answers.md.
        signature_secret: shared with the server, at least 32 bytes: its HMAC is asked for in place of the service's signature.
        caller: the name that the server knows you by, where the key does not say it: "cert:NAME" for a client certificate, "oidc:NAME" for a token whose name is not its
            `sub`. It goes into sealed requests and proofs of work.
        tls: for HTTPS with a certificate of your own, or an authority of your own; None for the system's authorities, or those that the variable SSL_CERT_FILE names.
        insecure_plaintext: show `api_key` over plain HTTP to a host that is not this machine too, where all on the way may read it and ask in your name.
            Sealed requests hide the input and not the key.

    Making one raises `PlaintextKeyError` where the key would be shown so; every call raises a `RequestError` for what is wrong with the request, `RefusedError` where the guard refuses,
    `UnavailableError` where the server cannot be reached, `ServiceError` (and `ProofError`) where its answer makes no sense.
    """

    def _connect(self, url: httpx.URL, tls: ssl.SSLContext | None) -> None:
        self._deadline = Deadline()
        self._http = httpx.Client(
            base_url=url,
            timeout=self._seconds,
            trust_env=False,
            headers=AS_IT_IS,
            transport=BoundedTransport(self._deadline, tls),
        )

    def index(self) -> tuple[IndexEntry, ...]:
        """The models that the server has."""
        return self._run(self._core.index())

    def metadata(self) -> ModelMetadata:
        """What the model takes and gives; fetched once."""
        return self._run(self._core.metadata())

    def predict(
        self,
        x: Array | Mapping[str, Array],
        *,
        outputs: tuple[str, ...] = (),
        rows_a_request: int = ROWS_A_REQUEST,
        binary: bool = True,
    ) -> Prediction:
        """Ask for predictions.

        Args:
            x: the model's one input, or its inputs by name; each (rows, ...). Cast to the model's dtype where nothing but
                precision is lost.
            outputs: names of outputs wanted; empty for all that the service releases.
            rows_a_request: longer inputs are split into several requests; at least 1.
            binary: send and receive tensors in the binary form.
        """
        most = _at_least_one("rows_a_request", rows_a_request)
        return self._run(self._core.predict(_arrays(x), outputs=outputs, rows_a_request=most, binary=binary))

    def attest(self) -> Attested:
        """The enclave that answers: attested where it was not yet, with its keys and the report. Only with `sealed`.

        Raises:
            AttestationError: the evidence is not good enough; carries the report.
        """
        return self._run(self._core.attest())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, talk: Talk[Result]) -> Result:
        try:
            step = next(talk)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = talk.send(None)
                elif isinstance(step, Work):
                    step = talk.send(step.do())
                else:
                    step = talk.send(self._send(step))
        except StopIteration as end:
            result: Result = end.value
            return result

    def _send(self, request: Request) -> Response | Unreachable:
        self._deadline.at = _after(self._seconds, _HEAD_SHARE)
        try:
            with self._http.stream(**_arguments(request)) as found:
                end = self._deadline.at = _after(self._seconds)
                body = bytearray()
                for part in found.iter_raw():
                    body += part
                    _check_length(len(body), MOST_ANSWER_BYTES)
                    if end is not None and time.monotonic() > end:
                        raise UnavailableError(_LATE)
                return Response(found.status_code, found.headers, bytes(body))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Unreachable(str(error))
        except httpx.ReadTimeout as error:
            raise UnavailableError(_LATE) from error
        except httpx.HTTPError as error:
            raise _lost(error) from error


class AsyncClient(_Options):
    """`Client` for an event loop; see there."""

    def _connect(self, url: httpx.URL, tls: ssl.SSLContext | None) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, timeout=self._seconds, trust_env=False, headers=AS_IT_IS, verify=trusting(tls)
        )

    async def index(self) -> tuple[IndexEntry, ...]:
        """The models that the server has."""
        return await self._run(self._core.index())

    async def metadata(self) -> ModelMetadata:
        """What the model takes and gives; fetched once."""
        return await self._run(self._core.metadata())

    async def predict(
        self,
        x: Array | Mapping[str, Array],
        *,
        outputs: tuple[str, ...] = (),
        rows_a_request: int = ROWS_A_REQUEST,
        binary: bool = True,
    ) -> Prediction:
        """Ask for predictions; see `Client.predict`."""
        most = _at_least_one("rows_a_request", rows_a_request)
        return await self._run(self._core.predict(_arrays(x), outputs=outputs, rows_a_request=most, binary=binary))

    async def attest(self) -> Attested:
        """See `Client.attest`."""
        return await self._run(self._core.attest())

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, talk: Talk[Result]) -> Result:
        return await carry(self._http, talk, seconds=self._seconds)


async def carry(
    http: httpx.AsyncClient,
    talk: Talk[Result],
    most_bytes: int = MOST_ANSWER_BYTES,
    seconds: float | None = None,
) -> Result:
    """Have a conversation over a connection.

    Args:
        most_bytes: longest body that is taken from the server.
        seconds: for the body of each answer, and twice that for all before it; None for no bound.

    Raises:
        GarrisonError: what the conversation raises, or the connection failed after the request was sent.
    """
    try:
        step = next(talk)
        while True:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                step = talk.send(None)
            elif isinstance(step, Work):
                step = talk.send(await asyncio.to_thread(step.do))
            else:
                step = talk.send(await _send(http, step, most_bytes, seconds))
    except StopIteration as end:
        result: Result = end.value
        return result


async def _send(
    http: httpx.AsyncClient, request: Request, most_bytes: int, seconds: float | None
) -> Response | Unreachable:
    try:
        head = None if seconds is None else _HEAD_SHARE * seconds
        async with asyncio.timeout(head) as bound, http.stream(**_arguments(request)) as found:
            bound.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)
            body = bytearray()
            async for part in found.aiter_raw():
                body += part
                _check_length(len(body), most_bytes)
            return Response(found.status_code, found.headers, bytes(body))
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        return Unreachable(str(error))
    except TimeoutError as error:
        raise UnavailableError(_LATE) from error
    except httpx.HTTPError as error:
        raise _lost(error) from error
    except httpx.InvalidURL as error:
        raise NotFoundError(f"{request.path[:128]!r} is no path: {error}") from error


def _after(seconds: float | None, times: int = 1) -> float | None:
    """So many times these seconds from now, by `time.monotonic`; None for never."""
    return None if seconds is None else time.monotonic() + times * seconds


def _at_least_one(name: str, given: int) -> int:
    if not isinstance(given, int) or given < 1:
        raise ConfigError(f"{name} must be a whole number, at least 1; found {given!r}")
    return given


def _seconds(timeout: float | None) -> float | None:
    if timeout is not None and not (isinstance(timeout, (int, float)) and 0 < timeout < float("inf")):
        raise ConfigError(f"timeout must be a number of seconds above 0, or None; found {timeout!r}")
    return timeout


def _arrays(x: Array | Mapping[str, Array]) -> Array | Mapping[str, Array]:
    """Lists are taken too, where they are an array's."""
    try:
        return {name: np.asarray(values) for name, values in x.items()} if isinstance(x, Mapping) else np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the rows cannot be made an array: {str(error)[:200]}") from error


def _check_length(found: int, most: int) -> None:
    if found > most:
        raise ServiceError(f"the server's answer has more than {most} bytes")


def _policy(policy: Policy | None, *, sealed: bool, allow_simulated: bool) -> Policy | None:
    if not sealed:
        if policy is not None or allow_simulated:
            raise ConfigError("policy and allow_simulated go with sealed=True")
        return None
    found = Policy() if policy is None else policy
    return msgspec.structs.replace(found, allow_simulated=True) if allow_simulated else found


def checked_url(url: str, *, api_key: str | None = None, insecure_plaintext: bool = False) -> httpx.URL:
    """The server's URL; see `Client` for the arguments.

    Raises:
        PlaintextKeyError: it is a key's way over plain HTTP, beyond this machine, and nobody said that this is meant.
        ConfigError: it is none.
    """
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"expected a URL like http://127.0.0.1:8080, found {url!r}: {error}") from error
    if found.scheme not in {"http", "https"} or not found.host:
        raise ConfigError(f"expected a URL like http://127.0.0.1:8080, found {url!r}")
    if api_key is not None and found.scheme == "http" and not (insecure_plaintext or is_loopback(found.host)):
        raise PlaintextKeyError(
            f"the API key is not sent to {found.host} over plain HTTP, where all on the way could read it: "
            "use https://, or say that this is meant (insecure_plaintext=True, --insecure-plaintext)"
        )
    return found


def _arguments(request: Request) -> dict[str, Any]:
    return {"method": request.method, "url": request.path, "headers": request.headers, "content": request.body}


def _lost(error: httpx.HTTPError) -> UnavailableError:
    told = (
        f"the connection failed after the request was sent ({type(error).__name__}: {error}); it may have been charged"
    )
    if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):
        # A server with TLS 1.3 looks at the client's certificate when the client has long begun to speak.
        told += ". It also looks so where a server wants a certificate of the client (--tls-cert, tls=), or https in the place of http"
    return UnavailableError(told)
