"""The composition root: from settings and bundles to a running server, and down again.

    assembly = assemble(config, [Path("BUNDLE")], trusted)
    run(assembly, on_ready=lambda url: print(url))      # until SIGTERM or SIGINT

Refuses to start rather than to start weaker than asked: a bundle that does not verify, a tightening that matches no model, and
listening beyond this machine without keys are errors.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import signal
import socket
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from garrison.bundle.folder import Folder
from garrison.bundle.manifest import MANIFEST_FILE
from garrison.bundle.secret import read_secret, secret_path
from garrison.config import Config
from garrison.crypto.owner import OwnerPublicKey, key_commitment
from garrison.enclave.host import Enclave, Launch, launch
from garrison.enclave.program import Program
from garrison.errors import BundleError, ConfigError, GuardError, KeyFileError, UnavailableError
from garrison.limits import MIB
from garrison.server.app import App
from garrison.server.auth import Authenticator
from garrison.server.budgets import BudgetBook, default_folder
from garrison.server.hosting import Hosting, make_model
from garrison.server.line import LineEnclave
from garrison.server.listening import MOST_CONNECTIONS, listen, raise_descriptors, url_of
from garrison.server.rsgi import RsgiApp, make_server

try:
    from uvloop import run as _run_loop
except ImportError:  # on systems that it does not know
    from asyncio import run as _run_loop  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_OBJECTS_BEFORE_COLLECTION = 10_000
_TIDY_SECONDS = 1.0

OnReady = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Assembly:
    """All parts of a server, started but for the listening.

    Attributes:
        state: the folder where budgets are kept; None where no model has one.
    """

    config: Config
    hosting: Hosting
    app: App
    rsgi: RsgiApp
    enclaves: tuple[Enclave, ...]
    worker: ThreadPoolExecutor
    book: BudgetBook | None
    state: Path | None

    def tidy(self) -> None:
        """Give back budgets that nobody uses, and notice enclaves that have gone. May wait for the disk."""
        for enclave in self.enclaves:
            if isinstance(enclave, LineEnclave):
                enclave.sweep()
        if self.book is not None:
            try:
                self.book.give_back_idle()
            except sqlite3.Error as error:
                logger.warning("unused budgets could not be given back: %s", error)

    def close(self) -> None:
        """Give back what is held. Only when nothing is being answered any more."""
        self.worker.shutdown(wait=False, cancel_futures=True)
        for enclave in self.enclaves:
            enclave.stop()
        if self.book is not None:
            self.book.close()


class _Named(msgspec.Struct):
    name: str = ""


class _Peek(msgspec.Struct):
    """What is read of a manifest before it is verified, to choose what to start with; the enclave verifies it then."""

    guard: list[_Named] = []
    key_commitment: str = ""


def assemble(
    config: Config,
    bundles: Sequence[Path],
    trusted: Sequence[OwnerPublicKey],
    signing_keys: Sequence[bytes] = (),
    programs: Sequence[Program] = (),
) -> Assembly:
    """Verify and start all models, and put a server around them; see `launch_all`."""
    enclaves = launch_all(config, bundles, trusted, signing_keys=signing_keys, programs=programs)
    try:
        return assemble_enclaves(config, enclaves)
    except BaseException:
        stop_all(enclaves)
        raise


def stop_all(enclaves: Sequence[Enclave]) -> None:
    for enclave in enclaves:
        enclave.stop()


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


def assemble_enclaves(config: Config, enclaves: Sequence[Enclave]) -> Assembly:
    """The server around enclaves that are started already.

    Raises:
        ConfigError: no enclave, two of the same model and version, a bad key file, no place for budgets.
    """
    check_exposure(config)
    authenticator = Authenticator(Path(config.server.keys) if config.server.keys else None)
    state, book = None, None
    if any(enclave.card.budget_rows for enclave in enclaves):
        state = state_folder(config)
        book = BudgetBook(state)
    # One for each model, and one for what the disk takes.
    worker = ThreadPoolExecutor(max_workers=len(enclaves) + 1, thread_name_prefix="garrison-model")
    try:
        hosting = Hosting(make_model(enclave, book, worker, config.limits) for enclave in enclaves)
    except ConfigError:
        if book is not None:
            book.close()
        raise
    app = App(hosting, config.limits)
    return Assembly(config, hosting, app, RsgiApp(app, authenticator), tuple(enclaves), worker, book, state)


def check_exposure(config: Config) -> None:
    """Raise `ConfigError` where strangers could reach a server that knows no keys, unless that is asked for."""
    server = config.server
    if server.keys or server.allow_anonymous or _is_loopback(server.host):
        return
    raise ConfigError(
        f"listening at {server.host} would let anybody ask without a key: give a key file (server.keys, --keys), "
        "or say that this is meant (server.allow_anonymous, --allow-anonymous)"
    )


def run(
    assembly: Assembly,
    on_ready: OnReady,
    listener: socket.socket | None = None,
    on_loop: Callable[[Callable[[], None]], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight.

    Args:
        assembly: the parts; closed at the end.
        on_ready: called with the server's URL once it listens.
        listener: a socket that listens already; None to make one. SIGINT is left to who made it.
        on_loop: called with what stops the server too, from whichever thread.
    """
    signals = (signal.SIGTERM, signal.SIGINT) if listener is None else (signal.SIGTERM,)
    listening = listener or listen(assembly.config.server.host, assembly.config.server.port)
    connections = raise_descriptors()
    gc.collect()
    gc.freeze()  # what lives as long as the server need not be looked at again
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)  # requests leave next to no cycles behind

    async def until_signal() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        if on_loop is not None:
            on_loop(lambda: _tell(loop, stop))
        await _serve(assembly, listening, connections, on_ready, stop.wait())

    _run_loop(until_signal())


