"""`garrison doctor`: what this machine can and cannot do, and how to mend it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import click
import msgspec
from rich.table import Column, Table

from garrison import __version__, datasets
from garrison.cli.output import console, json_option, plain, printable, show_json
from garrison.enclave.hardware import NOT_RUN, look_for_hardware
from garrison.enclave.levels import isolation_name
from garrison.enclave.rehearsal import rehearse
from garrison.errors import IsolationError
from garrison.guard.defenses.proof_of_work import ProofOfWork
from garrison.protocol.work import work_in_words

LEAST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 3_000_000_000
_ENCLAVE = "enclave (--isolation process)"
_HARDWARE = f"trusted hardware (--isolation snp, tdx, sgx, nitro; {NOT_RUN})"
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(\[[a-z,]+\])?")
_LEAST = re.compile(r">=\s*([0-9.]+)")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([a-z]+)['\"]")


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report.

    Attributes:
        needed: serving does not work without it.
        mend: what to do where it is missing.
    """

    group: str
    name: str
    ok: bool
    found: str
    mend: str = ""
    needed: bool = False


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can and cannot do, and how to mend it. Exit code 0 when serving works."""
    checks = [*_machine(), *_packages(), *_data(), *_for_the_enclave(), *_trusted_hardware()]
    works = all(check.ok for check in checks if check.needed)
    if as_json:
        show_json({"garrison": __version__, "serving_works": works, "checks": checks})
    else:
        _show(checks, works=works)
    sys.exit(0 if works else 1)


def _show(checks: list[Check], *, works: bool) -> None:
    console.print(f"garrison {__version__}")
    table = Table(*(Column(overflow="fold") for _ in range(3)), box=None, show_header=False)
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            table.add_row("", f"[bold]{group}[/]")
        mark = "[green]ok[/]" if check.ok else "[bold red]missing[/]" if check.needed else "[yellow]missing[/]"
        table.add_row(mark, *map(plain, (check.name, check.found)))
    console.print(table)
    mends = [f"{check.name}: {check.mend}" for check in checks if check.mend and not check.ok]
    if mends:
        console.print("[bold]To mend[/]")
    for mend in mends:  # on one line each, to be copied as they are
        console.print(f"  {printable(mend)}", markup=False, soft_wrap=True)
    console.print("Serving works on this machine." if works else "[bold red]Serving does not work on this machine.[/]")


def _machine() -> list[Check]:
    version = platform.python_version()
    system = platform.system()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    good = sys.version_info[:2] >= LEAST_PYTHON
    return [
        _needed("Python", version, "install Python 3.11 or newer", ok=good),
        _needed("system", f"{system} {platform.release()} ({platform.machine()})", "use Linux", ok=system == "Linux"),
        Check(group="machine", name="cores", ok=True, found=str(cores)),
        _hpke(),
        _work(),
        _folder("cache", datasets.default_cache(), "set GARRISON_CACHE to a folder that can be written"),
    ]


def _needed(name: str, found: str, mend: str, *, ok: bool) -> Check:
    return Check(group="machine", name=name, ok=ok, found=found, mend=mend, needed=True)


def _hpke() -> Check:
    try:
        there = find_spec("cryptography.hazmat.primitives.hpke") is not None
    except ModuleNotFoundError:
        there = False
    found = "available" if there else "not in the installed cryptography"
    mend = "pip install --upgrade 'cryptography>=48'"
    return Check(group="machine", name="HPKE (sealed requests)", ok=there, found=found, mend=mend)


def _work() -> Check:
    return Check(group="machine", name="proof of work", ok=True, found=work_in_words(ProofOfWork().bits))


def _folder(name: str, folder: Path, mend: str) -> Check:
    """Whether a folder, or the nearest one above it that exists, can be written and has room."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Check(group="machine", name=name, ok=False, found=f"{folder}: {error.strerror}", mend=mend)
    enough = free >= LEAST_FREE_BYTES
    found = f"{folder}, {free / 1e9:.1f} GB free"
    return Check(group="machine", name=name, ok=enough, found=found, mend="make room: the demo needs about 3 GB")


def _packages() -> list[Check]:
    """Every package that the installed distribution asks for, by extra."""
    try:
        wanted = metadata.requires("garrison") or []
    except metadata.PackageNotFoundError:
        return [
            Check(
                group="packages",
                name="garrison",
                ok=False,
                found="not installed; its packages are not known",
                mend="pip install --editable '.[all]' in the source folder",
            )
        ]
    found = []
    for line in wanted:
        named, extra = _REQUIREMENT.match(line), _EXTRA.search(line)
        if named and named[1] != "garrison" and (extra is None or extra[1] not in {"all", "dev"}):
            least = _LEAST.search(line)
            wish = line.partition(";")[0].strip()
            found.append(_package(named[1], wish, "" if extra is None else extra[1], least[1] if least else "0"))
    return sorted(found, key=lambda check: (not check.needed, check.group, check.name))


def _package(name: str, wish: str, extra: str, least: str) -> Check:
    group = f"packages of the extra {extra!r}" if extra else "packages for serving"
    try:
        version = metadata.version(name)
        ok = _numbers(version) >= _numbers(least)
        found = version if ok else f"{version}, older than {least}"
    except metadata.PackageNotFoundError:
        ok, found = False, "not installed"
    # Never `pip install --upgrade garrison[...]`: that name may be anybody's on a package index.
    mend = f"pip install '{wish}'"
    return Check(group=group, name=name, ok=ok, found=found, mend=mend, needed=not extra)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) of "2.13.0+cpu"."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+", maxsplit=1)[0].split("rc", maxsplit=1)[0]))


def _data() -> list[Check]:
    cache = datasets.default_cache()
    found = []
    for name in datasets.names():
        files = datasets.describe(name).files
        there = [_size(cache / name / file) == size for file, size in files.items()]
        text = f"{sum(there)} of {len(there)} files in the cache"
        mend = _mend_data(name)
        found.append(Check(group="data sets", name=name, ok=all(there), found=text, mend=mend))
    return found


def _mend_data(name: str) -> str:
    if datasets.describe(name).kind == "model":
        return f"in Python: garrison.datasets.fetch({name!r})"
    return f"garrison datasets save {name}"


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _for_the_enclave() -> list[Check]:
    """What `--isolation process` has on this machine: each step is tried, in a process of its own."""
    try:
        steps = rehearse()
    except IsolationError as error:
        mend = f"{error}; without an enclave: garrison serve --isolation none"
        return [Check(group=_ENCLAVE, name="process", ok=False, found="not available", mend=mend, needed=True)]
    capabilities = {step.name: step.how for step in steps}
    level = Check(group=_ENCLAVE, name="level", ok=True, found=isolation_name(capabilities))
    return [level, *(_enclave(step.name, step.how, step.mend) for step in steps)]


def _trusted_hardware() -> list[Check]:
    """Which devices are there; serving does not need them."""
    return [
        Check(group=_HARDWARE, name=step.name, ok=step.achieved, found=step.how or "not available", mend=step.mend)
        for step in look_for_hardware()
    ]


def _enclave(name: str, how: str, mend: str) -> Check:
    return Check(group=_ENCLAVE, name=name, ok=bool(how), found=how or "not available", mend=mend)
