"""Reads the table out of a pickled pandas DataFrame without unpickling it.

A pickle is a program. Here its opcodes are only listed (by the standard library's disassembler) and interpreted over inert values: a global is a name,
a call is a record of what would have been called. Nothing is imported, looked up or called, whatever the file says; the
handful of records that a DataFrame of numbers and strings consists of is then recognised, and anything else refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from garrison.errors import DatasetCorruptError

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FETCH = {"BINGET", "LONG_BINGET"}
_NOTHING = {"PROTO", "FRAME", "STOP"}


@dataclass(slots=True, eq=False)
class Name:
    """A global that the pickle names: "module.qualname"."""

    path: str


@dataclass(slots=True, eq=False)
class Call:
    """A call that unpickling would have made."""

    function: Any
    arguments: Any
    state: Any = None


class _Machine:
    """The pickle machine over inert values: a stack and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: list[Any] = []
        self.actions: Mapping[str, Callable[[], None]] = {
            "MARK": lambda: self.stack.append(_MARK),
            "MEMOIZE": lambda: self.memo.append(self.stack[-1]),
            "EMPTY_LIST": lambda: self.stack.append([]),
            "EMPTY_DICT": lambda: self.stack.append({}),
            "TUPLE": lambda: self.stack.append(tuple(self.to_mark())),
            "APPENDS": self.appends,
            "APPEND": lambda: self.put_item(self.stack.pop()),
            "SETITEMS": self.set_items,
            "SETITEM": self.set_item,
            "STACK_GLOBAL": self.name,
            "REDUCE": self.call,
            "NEWOBJ": self.call,
            "BUILD": self.build,
        }

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _FETCH:
            self.stack.append(self.memo[argument])
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            kept = len(self.stack) - count
            self.stack[kept:] = [tuple(self.stack[kept:])]
        elif opcode in self.actions:
            self.actions[opcode]()
        elif opcode not in _NOTHING:
            raise DatasetCorruptError(f"expected a pickled table, found the opcode {opcode}")

    def to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def put_item(self, item: Any) -> None:
        self.stack[-1].append(item)

    def appends(self) -> None:
        items = self.to_mark()
        self.stack[-1].extend(items)

    def set_items(self) -> None:
        items = self.to_mark()
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][key] = value

    def name(self) -> None:
        last, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Name(f"{module}.{last}"))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(Call(function, arguments))

    def build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].state = state


def read_frame(data: bytes) -> dict[str, list[Any]]:
    """Column name -> values (int, float, str or None), in the table's order.

    Raises:
        DatasetCorruptError: it is no pickle, or one of something else than a DataFrame of numbers and strings.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            machine.step(opcode.name, argument)
        return _frame(machine.stack[-1])
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DatasetCorruptError(f"expected a pickled table of numbers and strings: {error}") from error


def _expect(value: Any, last: str) -> Call:
    if not (isinstance(value, Call) and isinstance(value.function, Name) and value.function.path.endswith("." + last)):
        raise ValueError(f"no {last} where one was expected")
    return value


def _frame(root: Any) -> dict[str, list[Any]]:
    blocks, axes = _expect(_expect(root, "DataFrame").state["_mgr"], "BlockManager").arguments
    names = [str(name) for name in _array(_expect(axes[0], "_new_Index").arguments[1]["data"])]
    columns: dict[int, list[Any]] = {}
    for block in blocks:
        values, place, _ = _expect(block, "_unpickle_block").arguments
        columns |= dict(zip(_place(place), _array(values), strict=True))
    return {name: columns[i] for i, name in enumerate(names)}


def _place(place: Any) -> list[int]:
    if isinstance(place.function, Name) and place.function.path == "builtins.slice":
        start, stop, step = place.arguments
        return list(range(start, stop, step))
    return [int(i) for i in _array(place)]


def _array(value: Any) -> list[Any]:
    """The nested lists of a pickled numpy array, of numbers (raw bytes) or of objects (a list)."""
    if isinstance(value.function, Name) and value.function.path.endswith("._frombuffer"):
        buffer, dtype, shape, order = value.arguments
        code = str(_expect(dtype, "dtype").arguments[0])
        flat = np.frombuffer(bytes(buffer), np.dtype(dtype.state[1] + code))
        return list(flat.reshape(shape, order=order).tolist())
    _, shape, _, fortran, items = _expect(value, "_reconstruct").state
    objects = np.empty(len(items), dtype=object)
    objects[:] = items
    return list(objects.reshape(shape, order="F" if fortran else "C").tolist())
