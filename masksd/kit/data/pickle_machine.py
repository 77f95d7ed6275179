"""The interpreter behind :func:`masksd.kit.data.pickles.loads`: the opcodes of plain data, and bounds.

Nothing is imported or called on behalf of the input. The time is linear in its length, and so is
the memory.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any, NoReturn

# a full RefCOCO file has 6.5 M opcodes, 0.5 M lists and dictionaries, and nests five deep
_MAX_OPCODES = 16_000_000
_MAX_CONTAINERS = 2_000_000
_MAX_MEMO = 4_000_000
_MAX_DEPTH = 16

_MARK = object()
_STOP = ord(".")
_NOT_PICKLES = {  # what is found in the place of a refs file, by its first bytes
    b"PK\x03\x04": "a zip archive or a file of torch.save",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"<": "a web page",
    b"[": "JSON; give it a name that ends in .json",
    b"{": "JSON; give it a name that ends in .json",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself",
}
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.|$)", re.DOTALL)
_ESCAPED = {b"\\": b"\\", b"'": b"'", b'"': b'"', b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class PickleError(ValueError):
    """A pickle that is damaged, or that holds more than lists, dictionaries, strings and numbers.

    Example:
        >>> isinstance(PickleError("opcode GLOBAL at byte 0"), ValueError)
        True
    """


def interpret(data: bytes) -> object:
    """Read a pickle of plain data; :func:`masksd.kit.data.pickles.loads` says which.

    Args:
        data: the whole pickle.

    Returns:
        The object.

    Raises:
        PickleError: with the place in bytes and the reason.

    Example:
        >>> interpret(b"I7\\n.")
        7
    """
    return _Machine(data).run()


class _Machine:
    """One pass over the bytes: a stack with marks, and a memo that is a dictionary."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.opcode_at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.containers = 0

    def run(self) -> object:
        data, size = self.data, len(self.data)
        for _ in range(_MAX_OPCODES):
            self.opcode_at = self.position
            if self.position >= size:
                self.fail("truncated: the end (STOP) is missing")
            code = data[self.position]
            self.position += 1
            if code == _STOP:
                break
            step = _OPCODES.get(code)
            if step is None:
                self.refuse(code)
            else:
                step(self)
        else:
            self.fail(f"more than {_MAX_OPCODES} opcodes")
        if self.position != size:
            self.fail(f"{size - self.position} bytes follow the end")
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            self.fail("the end comes with an unfinished object")
        if type(self.stack[0]) in (list, dict):
            self.check_depth(self.stack[0], 1, {})
        return self.stack[0]

    # -- errors -------------------------------------------------------------------------------
    def fail(self, reason: str) -> NoReturn:
        raise PickleError(f"byte {self.opcode_at}: {reason}")

    def refuse(self, code: int) -> NoReturn:
        names = {each.code: f"opcode {each.name}" for each in pickletools.opcodes}
        name = names.get(chr(code), f"unknown opcode {bytes([code])!r}")
        found = (what for start, what in _NOT_PICKLES.items() if self.data.startswith(start))
        hint = f" (the file looks like {next(found, 'no pickle')})" if not self.opcode_at else ""
        raise PickleError(f"{name} at byte {self.opcode_at} is refused: not plain data{hint}")

    # -- bytes --------------------------------------------------------------------------------
    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            self.fail(f"truncated: {count} bytes wanted, {len(self.data) - self.position} left")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            self.fail("truncated: a line without an end")
        piece = self.data[self.position : end]
        self.position = end + 1
        return piece

    def decimal(self, text: bytes) -> int:
        if not re.fullmatch(rb"[+-]?[0-9]{1,19}", text):
            self.fail(f"{text[:24]!r} is not an integer of at most 19 digits")
        return int(text)

    # -- stack --------------------------------------------------------------------------------
    def push(self, value: object) -> None:
        self.stack.append(value)

    def container(self, value: list[Any] | dict[str, Any]) -> None:
        self.containers += 1
        if self.containers > _MAX_CONTAINERS:
            self.fail(f"more than {_MAX_CONTAINERS} lists and dictionaries")
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            self.fail("the stack is empty")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                values = self.stack[start + 1 :]
                del self.stack[start:]
                return values
        raise PickleError(f"byte {self.opcode_at}: no mark on the stack")

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            self.fail(f"a {kind.__name__} is wanted on the stack")
        return self.stack[-1]

    def pairs(self, values: list[Any]) -> dict[str, Any]:
        if len(values) % 2:
            self.fail("a dictionary with a key and no value")
        keys = values[::2]
        if not all(type(key) is str for key in keys):
            self.fail("a dictionary key that is not a string")
        return dict(zip(keys, values[1::2], strict=True))

    # -- opcodes with more than a line ----------------------------------------------------------
    def proto(self) -> None:
        version = self.number("<B")
        if version > 5:
            self.fail(f"protocol {version}; 0 to 5 are known")

    def put(self, index: int) -> None:
        if index < 0 or len(self.memo) >= _MAX_MEMO:
            self.fail(f"memo index {index}, or more than {_MAX_MEMO} memo entries")
        if not self.stack or self.stack[-1] is _MARK:
            self.fail("nothing on the stack to remember")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fail(f"memo entry {index} was never written")
        self.stack.append(self.memo[index])

    def append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def appends(self) -> None:
        values = self.pop_to_mark()
        self.top(list).extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.top(dict).update(self.pairs([key, value]))

    def set_items(self) -> None:
        values = self.pop_to_mark()
        self.top(dict).update(self.pairs(values))

    def int_line(self) -> None:
        text = self.line()
        self.push(text == b"01" if text in (b"00", b"01") else self.decimal(text))

    def long_bytes(self, length: int) -> None:
        if not 0 <= length <= 8:
            self.fail(f"an integer of {length} bytes; at most 8 are read")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def float_line(self) -> None:
        text = self.line()
        try:
            self.push(float(text if len(text) <= 64 else b""))
        except ValueError:
            self.fail(f"{text[:24]!r} is not a number of at most 64 characters")

    def native(self, raw: bytes) -> None:
        try:
            self.push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.push(raw.decode("latin-1"))

    def native_line(self) -> None:
        text = self.line()
        if len(text) < 2 or text[:1] not in (b"'", b'"') or text[:1] != text[-1:]:
            self.fail("a string without quotes")
        self.native(_ESCAPE.sub(self.unescape, text[1:-1]))

    def unescape(self, match: re.Match[bytes]) -> bytes:
        what = match[1]
        if what[:1] == b"x" and len(what) == 3:
            return bytes.fromhex(what[1:].decode())
        if what not in _ESCAPED:
            self.fail(f"unknown escape {match[0]!r} in a string")
        return _ESCAPED[what]

    def text(self, raw: bytes, encoding: str = "utf-8") -> None:
        try:
            value = raw.decode(encoding)
            value.encode()  # a lone surrogate is no text
        except UnicodeError:
            self.fail(f"a string that is not {encoding}")
        self.push(value)

    # -- the result -----------------------------------------------------------------------------
    def check_depth(self, value: Any, depth: int, heights: dict[int, int]) -> int:
        """Return how many containers a value nests; refuse too many, and cycles with them.

        What is shared is looked at once, so that the time is linear in the number of entries.
        """
        height = heights.get(id(value))
        if height is None and depth <= _MAX_DEPTH:
            entries = value.values() if type(value) is dict else value
            inner = [each for each in entries if type(each) in (list, dict)]
            height = 1 + max((self.check_depth(v, depth + 1, heights) for v in inner), default=0)
            heights[id(value)] = height
        if height is None or depth + height - 1 > _MAX_DEPTH:
            self.fail(f"nested more than {_MAX_DEPTH} deep")
        return height


