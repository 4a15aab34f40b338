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
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from garrison.errors import ConfigError
from garrison.limits import Limits

DEFAULT_FILE = "garrison.toml"
_MOST_PORT = 65_535
_MOST_USER = 2**32 - 1
_MOST_WORKERS = 256


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[server]`.

    Attributes:
        host: address to listen at.
        port: 0 for any free one.
        keys: file of API keys; without one, callers are told apart by address.
        state: folder for what must outlive the server, such as budgets; "" for the user's own state folder.
        allow_anonymous: listen beyond this machine without keys.
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
        parameter_memory_mib: most of a model's parameters that an enclave holds at once, in MiB; 0 for all of them.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: str = ""
    state: str = ""
    allow_anonymous: bool = False
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

    def __post_init__(self) -> None:
        if not 0 <= self.port <= _MOST_PORT:
            raise ValueError(f"port must lie in 0 to {_MOST_PORT}, found {self.port}")
        if not 0 < self.workers <= _MOST_WORKERS:
            raise ValueError(f"workers must lie in 1 to {_MOST_WORKERS}, found {self.workers}")
        if not 0 < self.enclave_user < _MOST_USER:
            raise ValueError(f"enclave_user must lie in 1 to {_MOST_USER - 1}, found {self.enclave_user}")
        if self.secret_heap_mib <= 0 or self.parameter_memory_mib < 0:
            raise ValueError("secret_heap_mib must be above 0, and parameter_memory_mib not below")


class CallerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[callers.NAME]`: what a caller gets of each answer, where that is less than what the chain releases.

    Attributes:
        release: the mode of the policy, see docs/defenses/release.md.
        k: classes in "top-k"; as the chain has it where it is left out.
        decimals: digits after the point in "rounded" and "top-k"; as the chain has it where it is left out.
    """

    release: Literal["full", "rounded", "top-k", "labels"]
    k: int | None = None
    decimals: int | None = None

    @property
    def policy(self) -> dict[str, Any]:
        """The parameters of the defense `release`."""
        return {"mode": self.release, "k": self.k, "decimals": self.decimals}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings.

    Attributes:
        trust: files of public keys that may have signed bundles.
        guard: by defense, what this host tightens; checked against the signed chain when a server starts.
        callers: by the name of a key, or "*" for all others, a stricter release policy; checked when a server starts.
    """

    trust: tuple[str, ...] = ()
    server: ServerConfig = ServerConfig()
    limits: Limits = Limits()
    guard: dict[str, dict[str, Any]] = {}
    callers: dict[str, CallerConfig] = {}


_SECTIONS: dict[str, type[msgspec.Struct]] = {"server": ServerConfig, "limits": Limits}


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
    for name, section in _SECTIONS.items():
        if isinstance(found.get(name), dict):
            _check_keys(found[name], section, f"{name}.", file)
    if isinstance(found.get("callers"), dict):
        for caller, given in found["callers"].items():
            if isinstance(given, dict):
                _check_keys(given, CallerConfig, f"callers.{caller}.", file)
    try:
        config = msgspec.convert(found, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file}: {error}") from error
    return _with_paths(config, file.absolute().parent)


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

    server = msgspec.structs.replace(
        config.server,
        keys=resolve(config.server.keys),
        state=resolve(config.server.state),
        secret=tuple(map(resolve, config.server.secret)),
        collateral=resolve(config.server.collateral),
        upstream_key=resolve(config.server.upstream_key),
        upstream_ca=resolve(config.server.upstream_ca),
    )
    return msgspec.structs.replace(config, trust=tuple(map(resolve, config.trust)), server=server)
