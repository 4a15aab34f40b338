"""The settings of one installation: a strict, frozen tree read from `garrison.toml`.

An unknown key is an error: a misspelt security setting must not be silently off. Paths are relative to the file that names them.

    trust = ["keys/owner.pub"]

    [server]
    port = 8080
    keys = "keys.json"

    [limits]
    request_rows = 1024

    [guard.release]          # tightens what the owner signed; checked when a server starts
    mode = "labels"

    [callers."*"]            # a stricter release policy for callers that are not named, or for one by its key's name
    release = "labels"

    [callers.partner]
    release = "rounded"
    decimals = 2
    rows_per_day = 5000

    [models.mnist]           # what all callers together may ask of one model
    rows_per_day = 1000000

    [oidc]                   # bearer tokens of an identity provider
    issuer = "https://login.example.org"
    audience = "garrison"
    jwks = "https://login.example.org/jwks.json"
"""

from __future__ import annotations

import difflib
import math
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from garrison.errors import ConfigError
from garrison.limits import Limits

DEFAULT_FILE = "garrison.toml"
SETTINGS_VARIABLE = "GARRISON_SETTINGS"
"""Where the settings of a running server lie: set by `garrison serve` for itself and its front workers, which read it again at SIGHUP."""
_MOST_PORT = 65_535
_MOST_USER = 2**32 - 1
_MOST_WORKERS = 256
_MOST_A_SECOND = 1e6
URLS = ("https://", "http://")
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA")
"""Signatures that a token may have: public keys only."""


