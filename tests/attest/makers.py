"""The made-up worlds, by technology."""

from __future__ import annotations

from collections.abc import Callable

from tests.attest.dcap_world import DcapWorld
from tests.attest.nitro_world import NitroWorld
from tests.attest.snp_world import SnpWorld
from tests.attest.worlds import World

WORLDS: dict[str, Callable[..., World]] = {
    "snp": SnpWorld,
    "nitro": NitroWorld,
    "sgx": lambda **options: DcapWorld("sgx", **options),
    "tdx": lambda **options: DcapWorld("tdx", **options),
}
