"""What a client demands of an enclave before it sends anything: a strict, frozen value, read from a TOML file.

    technologies = ["snp"]
    model = "digits"
    owners = ["9c1e..."]       # whose signature counts: the fingerprint that `garrison keygen` shows
    least_version = 3

    [measurements]
    snp = ["3f1c..."]          # 48 bytes in hex

    [snp]
    least_tcb = { bootloader = 4, tee = 0, snp = 22, microcode = 213 }

Invariant: the policy that nobody wrote refuses. Simulation, debug, a measurement or an owner that is not listed, an unnamed least
TCB: each has to be allowed in so many words, and an unknown key is an error, because a misspelt demand must not be silently off.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from garrison.attest.evidence import Technology
from garrison.errors import ConfigError

HARDWARE: tuple[Technology, ...] = ("snp", "tdx", "sgx", "nitro")
_SHA256_HEX = 64


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class SnpTcb(_Strict, frozen=True):
    """Security patch levels of the parts of an AMD processor's firmware, each 0 to 255; `fmc` exists from Turin on.

    Levels are compared one by one: a newer part never makes up for an older one.
    """

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if not 0 <= getattr(self, name) <= 255:
                raise ValueError(f"{name} must lie in 0 to 255, found {getattr(self, name)}")

    def at_least(self, least: SnpTcb) -> bool:
        return all(getattr(self, name) >= getattr(least, name) for name in self.__struct_fields__)

    def __str__(self) -> str:
        return ", ".join(f"{name} {getattr(self, name)}" for name in self.__struct_fields__)


class SnpPolicy(_Strict, frozen=True):
    """`[snp]`.

    Attributes:
        least_tcb: the reported TCB must reach it; None refuses every report, because no level is right for all processors.
        require_crl: AMD's revocation list has to be there (collateral `crl`), valid, and silent about the ASK.
        most_vmpl: highest privilege level number from which the report may have been asked, 0 to 3; 0 is the most privileged.
    """

    least_tcb: SnpTcb | None = None
    require_crl: bool = False
    most_vmpl: int = 0


class DcapPolicy(_Strict, frozen=True):
    """`[dcap]`, for TDX and SGX.

    Attributes:
        statuses: Intel's TCB statuses that are good enough.
    """

    statuses: tuple[str, ...] = ("UpToDate",)


class Policy(_Strict, frozen=True):
    """What is demanded of evidence.

    Attributes:
        allow_simulated: take evidence of the technology "sim", which proves nothing.
        allow_debug: take an enclave that its host can look into.
        technologies: of the hardware, what is accepted.
        measurements: by technology, the programs that may run, in hex; what each technology measures is told in
            docs/attestation.md. An empty list refuses everything, but for "sim", where it leaves the measurement unchecked.
        roots: by technology, SHA-256 of the root certificates (DER, in hex) that are trusted instead of the vendor's own.
        snp, dcap: what only one technology has.
        model: the model's name, "" for any.
        least_version: an older version of the model is refused, even with its owner's signature (rollback).
        owners: fingerprints of the keys whose signature on a model counts (SHA-256 of the public key's PEM form, in hex). The host tells
            an enclave which keys to believe, so without this it could serve a model of its own. Empty refuses everything, but where
            `manifests` says which models may be served, and for "sim".
        manifests: SHA-256 of the manifests that may be served, in hex; empty for any.
        guards: SHA-256 of the chains of defenses that may run, in hex; empty for any.
        most_key_seconds: how far off the end of the keys may lie at most; until then whoever gets hold of them reads what was sealed.
        max_age: seconds that a document may be old, where the technology writes a time into it. Freshness comes from the nonce.
    """

    allow_simulated: bool = False
    allow_debug: bool = False
    technologies: tuple[Technology, ...] = HARDWARE
    measurements: dict[Technology, tuple[str, ...]] = {}
    roots: dict[Technology, tuple[str, ...]] = {}
    snp: SnpPolicy = SnpPolicy()
    dcap: DcapPolicy = DcapPolicy()
    model: str = ""
    least_version: int = 1
    owners: tuple[str, ...] = ()
    manifests: tuple[str, ...] = ()
    guards: tuple[str, ...] = ()
    max_age: int = 300
    most_key_seconds: int = 86_400

    def __post_init__(self) -> None:
        for name, digests in (
            ("owners", self.owners),
            ("manifests", self.manifests),
            ("guards", self.guards),
            *self.roots.items(),
        ):
            for digest in digests:
                if not _is_hex(digest, _SHA256_HEX):
                    raise ValueError(f"{name}: expected a SHA-256 in lower-case hex, found {digest!r}")
        for technology, listed in self.measurements.items():
            for measurement in listed:
                if not all(_is_hex(part) for part in measurement.split(":")):
                    raise ValueError(f"measurements.{technology}: expected lower-case hex, found {measurement!r}")
        for name, seconds in (("max_age", self.max_age), ("most_key_seconds", self.most_key_seconds)):
            if seconds <= 0:
                raise ValueError(f"{name} must be positive, found {seconds}")

    def accepts(self, technology: Technology) -> bool:
        return self.allow_simulated if technology == "sim" else technology in self.technologies


def load_policy(path: Path) -> Policy:
    """Read a policy from a TOML file.

    Raises:
        ConfigError: the file cannot be read, or holds an unknown key or a value of the wrong kind.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(found, Policy)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path} is no attestation policy: {error}") from error


def _is_hex(text: str, length: int | None = None) -> bool:
    return bool(text) and set(text) <= set("0123456789abcdef") and length in (None, len(text))
