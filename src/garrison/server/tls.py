"""What the server shows of itself over TLS, and asks of its clients: files, checked before anything is served.

TLS 1.3 alone, but for gRPC, whose library cannot be told to refuse 1.2. Granian (rustls) ends it, except where certificates name callers: it does not tell the
application whose certificate a connection showed, so `garrison.server.client_names` ends TLS there. Files are read at the start; a renewed certificate takes a restart (with `--workers`, SIGTERM to one front process after the other).

Not checked: whether the certificate fits the name that clients use; they do that. Revocation: no lists are read, so let client certificates live shortly.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from garrison.bundle.private import why_not_private
from garrison.config import ServerConfig
from garrison.errors import ConfigError
from garrison.protocol.tls import load_authorities, load_chain


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files, PEM.

    Attributes:
        chain: the server's certificate, and those between it and its authority.
        key: its private key, unencrypted.
        clients: authorities of clients; None where clients need no certificate.
        names: whether a client's certificate names the caller.
    """

    chain: Path
    key: Path
    clients: Path | None = None
    names: bool = False

    def of_granian(self) -> dict[str, Any]:
        """Granian's options. Its verification of clients goes silently off without authorities, so both are given or none."""
        found: dict[str, Any] = {"ssl_cert": self.chain, "ssl_key": self.key}
        return found if self.clients is None else found | {"ssl_ca": self.clients, "ssl_client_verify": True}

    def context(self) -> ssl.SSLContext:
        """For TLS that we end ourselves.

        Raises:
            ConfigError: a file cannot be read, or certificate and key do not belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # No tickets: a resumed session would outlive a client's certificate.
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        load_chain(context, self.chain, self.key, "server.tls_cert, server.tls_key")
        if self.clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            load_authorities(context, self.clients, "server.tls_client_ca")
            if not context.get_ca_certs():
                raise ConfigError(
                    f"server.tls_client_ca: {self.clients} holds no authority, so no client could come in"
                )
        return context


def certificates(server: ServerConfig) -> Certificates | None:
    """What the settings say; None for plain HTTP.

    Raises:
        ConfigError: a file cannot be used, or others may read the private key.
    """
    if not server.tls_cert:
        return None
    clients = Path(server.tls_client_ca) if server.tls_client_ca else None
    found = Certificates(Path(server.tls_cert), Path(server.tls_key), clients, server.tls_client_names)
    found.context()
    if why := why_not_private(found.key):
        raise ConfigError(f"server.tls_key: {why}")
    return found
