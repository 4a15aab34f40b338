"""An answer that the event loop waits for itself, as it does for its clients: no thread has to be woken to wait for it, and none to wake the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

THREAD_SECONDS = 1.0
"""What takes longer is waited for by a thread, which gives up when it has been too long."""


def when_readable(descriptor: int, then: Callable[[bool], None]) -> None:
    """Call back once, on the running event loop: with True when the descriptor can be read, with False after `THREAD_SECONDS`.

    Raises:
        OSError: the system cannot watch it.
    """
    loop = asyncio.get_running_loop()

    def end(there: bool) -> None:  # noqa: FBT001  a callback
        loop.remove_reader(descriptor)
        late.cancel()
        then(there)

    loop.add_reader(descriptor, end, True)  # noqa: FBT003  a callback's
    late = loop.call_later(THREAD_SECONDS, end, False)  # noqa: FBT003  a callback's