_OPCODES: dict[int, Callable[[_Machine], object]] = {
    ord(b"\x80"): _Machine.proto,
    ord(b"\x95"): lambda m: m.number("<Q"),  # FRAME: its length is of no use here
    ord(b"("): lambda m: m.push(_MARK),
    ord(b"N"): lambda m: m.push(None),
    ord(b"\x88"): lambda m: m.push(True),
    ord(b"\x89"): lambda m: m.push(False),
    ord(b"I"): _Machine.int_line,
    ord(b"J"): lambda m: m.push(m.number("<i")),
    ord(b"K"): lambda m: m.push(m.number("<B")),
    ord(b"M"): lambda m: m.push(m.number("<H")),
    ord(b"L"): lambda m: m.push(m.decimal(m.line().removesuffix(b"L"))),
    ord(b"\x8a"): lambda m: m.long_bytes(m.number("<B")),
    ord(b"\x8b"): lambda m: m.long_bytes(m.number("<i")),
    ord(b"F"): _Machine.float_line,
    ord(b"G"): lambda m: m.push(m.number(">d")),
    ord(b"S"): _Machine.native_line,
    ord(b"T"): lambda m: m.native(m.take(m.number("<I"))),
    ord(b"U"): lambda m: m.native(m.take(m.number("<B"))),
    ord(b"V"): lambda m: m.text(m.line(), "raw-unicode-escape"),
    ord(b"X"): lambda m: m.text(m.take(m.number("<I"))),
    ord(b"\x8c"): lambda m: m.text(m.take(m.number("<B"))),
    ord(b"\x8d"): lambda m: m.text(m.take(m.number("<Q"))),
    ord(b"]"): lambda m: m.container([]),
    ord(b"l"): lambda m: m.container(m.pop_to_mark()),
    ord(b"a"): _Machine.append,
    ord(b"e"): _Machine.appends,
    ord(b"}"): lambda m: m.container({}),
    ord(b"d"): lambda m: m.container(m.pairs(m.pop_to_mark())),
    ord(b"s"): _Machine.set_item,
    ord(b"u"): _Machine.set_items,
    ord(b"p"): lambda m: m.put(m.decimal(m.line())),
    ord(b"q"): lambda m: m.put(m.number("<B")),
    ord(b"r"): lambda m: m.put(m.number("<I")),
    ord(b"\x94"): lambda m: m.put(len(m.memo)),
    ord(b"g"): lambda m: m.get(m.decimal(m.line())),
    ord(b"h"): lambda m: m.get(m.number("<B")),
    ord(b"j"): lambda m: m.get(m.number("<I")),
}
