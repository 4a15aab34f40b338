"""Makes a .pt2 archive harmless, or refuses it: an allow-list over everything that PyTorch's loader would look at.

PyTorch 2.13 warns that `torch.export.load` must never read untrusted data, and it is right: pickled weights and custom objects are
unpickled, sample inputs that a restricted load refuses are loaded without restriction, symbolic sizes are evaluated by SymPy
as Python, operators are looked up by any dotted name. So none of that is left to it:

- only the entries named below are taken over, each once; weights and constants are raw tensors, never pickles;
- operators are those of ATen (`torch.ops.aten...`), and a few of Python's own arithmetic on sizes;
- sizes are sums and products of symbols and whole numbers;
- free texts (stack traces, module names) are dropped;
- sample inputs are replaced by what a restricted load finds in them.

Not checked: that the operators' arguments are sound; PyTorch checks them when the program is traced.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any

from garrison.errors import MissingExtraError, ModelFileError, UnsupportedModelError

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "torch") from error

MOST_BYTES = 4 * 1024**3
_FIXED = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d+"),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d+"),
}
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.[A-Za-z0-9_]+\.[A-Za-z0-9_]+|_operator\.(add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|getitem)"
)
_SYMBOL = re.compile(r"[su]\d+")
_SIZE = re.compile(
    r"Symbol\('[su]\d+'(, (positive|nonnegative|integer)=True)*\)|(Integer|Add|Mul)\(|\b[su]?\d{1,18}\b|\*(?!\*)|[-+(), ]"
)
_CONTAINERS = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})
_LONGEST_SIZE = 200


def cleaned(data: bytes, name: str) -> bytes:
    """A new archive of what is allowed.

    Args:
        data: the .pt2 file.
        name: for messages.

    Raises:
        ModelFileError: no archive of this format.
        UnsupportedModelError: something that would run code, or that is not known to be harmless.
    """
    try:
        return _packed(_taken_over(_entries(data, name), name))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{name}: not a .pt2 file of torch.export.save: {str(error)[:200]}") from error


def _taken_over(entries: dict[str, bytes], name: str) -> dict[str, bytes]:
    program = json.loads(entries.pop(_PROGRAM))
    if not isinstance(program, dict):
        raise TypeError("the program is no object")
    wanted: dict[str, bytes] = {path: entries.pop(path) for path in _FIXED if path in entries}
    for path, allowed in _CONFIGS.items():
        config, folder = json.loads(entries.pop(path)), path.rsplit("/", 1)[0]
        for raw in _raw_names(config, allowed, name):
            wanted[f"{folder}/{raw}"] = entries.pop(f"{folder}/{raw}")
        _check_not_empty(config, folder, wanted)
        wanted[path] = json.dumps(config).encode()
    wanted[_SAMPLES] = _restricted(entries.pop(_SAMPLES, b""), name)
    wanted[_PROGRAM] = json.dumps(_checked(program, name)).encode()
    if entries:
        raise UnsupportedModelError(f"{name}: holds {sorted(entries)[0]!r}, which is not known to be harmless")
    return wanted


def _check_not_empty(config: Any, folder: str, entries: dict[str, bytes]) -> None:
    """PyTorch takes an empty file for zeros, whatever the tensor's size."""
    for key, entry in config["config"].items():
        sizes = [size["as_int"] for size in entry["tensor_meta"]["sizes"]]
        if all(sizes) and not entries[f"{folder}/{entry['path_name']}"]:
            raise ValueError(f"the file of {key!r} is empty")


def _entries(data: bytes, name: str) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            roots = {info.filename.split("/", 1)[0] for info in infos}
            if len(roots) != 1 or len({info.filename for info in infos}) != len(infos):
                raise ModelFileError(f"{name}: expected an archive with one root folder and each entry once")
            if sum(info.file_size for info in infos) > MOST_BYTES:
                raise ModelFileError(f"{name}: larger than {MOST_BYTES} bytes")
            return {info.filename.split("/", 1)[-1]: archive.read(info) for info in infos if not info.is_dir()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, RuntimeError) as error:
        raise ModelFileError(f"{name}: a damaged archive") from error


def _raw_names(config: Any, allowed: re.Pattern[str], name: str) -> set[str]:
    """The files of raw tensors that a weights' or constants' table names."""
    found = set()
    for key, entry in config["config"].items():
        file = entry.get("path_name")
        if entry.get("use_pickle") is not False or not isinstance(file, str) or not allowed.fullmatch(file):
            raise UnsupportedModelError(
                f"{name}: {key!r} is stored as a pickle or a custom object, which runs code when it is read"
            )
        found.add(file)
    return found


def _restricted(data: bytes, name: str) -> bytes:
    """Sample inputs, loaded under PyTorch's restriction to tensors and plain containers, and written anew."""
    if not data:
        return b""
    try:
        samples = torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise UnsupportedModelError(f"{name}: its sample inputs would run code when they are read") from error
    buffer = io.BytesIO()
    torch.save(samples, buffer)
    return buffer.getvalue()


def _checked(value: Any, name: str, key: str = "") -> Any:
    """A copy without free texts. Raises at an operator or a size that is not allowed."""
    if isinstance(value, dict):
        if key == "range_constraints" and not all(_SYMBOL.fullmatch(symbol) for symbol in value):
            raise UnsupportedModelError(f"{name}: a size is named by something else than a symbol")
        return {k: {} if k == "metadata" else _checked(v, name, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_checked(v, name, key) for v in value]
    if isinstance(value, str):
        _check_text(key, value, name)
    return value


def _check_text(key: str, value: str, name: str) -> None:
    if key in {"target", "as_operator"} and value.startswith(("torch", "_operator", "math", "#")):
        if not _OPERATOR.fullmatch(value):
            raise UnsupportedModelError(f"{name}: the operator {value!r} is not one of PyTorch's own tensor operators")
    elif key in {"in_spec", "out_spec"}:
        _check_structure(value, name)
    elif key == "expr_str" and (len(value) > _LONGEST_SIZE or _SIZE.sub("", value)):
        raise UnsupportedModelError(f"{name}: the size {value[:60]!r} is not a plain sum or product")


def _check_structure(value: str, name: str) -> None:
    """How inputs and outputs are nested: plain containers only, since others are looked up by module and name."""
    stack = [json.loads(value)]
    while stack:
        found = stack.pop()
        if isinstance(found, list):
            stack.extend(found)
        elif isinstance(found, dict):
            if found.get("type") not in _CONTAINERS or not _plain_context(found.get("context")):
                raise UnsupportedModelError(f"{name}: inputs or outputs are nested in {found.get('type')!r}")
            stack.extend(found.get("children_spec", []))


def _plain_context(context: Any) -> bool:
    """A container's own description: nothing, or the keys of a dictionary."""
    found = json.loads(context) if isinstance(context, str) else context
    return found is None or (isinstance(found, list) and all(isinstance(key, (str, int)) for key in found))


def _packed(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path, data in entries.items():
            archive.writestr(f"model/{path}", data)
    return buffer.getvalue()
