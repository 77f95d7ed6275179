"""Reading other people's pickles without running them.

Python's own unpickler may call any function, and crafted input crashes it even where every function
is refused. This reader takes from ``pickletools`` only the opcodes that plain data need; others are
an error that names opcode and place. (``genops`` itself decodes an argument before the opcode can
be refused, and on Python 3.11 it fails on Python 2's non-ASCII strings.)
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MAX_BYTES = 64 * 2**20

# a full RefCOCO file has 6.5 M opcodes, 0.5 M lists and dictionaries, and nests five deep
_MAX_OPCODES = 16_000_000
_MAX_CONTAINERS = 2_000_000
_MAX_MEMO = 4_000_000
_MAX_DEPTH = 16

_MARK = object()
_OTHER_FILES = {  # what people put in the place of a refs file, by its first bytes
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
    """A pickle that is damaged, or holds more than lists, dictionaries, strings and numbers."""


def read_pickle(path: str | Path, max_bytes: int = MAX_BYTES) -> object:
    """Read a pickle file as :func:`loads` does; every error is a PickleError that names it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise PickleError(f"{path}: not a regular file")
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)  # not more, whatever the file's size says
    except OSError as error:
        raise PickleError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return loads(data, max_bytes)
    except PickleError as error:
        raise PickleError(f"{path}: {error}") from None


def loads(data: bytes, max_bytes: int = MAX_BYTES) -> object:
    """Read a pickle of plain data (protocols 0 to 5), in time and memory linear in its length.

    Returns lists, dictionaries with string keys, strings, ints, floats, bools and None, nested at
    most 16 deep. Python 2's byte strings are read as UTF-8, and as Latin-1 where they are not.
    """
    if len(data) > max_bytes:
        raise PickleError(f"larger than {max_bytes} bytes; pass max_bytes= to read it all the same")
    return _Reader(bytes(data)).run()


