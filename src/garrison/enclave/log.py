"""The log of an enclave's process. It goes to the host, so it must not tell what clients sent.

Our own messages hold no input. The message of an exception may: libraries like to quote the value that they could not read. So of an exception
only its types and the places in the code are written down.

Its standard error does not block (`garrison.enclave.log_relay`): a line that does not fit is lost.

With `GARRISON_LOG=json` every process of a server writes one JSON object a line. The server sets it, from `[operations] log`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import TextIO

import msgspec

VARIABLE, JSON = "GARRISON_LOG", "json"
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
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


class JsonLines(PlacesOnly):
    """One JSON object a line: `time` (UTC), `level`, `logger`, `process`, `message`, and where there is one `exception`, as `PlacesOnly` has it."""

    def format(self, record: logging.LogRecord) -> str:
        at = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        line = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage().encode(errors="replace").decode(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def wants_json() -> bool:
    """Whether this process is to write JSON."""
    return os.environ.get(VARIABLE) == JSON


def write_log() -> None:
    """Have this process log so, to its standard error."""
    handler = _Lossy(sys.stderr)
    handler.setFormatter(JsonLines() if wants_json() else PlacesOnly(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def write_server_log(form: str | None = None, text: str = TEXT) -> None:
    """Have a process of the server log to its standard error.

    Args:
        form: "json" or "text", for this process and all that it starts; None for what whoever started it wants.
        text: the form of a line of text.
    """
    if form is not None:
        os.environ[VARIABLE] = form
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if wants_json() else logging.Formatter(text))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _lines(error: BaseException | None) -> Iterator[str]:
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        yield f"{type(error).__name__} (its message is left out: it may hold what a client sent)"
        places = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False)
        yield from (f"  {place.filename}:{place.lineno} in {place.name}" for place in places)
        error = error.__cause__ or error.__context__