def check_quota(rows_per_day: int, requests_per_second: float) -> None:
    """Raise `ValueError` for a quota that cannot be; 0 stands for none."""
    if rows_per_day < 0:
        raise ValueError(f"rows_per_day must not be below 0, found {rows_per_day}")
    if not (math.isfinite(requests_per_second) and 0 <= requests_per_second <= _MOST_A_SECOND):
        raise ValueError(f"requests_per_second must lie in 0 to {_MOST_A_SECOND:g}, found {requests_per_second}")


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[server]`.

    Attributes:
        host: address to listen at.
        port: 0 for any free one.
        grpc_port: where to listen for gRPC too, 0 for any free one; None for nowhere.
        keys: file of API keys; without one, callers are told apart by address.
        state: folder for what must outlive the server, such as budgets; "" for the user's own state folder.
        store: URL of the database that counts budgets and quotas, postgresql://..., redis://... or valkey://... (rediss:// and valkeys:// with TLS); ""
            for SQLite in the state folder.
        store_may_forget: take a Redis or Valkey that may lose what it was told in its last second.
        allow_anonymous: listen beyond this machine without keys.
        tls_cert: certificate chain of the server, PEM; with `tls_key`, HTTPS with TLS 1.3 alone.
        tls_key: its private key, PEM, unencrypted.
        tls_client_ca: certificates that may vouch for clients, PEM; a client that shows no good certificate gets no connection.
        tls_client_names: the client's certificate names the caller, too.
        insecure_plaintext: listen beyond this machine without TLS.
        signatures: "rfc9421" signs every plain answer in the form of HTTP too; "" those whose clients ask for it.
        signature_secret: file with a secret in base64 that clients share, for signatures by HMAC; "" for none.
        workers: processes that read HTTP and write it, in front of one enclave a model.
        secret: files with the owners' misinformation keys, one a model.
        isolation: how models are kept apart from the server; "none" for not at all.
        enclave: address of the Nitro enclave that runs the models, CID:PORT, with isolation "nitro"; "" for none.
        collateral: folder of what the hardware's vendor says of this machine, one file an entry (`vcek`, `dcap`, ...), handed on
            with quotes; "" for none.
        require_isolation: refuse to serve at a lower level than this.
        enclave_user: number of the user that enclaves become where root starts them; nothing else should use it.
        secret_heap: keep the enclaves' heap in memory that no other process can read.
        secret_heap_mib: size of that heap, in MiB.
        upstream: URL of the server that runs the models, for guard-only bundles; "" where bundles hold their models.
        upstream_key: file with the API key for that server, one line; "" where it wants none.
        upstream_ca: file of the certificates that may vouch for it; "" for the system's.
        upstream_insecure_plaintext: show that key over plain HTTP beyond this machine too.
        parameter_memory_mib: most of a model's parameters that an enclave holds at once, in MiB; 0 for all of them.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    keys: str = ""
    state: str = ""
    store: str = ""
    store_may_forget: bool = False
    allow_anonymous: bool = False
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    tls_client_names: bool = False
    insecure_plaintext: bool = False
    signatures: Literal["", "rfc9421"] = ""
    signature_secret: str = ""
    workers: int = 1
    secret: tuple[str, ...] = ()
    isolation: str = "process"
    enclave: str = ""
    collateral: str = ""
    require_isolation: Literal["none", "process-basic", "process", "process-secret-heap", "hardware"] = "none"
    enclave_user: int = 61_234
    secret_heap: bool = False
    secret_heap_mib: int = 1024
    parameter_memory_mib: int = 0
    upstream: str = ""
    upstream_key: str = ""
    upstream_ca: str = ""
    upstream_insecure_plaintext: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= _MOST_PORT:
            raise ValueError(f"port must lie in 0 to {_MOST_PORT}, found {self.port}")
        if self.grpc_port is not None and not 0 <= self.grpc_port <= _MOST_PORT:
            raise ValueError(f"grpc_port must lie in 0 to {_MOST_PORT}, found {self.grpc_port}")
        if self.grpc_port is not None and self.workers > 1:
            raise ValueError("grpc_port takes one worker: several cannot share its connections")
        if not 0 < self.workers <= _MOST_WORKERS:
            raise ValueError(f"workers must lie in 1 to {_MOST_WORKERS}, found {self.workers}")
        if not 0 < self.enclave_user < _MOST_USER:
            raise ValueError(f"enclave_user must lie in 1 to {_MOST_USER - 1}, found {self.enclave_user}")
        if self.secret_heap_mib <= 0 or self.parameter_memory_mib < 0:
            raise ValueError("secret_heap_mib must be above 0, and parameter_memory_mib not below")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key go together")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        if self.tls_client_names and not self.tls_client_ca:
            raise ValueError("tls_client_names needs tls_client_ca: nobody else says who a certificate belongs to")


class LedgerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[ledger]`: what was asked and answered, written down before an answer leaves (see docs/ledger.md).

    Attributes:
        folder: where it lies; "" for no ledger.
        checkpoint_seconds: between two signatures of the enclave.
        segment_mib, segment_hours: a larger or older file is followed by another; only whole files are dropped.
        keep_days: files whose last line is older are dropped, hourly; 0 to keep all.
    """

    folder: str = ""
    checkpoint_seconds: float = 1.0
    segment_mib: int = 64
    segment_hours: float = 24.0
    keep_days: float = 0.0

    def __post_init__(self) -> None:
        for name in ("checkpoint_seconds", "segment_mib", "segment_hours"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")
        if not 0 <= self.keep_days < math.inf:
            raise ValueError(f"keep_days must not be below 0, found {self.keep_days}")


class OperationsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[operations]`: what who runs the server sees of it (see docs/operations.md).

    Attributes:
        metrics: HOST:PORT where Prometheus reads `/metrics`; "" for nowhere.
        metrics_open: offer them beyond this machine, where nobody needs a key and nothing is encrypted.
        log: "text", or "json" for one object a line.
        traces: URL of an OpenTelemetry collector (OTLP over HTTP) for traces; "" for none.
        traces_share: of the requests whose callers do not say, 0 to 1.
        webhook: URL that is told of drift alarms, https or on this machine; "" for none.
        webhook_secret: file with the secret that signs what it is told.
        webhook_ca: file of the certificates that may vouch for it; "" for the system's.
    """

    metrics: str = ""
    metrics_open: bool = False
    log: Literal["text", "json"] = "text"
    traces: str = ""
    traces_share: float = 0.01
    webhook: str = ""
    webhook_secret: str = ""
    webhook_ca: str = ""

    def __post_init__(self) -> None:
        host, _, port = self.metrics.rpartition(":")
        if self.metrics and not (host and port.isascii() and port.isdigit() and int(port) <= _MOST_PORT):
            raise ValueError(f"operations.metrics must be HOST:PORT, found {self.metrics!r}")
        if not 0 <= self.traces_share <= 1:
            raise ValueError(f"operations.traces_share must lie in 0 to 1, found {self.traces_share}")
        if bool(self.webhook) != bool(self.webhook_secret):
            raise ValueError("operations: webhook and webhook_secret go together: what it is told is signed")


class CallerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[callers.NAME]`: what a caller gets of each answer, where that is less than what the chain releases, and how much it may ask.

    Attributes:
        release: the mode of the policy, see docs/defenses/release.md; None for what the chain, or `[callers."*"]`, has.
        k: classes in "top-k"; as the chain has it where it is left out.
        decimals: digits after the point in "rounded" and "top-k"; as the chain has it where it is left out.
        rows_per_day: rows of all models that it may ask in a day (UTC); 0 for no limit.
        requests_per_second: for one second's worth at once, and no more than this in the long run; 0 for no limit.
    """

    release: Literal["full", "rounded", "top-k", "labels"] | None = None
    k: int | None = None
    decimals: int | None = None
    rows_per_day: int = 0
    requests_per_second: float = 0.0

    def __post_init__(self) -> None:
        check_quota(self.rows_per_day, self.requests_per_second)
        if self.release is None and (self.k is not None or self.decimals is not None):
            raise ValueError("k and decimals say how to release; name a release mode too")

    @property
    def policy(self) -> dict[str, Any] | None:
        """The parameters of the defense `release`; None where it is left as it is."""
        return None if self.release is None else {"mode": self.release, "k": self.k, "decimals": self.decimals}


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[models.NAME]`: what all callers together may ask of a model, all versions together; fields as in `CallerConfig`."""

    rows_per_day: int = 0
    requests_per_second: float = 0.0

    def __post_init__(self) -> None:
        check_quota(self.rows_per_day, self.requests_per_second)


class OidcConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[oidc]`: tokens (JWT) of one issuer, shown as `Authorization: Bearer ...`.

    Attributes:
        issuer: who must have issued them, letter by letter (`iss`); "" for no tokens.
        audience: for whom they must be meant (`aud`).
        jwks: file or URL with the issuer's public keys; plain http only on this machine.
        jwks_ca: file of the certificates that may vouch for that URL; "" for the system's.
        algorithms: signatures that are taken.
        subject: the claim that names the caller, who is then called `oidc:SUBJECT`.
        scope: the claim with its scopes; "" where all have those of `scopes`.
        scopes: what every token allows, whatever it says.
        leeway_seconds: how far the issuer's clock may be off.
        jwks_seconds: how often the keys are read again.
        jwks_most_seconds: how long keys are used that could not be read again.
    """

    issuer: str = ""
    audience: str = ""
    jwks: str = ""
    jwks_ca: str = ""
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "Ed25519")
    subject: str = "sub"
    scope: str = "scope"
    scopes: tuple[str, ...] = ()
    leeway_seconds: float = 30.0
    jwks_seconds: float = 300.0
    jwks_most_seconds: float = 3600.0

    def __post_init__(self) -> None:
        if any((self.issuer, self.audience, self.jwks)) and not all((self.issuer, self.audience, self.jwks)):
            raise ValueError(
                "issuer, audience and jwks go together: a token of anybody, or for anybody, proves nothing"
            )
        unknown = sorted(set(self.algorithms) - set(ALGORITHMS))
        if unknown or not self.algorithms:
            raise ValueError(f"algorithms must be some of {', '.join(ALGORITHMS)}; found {unknown[:1] or 'none'}")
        if not (0 <= self.leeway_seconds <= 600 and 1 <= self.jwks_seconds <= self.jwks_most_seconds):
            raise ValueError("leeway_seconds must lie in 0 to 600, and jwks_seconds in 1 to jwks_most_seconds")
        if not (self.subject and (self.scope or self.scopes)):
            raise ValueError("a token needs a claim that names its subject, and scopes from a claim or for all")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings.

    Attributes:
        trust: files of public keys that may have signed bundles.
        guard: by defense, what this host tightens; checked against the signed chain when a server starts.
        callers: by the name of a caller, or "*" for all others, a stricter release policy and quotas; checked when a server starts.
        models: by name, quotas for all callers together.
        oidc: whose tokens are taken.
        ledger: what is written down of requests.
        operations: metrics, logs, traces, and who is told of alarms.
    """

    trust: tuple[str, ...] = ()
    server: ServerConfig = ServerConfig()
    limits: Limits = Limits()
    guard: dict[str, dict[str, Any]] = {}
    callers: dict[str, CallerConfig] = {}
    models: dict[str, ModelConfig] = {}
    oidc: OidcConfig = OidcConfig()
    ledger: LedgerConfig = LedgerConfig()
    operations: OperationsConfig = OperationsConfig()


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "server": ServerConfig,
    "limits": Limits,
    "oidc": OidcConfig,
    "ledger": LedgerConfig,
    "operations": OperationsConfig,
}
_TABLES: dict[str, type[msgspec.Struct]] = {"callers": CallerConfig, "models": ModelConfig}


def load_config(path: Path | None = None) -> Config:
    """Read the settings.

    Args:
        path: the file; None for `garrison.toml` in the current folder, or the defaults where there is none.

    Raises:
        ConfigError: the file cannot be read, or holds an unknown key or a value of the wrong kind.
    """
    file = Path(DEFAULT_FILE) if path is None else path
    if path is None and not file.exists():
        return Config()
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    _check_keys(found, Config, "", file)
    _check_sections(found, file)
    try:
        config = msgspec.convert(found, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from error
    return _with_paths(config, file.absolute().parent)


def _check_sections(found: dict[str, Any], file: Path) -> None:
    for name, section in _SECTIONS.items():
        if isinstance(found.get(name), dict):
            _check_keys(found[name], section, f"{name}.", file)
    for table, kind in _TABLES.items():
        entries = found.get(table)
        for name, given in entries.items() if isinstance(entries, dict) else ():
            if isinstance(given, dict):
                _check_keys(given, kind, f"{table}.{name}.", file)


def _check_keys(found: dict[str, Any], kind: type[msgspec.Struct], prefix: str, file: Path) -> None:
    known = kind.__struct_fields__
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known are {', '.join(known)}"
            raise ConfigError(f"{file}: unknown key {prefix}{key}{hint}")


def _with_paths(config: Config, folder: Path) -> Config:
    def resolve(name: str) -> str:
        return str(folder / name) if name else ""

    ledger = msgspec.structs.replace(config.ledger, folder=resolve(config.ledger.folder))
    server = msgspec.structs.replace(
        config.server,
        keys=resolve(config.server.keys),
        state=resolve(config.server.state),
        secret=tuple(map(resolve, config.server.secret)),
        collateral=resolve(config.server.collateral),
        upstream_key=resolve(config.server.upstream_key),
        upstream_ca=resolve(config.server.upstream_ca),
        signature_secret=resolve(config.server.signature_secret),
        tls_cert=resolve(config.server.tls_cert),
        tls_key=resolve(config.server.tls_key),
        tls_client_ca=resolve(config.server.tls_client_ca),
    )
    jwks = config.oidc.jwks if config.oidc.jwks.startswith(URLS) else resolve(config.oidc.jwks)
    oidc = msgspec.structs.replace(config.oidc, jwks=jwks, jwks_ca=resolve(config.oidc.jwks_ca))
    secret, ca = resolve(config.operations.webhook_secret), resolve(config.operations.webhook_ca)
    operations = msgspec.structs.replace(config.operations, webhook_secret=secret, webhook_ca=ca)
    trust = tuple(map(resolve, config.trust))
    return msgspec.structs.replace(config, trust=trust, server=server, oidc=oidc, ledger=ledger, operations=operations)
