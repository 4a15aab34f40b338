"""Where the rows that callers have used are counted: SQLite in the state folder, or a database that several machines share.

    open_store("", folder)                                    SQLite
    open_store("postgresql://garrison@db.example.org/garrison", folder)
    open_store("valkeys://:password@counts.example.org:6379/0", folder)

To add one: a class that keeps `garrison.server.stores.base.Store`, and a line in `STORES`. The contract test runs over them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from garrison.errors import ConfigError
from garrison.server.stores.base import Store
from garrison.server.stores.sqlite import SqliteStore

STORES = {
    "postgresql": "garrison.server.stores.postgres:PostgresStore",
    "postgres": "garrison.server.stores.postgres:PostgresStore",
    "redis": "garrison.server.stores.redis:RedisStore",
    "rediss": "garrison.server.stores.redis:RedisStore",
    "valkey": "garrison.server.stores.redis:RedisStore",
    "valkeys": "garrison.server.stores.redis:RedisStore",
}
"""By the scheme of a URL, "module:Class"; called with the URL."""


def open_store(url: str, folder: Path, *, may_forget: bool = False) -> Store:
    """A store that can be used.

    Args:
        url: of a database; "" for SQLite.
        folder: where SQLite keeps its file.
        may_forget: take a database that says it may lose its last second.

    Raises:
        ConfigError: the URL cannot be used, or what is there may forget or is something else.
        MissingExtraError: the library for it is not installed.
    """
    if not url:
        return SqliteStore(folder)
    scheme = scheme_of(url)
    module, _, name = STORES[scheme].partition(":")
    return cast("Store", getattr(importlib.import_module(module), name)(url, may_forget=may_forget))


def scheme_of(url: str) -> str:
    """The scheme, checked.

    Raises:
        ConfigError: it is not in `STORES`, or there is no URL.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in STORES or "://" not in url:
        raise ConfigError(
            f"server.store, --store: expected a URL that begins with one of {', '.join(STORES)}; found {scheme[:32]!r}"
        )
    return scheme


def in_words(url: str) -> str:
    """A store's URL without its password."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return url.partition("://")[0]
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"
