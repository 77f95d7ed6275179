"""Reading other people's pickles without running them.

``refs(unc).p`` is a list of dictionaries of strings, numbers and lists. Python's own unpickler is a
machine that may call any function, and it crashes on crafted input even when every function is
refused. This one knows only the opcodes which such data need; whatever else comes is an error that
names the opcode and its place.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from masksd.kit.data.pickle_machine import PickleError as PickleError
from masksd.kit.data.pickle_machine import interpret

MAX_BYTES = 64 * 2**20


def read_pickle(path: str | Path, max_bytes: int = MAX_BYTES) -> object:
    """Read a pickle file of plain data (protocols 0 to 5); see :func:`loads`.

    Args:
        path: the file.
        max_bytes: the largest size that is read, in bytes.

    Returns:
        The object: lists, dictionaries with string keys, strings, ints, floats, bools and None.

    Raises:
        PickleError: as :func:`loads`, with the file's name; or there is no such file, or it cannot
            be read.

    Example:
        >>> import pickle, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "refs(unc).p"
        >>> _ = path.write_bytes(pickle.dumps([{"ref_id": 1}], protocol=2))
        >>> read_pickle(path)
        [{'ref_id': 1}]
    """
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
        masksd.kit.data.pickle_machine.PickleError: opcode GLOBAL at byte 0 is refused: not plain data
    """
    if len(data) > max_bytes:
        raise PickleError(f"larger than {max_bytes} bytes; pass max_bytes= if it is to be read")
    return interpret(bytes(data))
