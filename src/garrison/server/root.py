"""The composition root: from settings and bundles to a running server, and down again.

    assembly = assemble(config, [Path("BUNDLE")], trusted)
    run(assembly, on_ready=lambda url: print(url))      # until SIGTERM or SIGINT

Refuses to start rather than to start weaker than asked: a bundle that does not verify, a tightening that matches no model, and
listening beyond this machine without keys are errors.
"""

from __future__ import annotations

import asyncio
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

from garrison.config import Config
from garrison.crypto.owner import OwnerPublicKey
from garrison.enclave.host import Enclave, Swept
from garrison.enclave.memory import settle
from garrison.enclave.program import Program
from garrison.errors import ConfigError, GarrisonError, UnavailableError
from garrison.server.admission import Admission
from garrison.server.app import App
from garrison.server.auth import Authenticator
from garrison.server.budgets import BudgetBook
from garrison.server.client_names import LOOPBACK, NamedConnections
from garrison.server.grpc import Beside, make_grpc
from garrison.server.hosting import Hosting, make_model
from garrison.server.launching import check_exposure, check_models, launch_all, state_folder, stop_all
from garrison.server.ledger.ledger import Ledger, open_ledger
from garrison.server.listening import MOST_CONNECTIONS, listen, raise_descriptors, url_of
from garrison.server.operations import Operations, open_tracing
from garrison.server.operator import OperatorSocket, open_operator
from garrison.server.quotas import Quotas
from garrison.server.reload import reload
from garrison.server.rsgi import RsgiApp, WebServer, make_server
from garrison.server.signing import signatures_of
from garrison.server.stores import open_store
from garrison.server.tls import Certificates, certificates

try:
    from uvloop import run as _run_loop
except ImportError:  # on systems that it does not know
    from asyncio import run as _run_loop  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_TIDY_SECONDS = 1.0

OnReady = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Assembly:
    """All parts of a server, started but for the listening.

    Attributes:
        state: the folder where budgets are kept; None where no model has one.
        operator: for who may see alarms and clear them; None where no model watches its callers.
        tls: for HTTPS; None for plain HTTP.
        names: where client certificates name callers.
        ledger: what is written down; None for nothing.
        grpc: where it is asked for.
        operations: metrics, and who is told of alarms; None in a front worker, whose server has them.
    """

    config: Config
    hosting: Hosting
    app: App
    rsgi: RsgiApp
    enclaves: tuple[Enclave, ...]
    worker: ThreadPoolExecutor
    book: BudgetBook | None
    state: Path | None
    admission: Admission
    operator: OperatorSocket | None = None
    tls: Certificates | None = None
    names: NamedConnections | None = None
    ledger: Ledger | None = None
    grpc: Beside | None = None
    operations: Operations | None = None

    def tidy(self) -> None:
        """Give back budgets that nobody uses, and notice enclaves that have gone. May wait for the disk."""
        for enclave in self.enclaves:
            if isinstance(enclave, Swept):
                enclave.sweep()
        if self.ledger is not None:
            self.ledger.tidy()
        if self.book is not None:
            try:
                self.book.give_back_idle()
            except (sqlite3.Error, UnavailableError) as error:
                logger.warning("unused budgets could not be given back: %s", error)

    def close(self) -> None:
        """Give back what is held. Only when nothing is being answered any more."""
        if self.rsgi.tracing is not None:
            self.rsgi.tracing.close()
        if self.operations is not None:
            self.operations.close()
        if self.operator is not None:
            self.operator.close()
        self.worker.shutdown(wait=False, cancel_futures=True)
        if self.ledger is not None:
            self.ledger.close()  # while the enclaves still sign
        for enclave in self.enclaves:
            enclave.stop()
        if self.book is not None:
            self.book.close()


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
        assembly = assemble_enclaves(config, enclaves)
        operations = Operations(config.operations, enclaves, lambda: [assembly.rsgi.counted()])
        operator = open_operator(state_folder(config), enclaves, assembly.ledger)
        return replace(assembly, operator=operator, operations=operations)
    except BaseException:
        stop_all(enclaves)
        raise


