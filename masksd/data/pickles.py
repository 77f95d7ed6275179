"""Reading other people's pickles without running them.

``refs(unc).p`` is a list of dictionaries of strings, numbers and lists. Python's own unpickler is a
machine that may call any function, and it crashes on crafted input even when every function is
refused. This one knows only the opcodes which such data need; whatever else comes is an error that
names the opcode and its place.
"""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MAX_BYTES = 64 * 2**20
_MAX_CONTAINERS = 2_000_000  # a full RefCOCO file has about 0.5 M lists and dictionaries
_MAX_MEMO = 4_000_000
_MAX_DEPTH = 16  # refs nest five deep

_MARK = object()
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.|$)", re.DOTALL)
_ESCAPED = {b"\\": b"\\", b"'": b"'", b'"': b'"', b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class PickleError(ValueError):
    """A pickle that is damaged, or that holds more than lists, dictionaries, strings and numbers.

    Example:
        >>> isinstance(PickleError("opcode GLOBAL at byte 0"), ValueError)
        True
    """


def read_pickle(path: str | Path, max_bytes: int = MAX_BYTES) -> object:
    """Read a pickle file of plain data (protocols 0 to 5); see :func:`loads`.

    Args:
        path: the file.
        max_bytes: the largest size that is read, in bytes.

    Returns:
        The object: lists, dictionaries with string keys, strings, ints, floats, bools and None.

    Raises:
        PickleError: as :func:`loads`, with the file's name.
        OSError: the file cannot be read.

    Example:
        >>> import pickle, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "refs(unc).p"
        >>> _ = path.write_bytes(pickle.dumps([{"ref_id": 1}], protocol=2))
        >>> read_pickle(path)
        [{'ref_id': 1}]
    """
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)  # never more than the cap, whatever the file's size says
    try:
        return loads(data, max_bytes)
    except PickleError as error:
        raise PickleError(f"{path}: {error}") from None


def loads(data: bytes, max_bytes: int = MAX_BYTES) -> object:
    """Interpret the bytes of a pickle of plain data (protocols 0 to 5).

    Byte strings (Python 2's ``str``) are read as UTF-8, and as Latin-1 where they are not.

    Args:
        data: the whole pickle; nothing may follow its STOP.
        max_bytes: the largest size that is read, in bytes.

    Returns:
        The object: lists, dictionaries with string keys, strings, ints, floats, bools and None,
        nested at most 16 deep.

    Raises:
        PickleError: damaged or too large input, or any opcode that plain data do not need.

    Example:
        >>> loads(b"(lp0\\nI1\\naS'left one'\\na.")
        [1, 'left one']
        >>> loads(b"cos\\nsystem\\n.")
        Traceback (most recent call last):
        ...
        masksd.data.pickles.PickleError: opcode GLOBAL at byte 0 is refused: not plain data
    """
    if len(data) > max_bytes:
        raise PickleError(f"larger than {max_bytes} bytes; pass max_bytes= if it is to be read")
    return _Machine(bytes(data)).run()


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
        while True:
            self.opcode_at = self.position
            code = self.take(1)
            if code == b".":
                break
            step = _OPCODES.get(code)
            if step is None:
                self.refuse(code)
            else:
                step(self)
        if self.position != len(self.data):
            self.fail(f"{len(self.data) - self.position} bytes follow the end")
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            self.fail("the end comes with an unfinished object")
        self.check_depth(self.stack[0])
        return self.stack[0]

    # -- errors -------------------------------------------------------------------------------
    def fail(self, reason: str) -> NoReturn:
        raise PickleError(f"byte {self.opcode_at}: {reason}")

    def refuse(self, code: bytes) -> NoReturn:
        names = {each.code: f"opcode {each.name}" for each in pickletools.opcodes}
        name = names.get(code.decode("latin-1"), f"unknown opcode {code!r}")
        raise PickleError(f"{name} at byte {self.opcode_at} is refused: not plain data")

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
            self.push(float(text[:64]))
        except ValueError:
            self.fail(f"{text[:24]!r} is not a number")

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
    def check_depth(self, root: object) -> None:
        """Refuse nesting beyond the limit and cycles, in time linear in the number of entries."""
        level: list[Any] = [root]
        for _ in range(_MAX_DEPTH):
            seen: dict[int, Any] = {}  # what is shared is looked at once a level
            for holder in level:
                if type(holder) in (list, dict):
                    for value in holder if type(holder) is list else holder.values():
                        if type(value) in (list, dict):
                            seen[id(value)] = value
            level = list(seen.values())
            if not level:
                return
        self.fail(f"nested more than {_MAX_DEPTH} deep")


_OPCODES: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": _Machine.proto,
    b"\x95": lambda m: m.number("<Q"),  # FRAME: its length is of no use here
    b"(": lambda m: m.push(_MARK),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": _Machine.int_line,
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"L": lambda m: m.push(m.decimal(m.line().removesuffix(b"L"))),
    b"\x8a": lambda m: m.long_bytes(m.number("<B")),
    b"\x8b": lambda m: m.long_bytes(m.number("<i")),
    b"F": _Machine.float_line,
    b"G": lambda m: m.push(m.number(">d")),
    b"S": _Machine.native_line,
    b"T": lambda m: m.native(m.take(m.number("<I"))),
    b"U": lambda m: m.native(m.take(m.number("<B"))),
    b"V": lambda m: m.text(m.line(), "raw-unicode-escape"),
    b"X": lambda m: m.text(m.take(m.number("<I"))),
    b"\x8c": lambda m: m.text(m.take(m.number("<B"))),
    b"\x8d": lambda m: m.text(m.take(m.number("<Q"))),
    b"]": lambda m: m.container([]),
    b"l": lambda m: m.container(m.pop_to_mark()),
    b"a": _Machine.append,
    b"e": _Machine.appends,
    b"}": lambda m: m.container({}),
    b"d": lambda m: m.container(m.pairs(m.pop_to_mark())),
    b"s": _Machine.set_item,
    b"u": _Machine.set_items,
    b"p": lambda m: m.put(m.decimal(m.line())),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(m.decimal(m.line())),
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<I")),
}
