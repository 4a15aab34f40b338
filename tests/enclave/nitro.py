"""A made-up Nitro enclave: its doorkeeper in a thread of this process, AF_UNIX in place of AF_VSOCK, a stand-in for the ioctl of /dev/nsm.

The programs behind the door are real ones.
"""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cbor2
from tests.attest.nitro_world import PCR0, NitroWorld, p384
from tests.attest.worlds import NOW, Authority

from garrison.enclave.doorkeeper import Doorkeeper
from garrison.enclave.quotes.nitro import NSM_IOCTL_RAW, RESPONSE_BYTES, NitroQuoter, NsmMessage


class LiveWorld(NitroWorld):
    """Certificates and documents that are good at the present time."""

    def __init__(self) -> None:
        super().__init__()
        days = (30, 36_500)
        self.root = Authority("root", None, p384(), ca=2, days=days)
        self.region = Authority("region", self.root, p384(), ca=1, days=days)
        self.host = Authority("host", self.region, p384(), ca=0, days=days)
        self.leaf = Authority("enclave", self.host, p384(), days=days)


class FakeModule:
    """The kernel's side of the ioctl: requests in CBOR, of which it knows three."""

    def __init__(self, world: NitroWorld, *, debug: bool = False) -> None:
        self.world, self.debug = world, debug
        self.asked: list[Any] = []

    def __call__(self, descriptor: int, number: int, message: NsmMessage) -> int:
        assert number == NSM_IOCTL_RAW
        assert descriptor >= 0
        question = cbor2.loads(ctypes.string_at(message.request.base, message.request.length))
        self.asked.append(question)
        answer = cbor2.dumps(self.respond(question))
        assert len(answer) <= RESPONSE_BYTES
        ctypes.memmove(message.response.base, answer, len(answer))
        message.response.length = len(answer)
        return 0

    def respond(self, question: Any) -> Any:
        match question:
            case {"Attestation": {"user_data": bytes(data), "nonce": None, "public_key": None}}:
                seconds = time.time() - NOW.timestamp()
                return {"Attestation": {"document": self.world.quote(data, debug=self.debug, seconds=seconds).quote}}
            case {"DescribePCR": {"index": 0}}:
                return {"DescribePCR": {"lock": True, "data": bytes(48) if self.debug else PCR0}}
            case "DescribeNSM":
                return {
                    "DescribeNSM": {"version_major": 1, "module_id": "i-0-enc0", "max_pcrs": 32, "digest": "SHA384"}
                }
        return {"Error": "InvalidOperation"}


class FakeEnclave:
    """An enclave that runs until it is terminated; another may be run at the same address then."""

    def __init__(self, folder: Path, world: NitroWorld, *, debug: bool = False, allow_debug: bool = False) -> None:
        self.address, self.device = str(folder / "vsock"), folder / "nsm"
        self.device.touch()
        self.module = FakeModule(world, debug=debug)
        self._allow_debug = allow_debug
        self.run()

    def run(self) -> None:
        Path(self.address).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.address)
        listener.listen()
        quoter = NitroQuoter(self.device, self.module)
        self.keeper = Doorkeeper(listener, quoter, allow_debug=self._allow_debug)
        self._thread = threading.Thread(target=self.keeper.run)
        self._thread.start()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self.address)
        except OSError:
            connection.close()
            raise
        return connection

    def terminate(self) -> None:
        """As nitro-cli does: the door and every program end at once."""
        self.keeper.close()
        self._thread.join(60)


@contextmanager
def fake_enclave(folder: Path, world: NitroWorld, **more: Any) -> Iterator[FakeEnclave]:
    enclave = FakeEnclave(folder, world, **more)
    try:
        yield enclave
    finally:
        enclave.terminate()
