"""Serving stays small: what `pip install garrison` brings, walked through the installed packages' own requirements."""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

MOST_PACKAGES = 40
NEVER = {
    "torch",
    "onnx",
    "ndonnx",
    "onnxscript",
    "scikit-learn",
    "pandas",
    "starlette",
    "fastapi",
    "matplotlib",
    "pillow",
}


def closure(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Names of all packages that a package needs, itself included; only such as this platform needs."""
    found: set[str] = set()
    todo = [(canonicalize_name(name), extras)]
    while todo:
        current, wanted = todo.pop()
        if current in found and not wanted:
            continue
        found.add(current)
        for line in requires(current) or []:
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                child = canonicalize_name(need.name)
                if child not in found:
                    todo.append((child, frozenset(need.extras)))
    return found


def test_serving_needs_few_packages_and_no_heavy_one() -> None:
    needed = closure("garrison")
    assert "onnxruntime" in needed
    assert len(needed) < MOST_PACKAGES, sorted(needed)
    assert not needed & NEVER


def test_the_walk_sees_extras() -> None:
    """Control: with the audit's extra, torch is found."""
    assert "torch" in closure("garrison", frozenset({"audit"}))
