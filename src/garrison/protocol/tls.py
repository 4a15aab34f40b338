"""Certificates from PEM files, for either side of TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

from garrison.errors import ConfigError


def load_chain(context: ssl.SSLContext, chain: Path, key: Path | None, what: str) -> None:
    """What a side shows of itself.

    Args:
        chain: its certificate, and those between it and its authority.
        key: its private key, unencrypted; None where it stands in the same file.
        what: how these files are called where they are asked for.

    Raises:
        ConfigError: a file cannot be read, or certificate and key do not belong together.
    """
    try:
        context.load_cert_chain(chain, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{what}: expected a certificate and its unencrypted key, PEM, at {chain} and {key or chain}: {_reason(error)}"
        ) from error


def load_authorities(context: ssl.SSLContext, file: Path, what: str) -> None:
    """Whose certificates are believed.

    Raises:
        ConfigError: the file cannot be read, or holds no certificate.
    """
    try:
        context.load_verify_locations(file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{what}: expected certificates, PEM, at {file}: {_reason(error)}") from error


def client_tls(authorities: Path | None, chain: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For who asks a server.

    Args:
        authorities: that the server's certificate may be of, in place of the system's (or of what SSL_CERT_FILE and SSL_CERT_DIR name).
        chain, key: as for `load_chain`, where the server wants to see a certificate.

    Raises:
        ConfigError: a file cannot be used.
    """
    if authorities is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_authorities(context, authorities, "the server's authorities")
    if chain is not None:
        load_chain(context, chain, key, "the client's certificate")
    return context


def _no_password() -> str:
    return ""  # else OpenSSL would ask at the terminal


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
