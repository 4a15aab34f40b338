"""SIGHUP: API keys, quotas and some limits are read again, and what is in flight goes on.

What is read again of `garrison.toml`: `rows_per_day` and `requests_per_second` of callers and models, and the limits in `LIMITS`. Everything else, and above all the guard, takes
a restart: it was agreed with the enclaves when they started. A file that cannot be read changes nothing, and is said.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from garrison.config import SETTINGS_VARIABLE, Config, load_config
from garrison.errors import ConfigError
from garrison.limits import Limits
from garrison.server.admission import Admission
from garrison.server.rsgi import RsgiApp

logger = logging.getLogger(__name__)

LIMITS = ("queue_requests", "queue_seconds", "queue_bytes", "inline_rows", "body_read_seconds", "evidence_requests")
_NO_MORE = frozenset({"queue_requests", "queue_bytes"})
"""The enclaves' pipes were made for so much: they can be lowered, and raised again to what they were at the start."""


def reload(started: Config, admission: Admission, rsgi: RsgiApp, counts: bool) -> None:  # noqa: FBT001  a signal handler's argument
    """Read keys, quotas and limits again. To be called on the event loop.

    Args:
        started: the settings at the start.
        counts: whether rows are counted, so that they can be limited.
    """
    admission.read_keys_again()
    file = os.environ.get(SETTINGS_VARIABLE)
    if not file:
        return
    try:
        config = load_config(Path(file))
    except ConfigError as error:
        logger.error("the settings were not read again: %s", error)  # noqa: TRY400  the message says all
        return
    quotas = admission.quotas
    if not counts and quotas.would_count(config.callers, config.models):
        logger.warning("rows_per_day takes a restart: no rows were counted so far")
    else:
        quotas.use(config.callers, config.models)
    rsgi.use(changed(started.limits, config.limits))
    logger.info("quotas and limits were read again from %s", file)
    if _rest(started) != _rest(config):
        logger.warning("other settings have changed too; they take a restart")


def changed(started: Limits, now: Limits) -> Limits:
    """The limits at the start with those of `LIMITS` as they are now."""
    found = {name: getattr(now, name) for name in LIMITS}
    found |= {name: min(found[name], getattr(started, name)) for name in _NO_MORE}
    return msgspec.structs.replace(started, **found)


def _rest(config: Config) -> tuple[object, ...]:
    """What is not read again, and does not come from the command line."""
    releases = {name: caller.policy for name, caller in config.callers.items() if caller.policy is not None}
    limits = {name: value for name, value in msgspec.structs.asdict(config.limits).items() if name not in LIMITS}
    ledger = msgspec.structs.replace(config.ledger, folder="")  # which --ledger may name
    return releases, limits, config.oidc, ledger, config.operations
