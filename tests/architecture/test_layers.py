"""The house holds: imports point down, heavy libraries stay in their rooms, and listing a registry loads nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import garrison

SOURCE = Path(garrison.__file__).parent
BASE = {"errors", "types", "limits", "confidence"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "limits": {"errors"},
    "confidence": set(),
    "npz": BASE,
    "datasets": BASE,
    "config": BASE,
    "crypto": BASE,
    "bundle": BASE | {"crypto"},
    "attest": BASE | {"crypto"},
    "protocol": BASE | {"crypto"},
    "guard": BASE | {"crypto"},
    "attacks": BASE | {"datasets"},
    "runtime": BASE | {"bundle", "crypto"},
    "upstream": BASE | {"bundle", "runtime", "protocol", "crypto"},
    "enclave": BASE | {"guard", "runtime", "bundle", "attest", "protocol", "crypto", "upstream"},
    "client": BASE | {"attest", "protocol", "crypto"},
    "hardening": BASE | {"npz", "bundle", "runtime", "guard", "datasets", "upstream"},
    "sealing": BASE | {"hardening", "guard", "runtime", "bundle", "crypto"},
    "server": BASE | {"enclave", "attest", "protocol", "config", "crypto", "bundle", "upstream"},
    "asgi": BASE | {"config", "server", "guard", "runtime", "bundle", "protocol", "crypto"},
    "api": BASE | {"audit", "attacks", "client", "config", "server", "sealing", "hardening", "bundle", "crypto"},
    "audit": BASE | {"npz", "attacks", "client", "bundle", "guard", "enclave", "crypto", "datasets"},
}
OUTSIDE: dict[str, set[str]] = {
    "torch": {"hardening", "sealing", "attacks", "audit"},
    "onnx": {"sealing", "hardening"},
    "ndonnx": {"sealing", "hardening"},
    "onnxscript": {"sealing", "hardening"},
    "skl2onnx": {"sealing"},
    "cryptography": {"crypto", "attest"},
    "dcap_qvl": {"attest"},
    "cbor2": {"attest", "enclave"},
    "granian": {"server"},
    "grpc": {"server"},
    "httpx": {"client"},
    "httpcore": {"client"},
    "h11": {"client", "upstream"},
    "joserfc": {"server"},
    "psycopg": {"server"},
    "redis": {"server"},
    "matplotlib": {"audit"},
    "jinja2": {"audit"},
    "onnxruntime": {"runtime", "hardening", "sealing"},
    "prometheus_client": {"server"},
    "opentelemetry": {"server"},
    "evidently": {"api"},
    "pandas": {"api"},
    "pickle": set(),
    "joblib": set(),
    "marshal": set(),
}
NEVER_AT_START = {
    "joserfc",
    "psycopg",
    "redis",
    "torch",
    "onnx",
    "ndonnx",
    "onnxscript",
    "granian",
    "grpc",
    "httpx",
    "sklearn",
    "matplotlib",
    "starlette",
}


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "garrison")


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def violations(source: str, room: str) -> list[str]:
    found = []
    for name in imports_of(ast.parse(source)):
        top, _, rest = name.partition(".")
        if top == "garrison" and rest:
            other = rest.split(".")[0]
            if room in MAY_IMPORT and other not in MAY_IMPORT[room] | {room, "__version__"}:
                found.append(f"{room} imports {name}")
        elif room not in OUTSIDE.get(top, {room}) and room != "cli":
            found.append(f"{room} imports {top}")
    return found


SOURCES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    assert violations(path.read_text(), room_of(path)) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("guard", "import garrison.attacks.base"),
        ("bundle", "from garrison.server import app"),
        ("server", "import torch"),
        ("guard", "import pickle"),
    ],
)
def test_the_check_finds_a_wrong_import(room: str, source: str) -> None:
    assert violations(source, room)


def test_every_room_has_its_layer() -> None:
    rooms = {room_of(path) for path in SOURCES} - {"__init__", "__main__", "cli"}
    assert rooms <= set(MAY_IMPORT), f"add {rooms - set(MAY_IMPORT)} to the layers, and to docs/architecture.md"


def test_no_internal_import_hides_in_a_function() -> None:
    hidden = []
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                hidden += [
                    f"{path.name}:{function.name}: {n}" for n in imports_of(function) if n.split(".")[0] == "garrison"
                ]
    assert hidden == []


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "module",
    [
        "garrison",
        "garrison.client",
        "garrison.enclave.service",
        "garrison.enclave.worker",
        "garrison.attacks.extraction",
        "garrison.cli",
        "garrison.asgi",
        "garrison.api",
    ],
)
def test_a_light_import_stays_light(module: str) -> None:
    allowed = {"httpx"} if module == "garrison.client" else set()
    assert not loaded_by(module) & (NEVER_AT_START - allowed)


def test_a_server_before_an_isolated_enclave_does_not_load_the_runtime() -> None:
    loaded = loaded_by("garrison.server.root, garrison.enclave.backends.process")
    assert "garrison" in loaded
    assert "onnxruntime" not in loaded
    assert "onnxruntime" in loaded_by("garrison.enclave.worker"), "control"
