"""The composition root: from settings and bundles to a running server, and down again.

    assembly = assemble(config, [Path("BUNDLE")], trusted)
    run(assembly, on_ready=lambda url: print(url))      # until SIGTERM or SIGINT

Refuses to start rather than to start weaker than asked: a bundle that does not verify, a tightening that matches no model, and
listening beyond this machine without keys are errors.
"""

from __future__ import annotations

import asyncio
import gc
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
from garrison.enclave.program import Program
from garrison.errors import ConfigError, UnavailableError
from garrison.server.app import App
from garrison.server.auth import Authenticator
from garrison.server.budgets import BudgetBook
from garrison.server.hosting import Hosting, make_model
from garrison.server.launching import check_exposure, launch_all, state_folder, stop_all
from garrison.server.listening import MOST_CONNECTIONS, listen, raise_descriptors, url_of
from garrison.server.operator import OperatorSocket, open_operator
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
        operator: for who may see alarms and clear them; None where no model watches its callers.
    """

    config: Config
    hosting: Hosting
    app: App
    rsgi: RsgiApp
    enclaves: tuple[Enclave, ...]
    worker: ThreadPoolExecutor
    book: BudgetBook | None
    state: Path | None
    operator: OperatorSocket | None = None

    def tidy(self) -> None:
        """Give back budgets that nobody uses, and notice enclaves that have gone. May wait for the disk."""
        for enclave in self.enclaves:
            if isinstance(enclave, Swept):
                enclave.sweep()
        if self.book is not None:
            try:
                self.book.give_back_idle()
            except sqlite3.Error as error:
                logger.warning("unused budgets could not be given back: %s", error)

    def close(self) -> None:
        """Give back what is held. Only when nothing is being answered any more."""
        if self.operator is not None:
            self.operator.close()
        self.worker.shutdown(wait=False, cancel_futures=True)
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
        return replace(assembly, operator=open_operator(state_folder(config), enclaves))
    except BaseException:
        stop_all(enclaves)
        raise


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
