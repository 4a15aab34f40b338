"""Has the enclaves sign how far a chain goes, and writes down what happens beside requests: enclaves that come, alarms that ring. On a thread of its own, as
enclaves are waited for.

Invariant: only what is on the disk is signed. Where no enclave can sign, the ledger goes on, and the next checkpoint covers it. One enclave signs as long as it answers, since each knows only
what it signed itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from garrison.bundle.manifest import parse_manifest
from garrison.enclave.host import Alarm, Watching, Witnessing
from garrison.enclave.host import Enclave as RunningEnclave
from garrison.errors import GarrisonError, LedgerError, MalformedRequestError, NotFoundError, UnavailableError
from garrison.protocol.checkpoint import SignedCheckpoint
from garrison.server.ledger.folder import LATEST, replace_file
from garrison.server.ledger.records import AlarmRang, Checkpoint, Enclave, evidence_nonce
from garrison.server.ledger.trail import Trail
from garrison.server.ledger.writer import Writer

logger = logging.getLogger(__name__)

ALARM_SECONDS = 5.0
WATCH = "watch"
_CLOSE_SECONDS = 10.0


class Notary:
    """See the module's docstring.

    Args:
        writer: of the chain.
        enclaves: any of them may sign.
        seconds: between two checkpoints, where there is something to sign.
    """

    def __init__(self, writer: Writer, enclaves: Sequence[RunningEnclave], seconds: float) -> None:
        self._writer = writer
        self._enclaves = tuple(enclaves)
        self._seconds = seconds
        self._signed_at = -1
        self._trail = Trail(writer.path)
        self._signer = 0
        self._lost: set[bytes] = set()
        self._present: dict[int, tuple[bytes, int]] = {}
        self._rang: dict[tuple[int, str, str], Alarm] = {}
        self._next_look = 0.0
        self._told_of: str = ""
        self._turn = threading.Lock()
        self._stopping = threading.Event()
        with suppress(
            GarrisonError
        ):  # before the first answer, so that the enclave sees all that comes; evidence may take a while, and comes later
            self._sign()
        self._thread = threading.Thread(target=self._work, name="garrison-notary", daemon=True)
        self._thread.start()

    def now(self) -> None:
        """One round at once."""
        with self._turn:
            self._note_enclaves()
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + ALARM_SECONDS
                self._note_alarms()
            self._sign()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(_CLOSE_SECONDS)

    def last_look(self) -> None:
        """What rang since the last look, and a last signature, while the enclaves still answer."""
        self._next_look = 0.0
        self._round()

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._round()
            self._stopping.wait(self._seconds)

    def _round(self) -> None:
        try:
            self.now()
            self._told_of = ""
        except GarrisonError as error:
            if type(error).__name__ != self._told_of:  # once, and not every second
                self._told_of = type(error).__name__
                logger.warning("the ledger is not signed just now: %s", error)
        except Exception:
            logger.exception("the ledger's checkpoints fail")

    def _note_enclaves(self) -> None:
        """Whoever signs answers from here on; anew at the head of each file, so that none needs another to be checked."""
        for k, enclave in enumerate(self._enclaves):
            card, files = enclave.card, self._writer.files
            if self._present.get(k) == (card.public_key, files):
                continue
            manifest, key = parse_manifest(card.manifest_json), card.public_key.hex()
            try:
                evidence = enclave.evidence(evidence_nonce(self._writer.ledger, key))
                if evidence.keys.signing != card.public_key:
                    continue  # another has taken its place just now
            except NotFoundError:
                evidence = None
            except UnavailableError:
                continue
            self._writer.write(
                lambda seq, now, m=manifest, c=card, key=key, e=evidence: Enclave(  # type: ignore[misc]
                    seq, now, m.name, m.version, key, c.manifest_digest, c.guard_digest, c.isolation, e
                )
            )
            self._present[k] = card.public_key, files

    def _note_alarms(self) -> None:
        for k, enclave in enumerate(self._enclaves):
            if not isinstance(enclave, Watching) or not any(spec.name == WATCH for spec in enclave.card.chain):
                continue
            with suppress(UnavailableError):
                manifest = parse_manifest(enclave.card.manifest_json)
                for alarm in enclave.alarms():
                    self._note_alarm(k, manifest.name, manifest.version, alarm)

    def _note_alarm(self, enclave: int, model: str, version: int, alarm: Alarm) -> None:
        key = enclave, alarm.caller, alarm.detector
        before = self._rang.get(key)
        if before is not None and (before.since, before.active) == (alarm.since, alarm.active):
            return
        self._writer.write(lambda seq, now: AlarmRang(seq, now, model, version, alarm))
        self._rang[key] = alarm

    def _sign(self) -> None:
        at, head = self._writer.position
        if at == self._signed_at:
            return
        signed = self._signature(at, head)
        written: list[int] = []

        def record(seq: int, now: float) -> Checkpoint:
            written.append(seq)
            return Checkpoint(seq, now, signed)

        self._writer.write(record)
        self._trail.signed()
        self._signed_at = (
            written[-1] if written[-1] == at + 1 else at
        )  # nothing new, where only this line has come since
        try:
            replace_file(self._writer.path / LATEST, msgspec.json.encode(signed))
        except OSError as error:
            raise UnavailableError(f"{self._writer.path / LATEST}: {error.strerror}") from error

    def _signature(self, at: int, head: bytes) -> SignedCheckpoint:
        """Of the enclave that signed before, or else of the first that answers."""
        last: GarrisonError = UnavailableError("no enclave here signs ledgers")
        for k in (self._signer, *range(len(self._enclaves))):
            enclave = self._enclaves[k]
            key = enclave.card.public_key
            if not isinstance(enclave, Witnessing) or key in self._lost:
                continue
            try:
                signed = self._signed_by(enclave, key, at, head)
            except GarrisonError as error:
                last = error
            else:
                self._signer = k
                return signed
        raise last

    def _signed_by(self, enclave: Witnessing, key: bytes, at: int, head: bytes) -> SignedCheckpoint:
        ledger = bytes.fromhex(self._writer.ledger)
        try:
            return enclave.witness(ledger, at, head, *self._trail.to(head))
        except (MalformedRequestError, LedgerError):  # it signed something earlier, such as before this process began
            self._trail.rewind()
        try:
            return enclave.witness(ledger, at, head, *self._trail.to(head))
        except MalformedRequestError:  # too long ago: another may sign, or this one once it was started anew
            self._lost.add(key)
            raise