def assemble_enclaves(config: Config, enclaves: Sequence[Enclave]) -> Assembly:
    """The server around enclaves that are started already.

    Raises:
        ConfigError: no enclave, two of the same model and version, a bad key file, no place for budgets, or for the ledger.
        LedgerError: the ledger was tampered with.
    """
    check_exposure(config)
    tls = certificates(config.server)
    names = NamedConnections() if tls is not None and tls.names else None
    authenticator = Authenticator(
        Path(config.server.keys) if config.server.keys else None,
        config.oidc,
        None if names is None else names.name_of,
    )
    quotas = Quotas(config.callers, config.models, authenticator.entry, lambda: authenticator.limits)
    state, book = None, None
    if quotas.count_rows or any(enclave.card.budget_rows for enclave in enclaves):
        state = state_folder(config)
        book = BudgetBook(open_store(config.server.store, state, may_forget=config.server.store_may_forget))
        book.keep_ahead()
    # One for each model, and one for what the disk takes.
    worker = ThreadPoolExecutor(max_workers=len(enclaves) + 1, thread_name_prefix="garrison-model")
    ledger = None
    try:
        ledger = open_ledger(config, enclaves)
        hosting = Hosting(make_model(enclave, book, worker, config.limits, quotas, ledger) for enclave in enclaves)
        check_models(config, hosting.names)
    except GarrisonError:
        if book is not None:
            book.close()
        if ledger is not None:
            ledger.close()
        raise
    app = App(hosting, config.limits)
    admission = Admission(authenticator, quotas)
    rsgi = RsgiApp(app, admission, signatures_of(config.server))
    rsgi.tracing = open_tracing(config.operations)
    grpc = make_grpc(config.server, app, admission, rsgi.held)
    if grpc is not None:
        grpc.tracing = rsgi.tracing
    return Assembly(
        config,
        hosting,
        app,
        rsgi,
        tuple(enclaves),
        worker,
        book,
        state,
        admission,
        tls=tls,
        names=names,
        ledger=ledger,
        grpc=grpc,
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
    settle()

    async def until_signal() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        parts = (assembly.config, assembly.admission, assembly.rsgi, assembly.book is not None)
        loop.add_signal_handler(signal.SIGHUP, reload, *parts)
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
    url = url_of(listener, tls=assembly.tls is not None)
    server = await _listen(assembly, listener, connections)
    serving = asyncio.ensure_future(server.serve())
    tidying = [asyncio.ensure_future(work) for work in (assembly.rsgi.sweep(), _tidy(assembly))]
    stopping = asyncio.ensure_future(stop)
    try:
        await asyncio.sleep(0)
        if assembly.grpc is not None:
            await _start(assembly.grpc, server)
        on_ready(url)
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            raise UnavailableError("the web server has ended by itself; its log may say why")
        assembly.app.stopping = True
        if assembly.names is not None:
            assembly.names.stop()
        server.stop()
        beside = None if assembly.grpc is None else asyncio.ensure_future(assembly.grpc.stop(limits.stop_seconds))
        _, late = await asyncio.wait({serving}, timeout=limits.stop_seconds)
        if beside is not None:
            await beside
        if late:
            logger.warning(
                "after %g s %d requests are still in flight; stopping", limits.stop_seconds, assembly.rsgi.in_flight
            )
    finally:
        for task in (*tidying, stopping):
            task.cancel()
        if assembly.grpc is not None:
            await assembly.grpc.stop(0)
        if assembly.names is not None:
            assembly.names.close()
        try:
            for model in assembly.hosting:
                await model.batcher.close()
        finally:
            assembly.close()


async def _listen(assembly: Assembly, listener: socket.socket, connections: int) -> WebServer:
    """The web server at the listener, or behind what ends TLS there."""
    seconds, tls = assembly.config.limits.header_read_seconds, assembly.tls
    if assembly.names is None or tls is None:
        return make_server(assembly.rsgi, listener, seconds, connections, tls)
    inner = listen(LOOPBACK, 0)
    address = inner.getsockname()[:2]
    server = make_server(assembly.rsgi, inner, seconds, connections)
    # Each takes three descriptors: to its client, to the web server, and the web server's end.
    await assembly.names.start(listener, tls, address, seconds, max(1, connections // 3))
    return server


async def _start(beside: Beside, server: WebServer) -> None:
    try:
        await beside.start()
    except BaseException:
        server.stop()
        raise


async def _tidy(assembly: Assembly) -> None:
    """What is to be done now and then and may wait for a disk, until cancelled."""
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        try:
            await asyncio.get_running_loop().run_in_executor(assembly.worker, assembly.tidy)
        except RuntimeError:  # no threads any more: the server is ending
            continue
        except Exception:
            logger.exception("what is done now and then could not be done; it is tried again")
