"""From settings and bundles to started models: what is found and checked before anything is served.

Refuses to start rather than to start weaker than asked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from garrison.bundle.folder import Folder
from garrison.bundle.manifest import MANIFEST_FILE
from garrison.bundle.private import why_not_private
from garrison.bundle.secret import read_secret, secret_path
from garrison.config import Config, ServerConfig
from garrison.crypto.owner import OwnerPublicKey, key_commitment
from garrison.enclave.host import Enclave, Launch, launch
from garrison.enclave.program import Program
from garrison.errors import BundleError, ConfigError, GuardError, KeyFileError
from garrison.limits import MIB
from garrison.protocol.addresses import is_loopback
from garrison.server.auth import ADDRESS, CERTIFICATE, SUBJECT, read_keys
from garrison.server.budgets import default_folder
from garrison.server.stores import scheme_of
from garrison.types import ANYBODY
from garrison.upstream.target import Target

_SNAPSHOTS = "callers"


class _Named(msgspec.Struct):
    name: str = ""


class _Peek(msgspec.Struct):
    """What is read of a manifest before it is verified, to choose what to start with; the enclave verifies it then."""

    guard: list[_Named] = []
    key_commitment: str = ""


def launch_all(
    config: Config,
    bundles: Sequence[Path],
    trusted: Sequence[OwnerPublicKey],
    *,
    lines: int = 0,
    signing_keys: Sequence[bytes] = (),
    programs: Sequence[Program] = (),
) -> list[Enclave]:
    """Verify and start all models.

    Args:
        config: the settings; among them how models are kept apart from the server.
        bundles: folders of sealed models.
        trusted: keys that may have signed them.
        lines: front workers that each want a pipe to each model.
        signing_keys: one a bundle, where several processes without an enclave must sign alike.
        programs: one a bundle, where they run already; to be ended by who started them, also if this fails.

    Raises:
        ConfigError: settings that cannot be, or are not safe.
        BundleError: a bundle must not be used.
        GuardError: a guard cannot be built, or a tightening would loosen it.
        KeyFileError: the misinformation key is missing or another model's.
        IsolationError: models cannot be kept apart as asked on this machine.
    """
    check_exposure(config)
    _check_isolation(config)
    _check_state(config.server.state)
    _check_callers(config)
    peeks = [_peek(bundle, config.limits.manifest_bytes) for bundle in bundles]
    _check_tightened(config, peeks)
    enclaves: list[Enclave] = []
    try:
        for k, (bundle, peek) in enumerate(zip(bundles, peeks, strict=True)):
            start = _start(config, bundle, peek, trusted)
            key = signing_keys[k] if signing_keys else None
            program = programs[k] if programs else None
            enclaves.append(_launch(config, replace(start, lines=lines, signing_key=key, program=program)))
    except BaseException:
        stop_all(enclaves)
        raise
    return enclaves


def stop_all(enclaves: Sequence[Enclave]) -> None:
    for enclave in enclaves:
        enclave.stop()


def check_exposure(config: Config) -> None:
    """Raise `ConfigError` where strangers could reach a server that knows nobody, or read what passes, unless that is asked for."""
    server, operations = config.server, config.operations
    if server.store:
        scheme_of(server.store)
    told_at = operations.metrics.rpartition(":")[0].strip("[]")
    if operations.metrics and not (is_loopback(told_at) or operations.metrics_open):
        raise ConfigError(
            f"metrics at {operations.metrics} would be told to whoever can reach it, without a key and without TLS: name an address of this machine, "
            "or say that this is meant (operations.metrics_open)"
        )
    if is_loopback(server.host):
        return
    if not (server.keys or config.oidc.issuer or server.tls_client_names or server.allow_anonymous):
        raise ConfigError(
            f"listening at {server.host} would let anybody ask without a key: give a key file (server.keys, --keys), "
            "or say that this is meant (server.allow_anonymous, --allow-anonymous)"
        )
    if not (server.tls_cert or server.insecure_plaintext):
        raise ConfigError(
            f"listening at {server.host} without TLS would show keys and inputs to whoever is on the way: give a certificate (server.tls_cert and "
            "server.tls_key, --tls-cert and --tls-key), or say that this is meant (server.insecure_plaintext, --insecure-plaintext)"
        )


def check_models(config: Config, names: Sequence[str]) -> None:
    """Raise `ConfigError` for quotas of a model that is not served: a misspelt name must not leave one without."""
    unknown = sorted(config.models.keys() - set(names))
    if unknown:
        raise ConfigError(f"models.{unknown[0]}: no such model is served, only {', '.join(names)}")


def state_folder(config: Config) -> Path:
    """Where budgets and snapshots of caller state are kept."""
    return Path(config.server.state) if config.server.state else default_folder()


def _check_isolation(config: Config) -> None:
    """Raise `ConfigError` for what an isolation cannot do: it must not be dropped in silence."""
    server = config.server
    if server.isolation in {"none", "sgx", "nitro"} and server.secret_heap:
        raise ConfigError(f"a secret heap (--secret-heap) takes --isolation process, found {server.isolation!r}")
    if server.isolation in {"sgx", "nitro"} and server.workers > 1:
        raise ConfigError(
            f"several workers (--workers) would each be an enclave with keys of its own; --isolation {server.isolation} takes one"
        )
    if (server.isolation == "nitro") != bool(server.enclave):
        raise ConfigError("--isolation nitro takes the enclave's address (--enclave CID:PORT), and nothing else does")
    if server.upstream and server.parameter_memory_mib:
        raise ConfigError("a gateway holds no parameters, so --parameter-memory has nothing to bound")


def _check_state(named: str) -> None:
    """Raise `ConfigError` for a folder of budgets that cannot be used, also where no model here needs one yet."""
    if not named:
        return
    folder = Path(named).absolute()
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"server.state, --state: {folder} cannot be a folder: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"server.state, --state: {folder} cannot be used: nothing may be written to {there}")


def _check_callers(config: Config) -> None:
    """Raise `ConfigError` for a policy or quota of a caller who cannot come: a misspelt name must not leave it without one."""
    server = config.server
    shown = bool(server.keys or config.oidc.issuer)
    # Where a key or token is shown too, its name counts.
    kinds = {SUBJECT: bool(config.oidc.issuer), CERTIFICATE: server.tls_client_names and not shown}
    by_address = not (shown or server.tls_client_names)
    known = read_keys(Path(server.keys)).keys if server.keys else {}
    for name in sorted(name for name in config.callers if name != ANYBODY):
        kind = name.partition(":")[0] + ":"
        if kinds.get(kind, False) or name in known or (by_address and name.startswith(ADDRESS)):
            continue
        if by_address:
            raise ConfigError(
                f'callers.{name}: there are no keys (server.keys), so callers are addresses, such as "{ADDRESS}127.0.0.1"'
            )
        raise ConfigError(
            f"callers.{name}: {server.keys or 'no key file'} holds no key of that name, only {', '.join(sorted(known)) or 'none'}; tokens name "
            f'"{SUBJECT}SUBJECT" (oidc), certificates "{CERTIFICATE}NAME" (server.tls_client_names)'
        )


def _start(config: Config, bundle: Path, peek: _Peek, trusted: Sequence[OwnerPublicKey]) -> Launch:
    mine = {named.name for named in peek.guard}
    tightened = {name: change for name, change in config.guard.items() if name in mine}
    key = _secret(config, bundle, peek)
    server = config.server
    return Launch(
        bundle,
        trusted,
        key,
        tightened,
        config.limits,
        parameter_memory=server.parameter_memory_mib * MIB or None,
        require=server.require_isolation,
        user=server.enclave_user,
        secret_heap_bytes=server.secret_heap_mib * MIB if server.secret_heap else 0,
        collateral=_collateral(server.collateral),
        upstream=_upstream(server),
        address=server.enclave,
        snapshots=state_folder(config) / _SNAPSHOTS,
        callers={name: caller.policy for name, caller in config.callers.items() if caller.policy is not None},
    )


def _upstream(server: ServerConfig) -> Target | None:
    """Where the model of a guard-only bundle runs; None where bundles hold their models."""
    if not server.upstream:
        return None
    return Target(
        server.upstream,
        key=_line_of(Path(server.upstream_key)) if server.upstream_key else "",
        authorities=Path(server.upstream_ca) if server.upstream_ca else None,
        insecure_plaintext=server.upstream_insecure_plaintext,
    )


def _line_of(file: Path) -> str:
    if why := why_not_private(file):
        raise ConfigError(f"server.upstream_key: {why}")
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"server.upstream_key: {file} cannot be read") from error


def _launch(config: Config, start: Launch) -> Enclave:
    enclave = launch(config.server.isolation, start)
    missed = {spec.name for spec in enclave.card.chain} & (config.guard.keys() - start.tightened.keys())
    if missed:
        enclave.stop()
        raise GuardError(
            f"{start.bundle}: its guard changed while it was started; {sorted(missed)} would not be tightened"
        )
    return enclave


def _collateral(folder: str) -> dict[str, bytes]:
    if not folder:
        return {}
    try:
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}
    except OSError as error:
        raise ConfigError(f"server.collateral: expected a folder of files at {folder}: {error.strerror}") from error


def _peek(bundle: Path, most: int) -> _Peek:
    try:
        with Folder(bundle) as folder:
            return msgspec.json.decode(folder.read(MANIFEST_FILE, most), type=_Peek)
    except (BundleError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Peek()  # verification says what is wrong with it


def _check_tightened(config: Config, peeks: Sequence[_Peek]) -> None:
    known = {named.name for peek in peeks for named in peek.guard}
    unknown = sorted(config.guard.keys() - known)
    if unknown and known:
        raise ConfigError(f"guard.{unknown[0]}: no model here has such a defense, only {', '.join(sorted(known))}")


def _secret(config: Config, bundle: Path, peek: _Peek) -> bytes | None:
    """The misinformation key that fits the bundle; of those named, else the file beside it."""
    if not peek.key_commitment:
        return None
    beside = secret_path(bundle)
    files = [Path(name) for name in config.server.secret] or ([beside] if beside.exists() else [])
    if not files:
        raise KeyFileError(
            f"the guard of {bundle} needs the model's misinformation key: expected it at {beside}, or name its file with --secret "
            "or GARRISON_SECRET"
        )
    keys = [read_secret(file) for file in files]
    return next((key for key in keys if key_commitment(key) == peek.key_commitment), keys[0])