def _tell(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with suppress(RuntimeError):  # it has ended already
        loop.call_soon_threadsafe(stop.set)


@contextmanager
def background(assembly: Assembly) -> Iterator[str]:
    """A server in a thread of this process, for tests and demonstrations. Yields its URL; stops at the end."""
    started: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()
    listener = listen(assembly.config.server.host, assembly.config.server.port)

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def on_ready(url: str) -> None:
            started.append((url, loop, stop))
            ready.set()

        await _serve(assembly, listener, MOST_CONNECTIONS, on_ready, stop.wait())

    def work() -> None:
        try:
            _run_loop(main())
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="garrison-server", daemon=True)
    thread.start()
    ready.wait()
    if not started:
        raise ConfigError("the server did not start; its log says why")
    url, loop, stop = started[0]
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _serve(
    assembly: Assembly, listener: socket.socket, connections: int, on_ready: OnReady, stop: Awaitable[object]
) -> None:
    limits = assembly.config.limits
    url = url_of(listener)
    server = make_server(assembly.rsgi, listener, limits.header_read_seconds, connections)
    serving = asyncio.ensure_future(server.serve())
    tidying = [asyncio.ensure_future(work) for work in (assembly.rsgi.sweep(), _tidy(assembly))]
    stopping = asyncio.ensure_future(stop)
    try:
        await asyncio.sleep(0)
        on_ready(url)
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            raise UnavailableError("the web server has ended by itself; its log may say why")
        assembly.app.stopping = True
        server.stop()
        _, late = await asyncio.wait({serving}, timeout=limits.stop_seconds)
        if late:
            logger.warning(
                "after %g s %d requests are still in flight; stopping", limits.stop_seconds, assembly.rsgi.in_flight
            )
    finally:
        for task in (*tidying, stopping):
            task.cancel()
        assembly.close()


async def _tidy(assembly: Assembly) -> None:
    """What is to be done now and then and may wait for a disk, until cancelled."""
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        with suppress(RuntimeError):  # no threads any more: the server is ending
            await asyncio.get_running_loop().run_in_executor(assembly.worker, assembly.tidy)


def _check_isolation(config: Config) -> None:
    """Raise `ConfigError` for what an isolation cannot do: it must not be dropped in silence."""
    server = config.server
    if server.isolation in {"none", "sgx"} and server.secret_heap:
        raise ConfigError(f"a secret heap (--secret-heap) takes --isolation process, found {server.isolation!r}")
    if server.isolation == "sgx" and server.workers > 1:
        raise ConfigError(
            "several workers (--workers) would each be an enclave with keys of its own; --isolation sgx takes one"
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
    )


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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def state_folder(config: Config) -> Path:
    """Where budgets are kept."""
    return Path(config.server.state) if config.server.state else default_folder()
