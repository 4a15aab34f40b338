"""The peers' environments: each in one of its own, made once, with the versions named here.

They lie in `$XDG_CACHE_HOME/garrison/bench` (`~/.cache/garrison/bench`), outside the source tree. Where the pinned versions cannot be had any more,
whatever versions fit together are taken; the page names what ran. A peer that cannot be installed is no error: the reason is kept.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

RUNTIME = ("onnxruntime==1.31.1", "numpy==2.4.6")
INSTALL_SECONDS = 600
_READY = "ready.json"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server of somebody else: its file in `peers`, the packages it takes, those whose versions the page names; `home`, whose environment it shares."""

    name: str
    title: str
    module: str
    packages: tuple[str, ...]
    shown: tuple[str, ...]
    home: str = ""


PEERS = {
    p.name: p
    for p in (
        Peer(
            "fastapi",
            "FastAPI (uvicorn)",
            "fast_api",
            ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
            ("fastapi", "uvicorn"),
        ),
        Peer(
            "fastapi-json",
            "FastAPI (uvicorn), JSON",
            "fast_api_json",
            ("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
            ("fastapi", "uvicorn"),
            home="fastapi",
        ),
        Peer("mlserver", "MLServer", "ml_server", ("mlserver==1.7.1",), ("mlserver",)),
        Peer("litserve", "LitServe", "lit_serve", ("litserve==0.2.19",), ("litserve",)),
        Peer("bentoml", "BentoML", "bento", ("bentoml==1.4.39",), ("bentoml",)),
        Peer("ray", "Ray Serve", "ray_serve", ("ray[serve]==2.60.0",), ("ray",)),
    )
}


@dataclass(frozen=True, slots=True)
class Environment:
    """Where a peer runs; or why it cannot."""

    python: Path
    versions: dict[str, str]
    failure: str = ""


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garrison" / "bench"


def ready(peer: Peer, tell: Callable[[str], None]) -> Environment:
    """The peer's environment, made now where it is not there yet."""
    folder = cache() / (peer.home or peer.name)
    python, note = folder / "bin" / "python", folder / _READY
    wanted = [*peer.packages, *RUNTIME]
    try:
        kept = json.loads(note.read_text())
        if kept["wanted"] == wanted:
            return Environment(python, kept["versions"])
    except (OSError, ValueError, KeyError):
        pass
    tell(f"{peer.title}: making its environment in {folder}")
    failure = ""
    for packages in (wanted, [loose(package) for package in wanted]):
        failure = _install(folder, packages)
        if not failure:
            versions = _versions(python, (*peer.shown, "onnxruntime"))
            note.write_text(json.dumps({"wanted": wanted, "versions": versions}))
            return Environment(python, versions)
    tell(f"{peer.title}: cannot be installed: {failure}")
    return Environment(python, {}, f"cannot be installed: {failure}")


def loose(package: str) -> str:
    """A requirement without its version."""
    return package.partition("==")[0]


def _install(folder: Path, packages: list[str]) -> str:
    """Why it failed; "" where it did not."""
    rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # An older pip tries many more combinations before it finds one.
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "pip>=26"], [*pip, *packages]):
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            return f"pip took more than {INSTALL_SECONDS} s"
        if done.returncode:
            return last_line(done.stderr) or f"exit code {done.returncode}"
    return ""


def last_line(text: str) -> str:
    """What a program said last, made fit for a cell of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].replace("|", "/").replace("`", "'")[:200] if lines else ""


def _versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    code = "import json, sys; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    said = subprocess.run([str(python), "-c", code, *names], check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = json.loads(said)
    return found
