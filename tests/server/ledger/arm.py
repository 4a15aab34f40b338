"""A server on a slow disk, for a test that kills it: `python arm.py durable|hasty BUNDLE OWNER.pub FOLDER`. Prints its URL.

"hasty" is the control: answers leave when their entries are handed to the writer, as they would without group commit before release.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from garrison.bundle.key_files import read_public_key
from garrison.config import Config, LedgerConfig, ServerConfig
from garrison.server.ledger import ledger
from garrison.server.ledger.recorder import Recorder
from garrison.server.root import assemble, run

SLOW_SECONDS = 0.1


def slow_sync(descriptor: int) -> None:
    time.sleep(SLOW_SECONDS)
    os.fdatasync(descriptor)


def be_hasty() -> None:
    record = Recorder.record

    def hasty(self: Recorder, batch: Any, replies: Any, finish: Any, give_up: Any) -> None:
        finish(batch, replies)
        record(self, batch, replies, lambda *_: None, give_up)

    Recorder.record = hasty  # type: ignore[method-assign]


def tell(url: str) -> None:
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()


def main() -> None:
    way, bundle, owner, folder = sys.argv[1:]
    ledger.DISK = slow_sync
    if way == "hasty":
        be_hasty()
    config = Config(
        server=ServerConfig(port=0, isolation="none", state=f"{folder}/state"),
        ledger=LedgerConfig(folder=f"{folder}/l"),
    )
    assembly = assemble(config, [Path(bundle)], [read_public_key(Path(owner))])
    run(assembly, tell)


main()
