"""The log of an enclave's process. It goes to the host, so it must not tell what clients sent.

Our own messages hold no input. The message of an exception may: libraries like to quote the value that they could not read. So of an exception
only its types and the places in the code are written down.

Its standard error does not block (`garrison.enclave.log_relay`): a line that does not fit is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

_Info = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
_MOST_CAUSES = 8


class _Lossy(logging.StreamHandler[TextIO]):
    """Loses what cannot be written now."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a log is not worth an answer
            os.write(self.stream.fileno(), (self.format(record) + self.terminator).encode(errors="replace"))


class PlacesOnly(logging.Formatter):
    """Writes exceptions without their messages."""

    def formatException(self, ei: _Info) -> str:  # noqa: N802  the name of the class above
        return "\n".join(_lines(ei[1]))


def write_log() -> None:
    """Have this process log so, to its standard error."""
    handler = _Lossy(sys.stderr)
    handler.setFormatter(PlacesOnly("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _lines(error: BaseException | None) -> Iterator[str]:
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        yield f"{type(error).__name__} (its message is left out: it may hold what a client sent)"
        places = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False)
        yield from (f"  {place.filename}:{place.lineno} in {place.name}" for place in places)
        error = error.__cause__ or error.__context__
