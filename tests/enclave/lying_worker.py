"""An inner program that does what a caller's name says: "short", "long" and "other" lie, "drip" never ends its frame, "talk" fills its log."""

from __future__ import annotations

import logging
import os
import struct
import sys
import time

from garrison.enclave import worker
from garrison.enclave.talk import Answered, Call, FromHost, FromWorker

LINES = 4000


class Liar(worker.Worker):
    def answer(self, message: FromHost) -> FromWorker:
        answer = super().answer(message)
        if not isinstance(message, Call) or not isinstance(answer, Answered):
            return answer
        match message.asks[0].caller if message.asks else "":
            case "short":
                return Answered(answer.replies[1:])
            case "long":
                return Answered([*answer.replies, *answer.replies])
            case "other":
                return self.ready()
            case "drip":
                os.write(int(sys.argv[1]), struct.pack(">I", 10_000))
                while True:
                    os.write(int(sys.argv[1]), b"\x92")
                    time.sleep(0.05)
            case "talk":
                for number in range(LINES):
                    logging.getLogger("liar").warning("line %d %s", number, "x" * 100)
        return answer


if __name__ == "__main__":
    worker.Worker = Liar  # type: ignore[misc]
    worker.main()