class _Reader:
    """One pass over the bytes, with a stack that holds marks and a memo that is a dictionary."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0  # where the opcode under way begins
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.containers = 0

    def run(self) -> object:
        stream = io.BytesIO(self.data)
        try:
            self.execute(stream)
        except UnicodeError:
            self.fail("a string that is not valid Unicode text")
        except PickleError:
            raise
        except ValueError as error:  # from the readers of arguments
            self.fail(f"truncated or damaged: {error}")
        if stream.tell() != len(self.data):
            self.fail(f"{len(self.data) - stream.tell()} bytes follow the end")
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            self.fail("the pickle ends with an unfinished object")
        if type(self.stack[0]) in (list, dict):
            self.check_depth(self.stack[0], 1, {})
        return self.stack[0]

    def execute(self, stream: io.BytesIO) -> None:
        for _ in range(_MAX_OPCODES):
            self.at = stream.tell()
            code = stream.read(1)
            if code == b".":
                return
            if code not in _OPCODES:
                self.refuse(code)
            read_argument, act = _OPCODES[code]
            act(self, read_argument(stream) if read_argument else None)
        self.fail(f"more than {_MAX_OPCODES} opcodes")

    def fail(self, reason: str) -> NoReturn:
        raise PickleError(f"byte {self.at}: {reason}") from None

    def refuse(self, code: bytes) -> NoReturn:
        if not code:
            self.fail("truncated: the end (STOP) is missing")
        names = {each.code: f"opcode {each.name}" for each in pickletools.opcodes}
        name = names.get(code.decode("latin-1"), f"unknown opcode {code!r}")
        kinds = (kind for start, kind in _OTHER_FILES.items() if self.data.startswith(start))
        hint = f" (the file looks like {next(kinds, 'no pickle')})" if not self.at else ""
        if code in (b"c", b"\x93") and b"numpy" in self.data[max(0, self.at - 48) : self.at + 6]:
            hint = f": {self.place(named=code == b'c')} is a numpy number: save plain ints, or JSON"
        raise PickleError(f"{name} at byte {self.at} is refused: not plain data{hint}")

    def place(self, named: bool) -> str:
        """Name the record and field under way; unless ``named``, two names lie on the stack."""
        level = self.stack[1:] if named else self.stack[1:-2]
        fields = [value for value in level if type(value) is str] or ["?"]
        record = len(self.stack[0]) if level and type(self.stack[0]) is list else 0
        if level[:1] == [_MARK]:  # records that wait until the list takes them
            waiting = level[1 : [*level, _MARK].index(_MARK, 1)]
            record += len([value for value in waiting if type(value) is dict]) - 1
        return f"refs[{record}]: field {fields[-1]!r}"

    def push(self, value: object) -> None:
        self.stack.append(value)

    def push_container(self, value: list[Any] | dict[str, Any]) -> None:
        self.containers += 1
        if self.containers > _MAX_CONTAINERS:
            self.fail(f"more than {_MAX_CONTAINERS} lists and dictionaries")
        self.stack.append(value)

    def push_integer(self, value: int) -> None:
        if not -(2**63) <= value < 2**63:
            self.fail("an integer of more than 8 bytes")
        self.stack.append(value)

    def push_bytes(self, text: str) -> None:
        self.stack.append(_byte_string(text.encode("latin-1")))  # as pickletools read them

    def push_text(self, text: str) -> None:
        text.encode()  # a lone surrogate is no text
        self.stack.append(text)

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
        return self.fail("no mark on the stack")

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            self.fail(f"expected a {kind.__name__} on the stack")
        return self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def update(self, values: list[Any]) -> None:
        self.top(dict).update(self.pairs(values))

    def pairs(self, values: list[Any]) -> dict[str, Any]:
        if len(values) % 2:
            self.fail("a dictionary with a key and no value")
        keys = values[::2]
        if not all(type(key) is str for key in keys):
            self.fail("a dictionary key that is not a string")
        return dict(zip(keys, values[1::2], strict=True))

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

    def check_protocol(self, version: int) -> None:
        if version > 5:
            self.fail(f"protocol {version}; 0 to 5 are known")

    def check_depth(self, value: Any, depth: int, heights: dict[int, int]) -> int:
        """Return how many containers a value nests; look at shared ones once, so in linear time."""
        height = heights.get(id(value))
        if height is None and depth <= _MAX_DEPTH:
            entries = value.values() if type(value) is dict else value
            inner = [each for each in entries if type(each) in (list, dict)]
            height = 1 + max((self.check_depth(v, depth + 1, heights) for v in inner), default=0)
            heights[id(value)] = height
        if height is None or depth + height - 1 > _MAX_DEPTH:
            self.fail(f"nested more than {_MAX_DEPTH} deep")
        return height


def _line(stream: io.BytesIO) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ValueError("a line without an end")
    return line[:-1]


def _integer(line: bytes) -> int:
    if not re.fullmatch(rb"[+-]?[0-9]{1,19}", line):
        raise ValueError(f"{line[:24]!r} is not an integer of at most 19 digits")
    return int(line)


def _integer_or_bool(line: bytes) -> int:
    return line == b"01" if line in (b"00", b"01") else _integer(line)


def _float(line: bytes) -> float:
    if len(line) > 64:
        raise ValueError("a number of more than 64 characters")
    return float(line)


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[:1] != line[-1:]:
        raise ValueError("a string without quotes")
    return _byte_string(_ESCAPE.sub(_unescape, line[1:-1]))


def _unescape(match: re.Match[bytes]) -> bytes:
    escaped = match[1]
    if escaped[:1] == b"x" and len(escaped) == 3:
        return bytes.fromhex(escaped[1:].decode())
    if escaped not in _ESCAPED:
        raise ValueError(f"unknown escape {match[0]!r} in a string")
    return _ESCAPED[escaped]


def _byte_string(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


# Lines are parsed here: pickletools takes any length, underscores and odd escapes.
_LINE_ACTIONS: dict[str, Callable[[_Reader, bytes], object]] = {
    "INT": lambda reader, line: reader.push(_integer_or_bool(line)),
    "LONG": lambda reader, line: reader.push(_integer(line.removesuffix(b"L"))),
    "FLOAT": lambda reader, line: reader.push(_float(line)),
    "STRING": lambda reader, line: reader.push(_quoted(line)),
    "PUT": lambda reader, line: reader.put(_integer(line)),
    "GET": lambda reader, line: reader.get(_integer(line)),
}
_ACTIONS: dict[str, Callable[[_Reader, Any], object]] = {
    "PROTO": _Reader.check_protocol,
    "FRAME": lambda reader, _: None,  # its length is of no use here
    "MARK": lambda reader, _: reader.push(_MARK),
    "NONE": lambda reader, _: reader.push(None),
    "NEWTRUE": lambda reader, _: reader.push(True),
    "NEWFALSE": lambda reader, _: reader.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT"), _Reader.push),
    **dict.fromkeys(("LONG1", "LONG4"), _Reader.push_integer),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _Reader.push_bytes),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE"), _Reader.push_text),
    **dict.fromkeys(("BINUNICODE", "BINUNICODE8"), _Reader.push_text),
    "EMPTY_LIST": lambda reader, _: reader.push_container([]),
    "LIST": lambda reader, _: reader.push_container(reader.pop_to_mark()),
    "APPEND": lambda reader, _: reader.extend([reader.pop()]),
    "APPENDS": lambda reader, _: reader.extend(reader.pop_to_mark()),
    "EMPTY_DICT": lambda reader, _: reader.push_container({}),
    "DICT": lambda reader, _: reader.push_container(reader.pairs(reader.pop_to_mark())),
    "SETITEM": lambda reader, _: reader.update([reader.pop(), reader.pop()][::-1]),
    "SETITEMS": lambda reader, _: reader.update(reader.pop_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Reader.put),
    "MEMOIZE": lambda reader, _: reader.put(len(reader.memo)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Reader.get),
}
# by code: how the argument is read (None where there is none), and what is done with it
_OPCODES: dict[bytes, tuple[Any, Callable[[_Reader, Any], object]]] = {
    each.code.encode("latin-1"): (_line, _LINE_ACTIONS[each.name])
    if each.name in _LINE_ACTIONS
    else (each.arg and each.arg.reader, _ACTIONS[each.name])
    for each in pickletools.opcodes
    if each.name in {**_LINE_ACTIONS, **_ACTIONS}
}
