"""A server's ledger: the one thing that the rest of the server knows of this room.

ledger = open_ledger(config, enclaves)                  # None where none is kept
batcher = Batcher(..., recorder=ledger.recorder("mlp", 1))
ledger.act("alarms.clear", user=0, caller="alice")      # on the disk when this returns
ledger.close()
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import garrison
from garrison.bundle.manifest import parse_manifest
from garrison.config import Config
from garrison.enclave.host import Enclave, ServiceCard
from garrison.errors import GarrisonError
from garrison.limits import MIB
from garrison.server.ledger.notary import Notary
from garrison.server.ledger.reader import chain_ids
from garrison.server.ledger.recorder import Recorder
from garrison.server.ledger.records import Act, ServedModel, Start, Stop
from garrison.server.ledger.retention import prune
from garrison.server.ledger.writer import Writer

logger = logging.getLogger(__name__)

DISK: Callable[[int], None] = os.fdatasync
"""Has the disk write what a file holds."""
_HOUR, _DAY = 3600.0, 86_400.0


class Ledger:
    """One chain of a ledger, and who has it signed. For every thread.

    Args:
        config: the settings.
        enclaves: started; they sign.
        sync: see `Writer`.

    Raises:
        ConfigError: the folder cannot be used, or is not safe.
        LedgerError: the chain was tampered with.
        UnavailableError: it cannot be written.
    """

    def __init__(
        self,
        config: Config,
        enclaves: Sequence[Enclave],
        *,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self._settings = config.ledger
        self._writer = Writer(
            Path(config.ledger.folder),
            segment_bytes=int(config.ledger.segment_mib * MIB),
            segment_seconds=config.ledger.segment_hours * _HOUR,
            sync=sync,
        )
        try:
            ids = chain_ids(Path(config.ledger.folder))
            beside = tuple(ids[name] for name in sorted(ids) if name != self._writer.path.name)
            self._writer.write(lambda seq, now: _start(seq, now, config, enclaves, self._writer.cut, beside))
        except GarrisonError:
            self._writer.close()
            raise
        self._notary = Notary(self._writer, enclaves, config.ledger.checkpoint_seconds)
        self._next_prune = 0.0

    @property
    def folder(self) -> Path:
        """The chain's."""
        return self._writer.path

    @property
    def entries(self) -> int:
        """Entries on the disk."""
        return self._writer.position[0] + 1

    def recorder(self, model: str, version: int) -> Recorder:
        """For one model's queue."""
        return Recorder(self._writer, model, version)

    def why_not_ready(self) -> str:
        """Why no answer could leave just now; "" where it could."""
        return self._writer.why_not()

    def act(self, act: str, user: int = -1, **details: str) -> None:
        """Write down what is about to be done.

        Raises:
            UnavailableError: it cannot be; then it must not be done either.
        """
        self._writer.write(lambda seq, now: Act(seq, now, act, user, details))

    def sign(self) -> None:
        """Have all that is on the disk signed now.

        Raises:
            UnavailableError: no enclave answers, or the disk fails.
        """
        self._notary.now()

    def tidy(self) -> None:
        """Drop what is older than the settings say; to be called now and then."""
        days, now = self._settings.keep_days, time.time()
        if not days or now < self._next_prune:
            return
        self._next_prune = now + _HOUR
        try:
            for stub in prune(self.folder, now - days * _DAY):
                logger.info("ledger: entries %d to %d are older than %g days, and are dropped", *stub, days)
        except (GarrisonError, OSError) as error:
            logger.warning("old entries of the ledger are not dropped: %s", error)

    def close(self) -> None:
        """Say that the server stops, have that signed, and give the chain back. While the enclaves still answer."""
        self._notary.stop()
        try:
            self._writer.write(Stop)
        except GarrisonError as error:
            logger.warning("the ledger ends without its last line: %s", error)
        self._notary.last_look()
        self._writer.close()


def open_ledger(config: Config, enclaves: Sequence[Enclave]) -> Ledger | None:
    """The ledger that the settings ask for; None for none. See `Ledger`."""
    return Ledger(config, enclaves, sync=DISK) if config.ledger.folder else None


def _start(
    seq: int, now: float, config: Config, enclaves: Sequence[Enclave], cut: int, beside: tuple[str, ...]
) -> Start:
    policies = {name: {k: v for k, v in msgspec.to_builtins(c).items() if v} for name, c in config.callers.items()}
    models = tuple(_served(enclave.card) for enclave in enclaves)
    return Start(seq, now, garrison.__version__, models, config.guard, policies, cut, beside)


def _served(card: ServiceCard) -> ServedModel:
    manifest = parse_manifest(card.manifest_json)
    return ServedModel(manifest.name, manifest.version, card.manifest_digest, card.guard_digest, card.isolation)
