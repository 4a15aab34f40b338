"""A small token issuer on a real port: it signs tokens and serves its key set, well or badly, as a test wants it."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

AUDIENCE = "garrison"
ALGORITHMS = ["RS256", "RS512", "PS256", "ES256", "Ed25519"]


class Issuer:
    """Issues tokens.

    Attributes:
        keys: by key id; those whose id stands in `hidden` are not in the set that is served.
        asked: how often the set was asked for.
        status, body: what is served, where it is not the set.
        drip: seconds between two bytes of it.
    """

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.hidden: set[str] = set()
        self.asked = 0
        self.status, self.body, self.drip = 200, b"", 0.0
        self.url = ""
        self.add("rsa", RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"}))
        self.add("ec", ECKey.generate_key("P-256", {"kid": "ec"}))
        self.add("ed", OKPKey.generate_key("Ed25519", {"kid": "ed"}))

    def add(self, kid: str, key: Key) -> None:
        self.keys[kid] = key

    @property
    def jwks(self) -> bytes:
        shown = [key.as_dict(private=False) for kid, key in self.keys.items() if kid not in self.hidden]
        return json.dumps({"keys": shown}).encode()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good ones, changed; None leaves a claim out."""
        now = int(time.time())
        found = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice",
            "iat": now,
            "nbf": now,
            "exp": now + 300,
            "scope": "infer:*",
        }
        return {name: value for name, value in (found | changes).items() if value is not None}

    def token(
        self, kid: str = "ec", header: dict[str, Any] | None = None, key: Key | None = None, **changes: Any
    ) -> str:
        algorithm = {"rsa": "RS256", "ec": "ES256", "ed": "Ed25519"}.get(kid, "ES256")
        head = {
            name: value
            for name, value in ({"alg": algorithm, "kid": kid} | (header or {})).items()
            if value is not None
        }
        return jwt.encode(head, self.claims(**changes), key or self.keys[kid], algorithms=ALGORITHMS)


def forged(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    """A token as no library would make it."""
    head, body = (_text(json.dumps(part).encode()) for part in (header, claims))
    return f"{head}.{body}.{_text(sign(f'{head}.{body}'.encode()))}"


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def issuing() -> Iterator[Issuer]:
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked += 1
            with contextlib.suppress(OSError):  # whoever asked may go
                self.answer()

        def answer(self) -> None:
            body = issuer.body or issuer.jwks
            self.send_response(issuer.status)
            self.send_header("content-length", str(len(body)))
            if issuer.status in {301, 302}:
                self.send_header("location", f"{issuer.url}/elsewhere")
            self.end_headers()
            for k in range(len(body) if issuer.drip else 0):
                self.wfile.write(body[k : k + 1])
                time.sleep(issuer.drip)
            self.wfile.write(b"" if issuer.drip else body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
