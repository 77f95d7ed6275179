"""Hostile pickles: no code runs, nothing crashes, hangs or eats the memory, one error with a place.

Every attack is also run by Python's own unpickler, which shows that it is one.
"""

from __future__ import annotations

import collections
import contextlib
import copyreg
import datetime
import decimal
import gzip
import io
import json
import operator
import os
import pickle
import pickletools
import random
import re
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from masksd.kit.data.pickles import PickleError, loads, read_pickle
from masksd.kit.data.readers.refer import read_refs
from masksd.kit.data.records import Annotation, BadRecords, DataError, Ref

SHARED = ["left", "one"]
REFS = [
    {
        "ref_id": number,
        "ann_id": 10**9 + number,
        "image_id": 500 + number,
        "category_id": 1,
        "file_name": f"COCO_train2014_{number:012d}.jpg",
        "split": "train",
        "sent_ids": [2 * number, 2 * number + 1],
        "sentences": [
            {"sent_id": 2 * number + k, "raw": "Left one, café", "sent": "left", "tokens": SHARED}
            for k in range(2)
        ],
    }
    for number in range(3)
]
ANNOTATIONS = {ref["ann_id"]: Annotation(ref["ann_id"], ref["image_id"], []) for ref in REFS}
ANNOTATIONS[5] = Annotation(5, 501, [])


# -- attacks: each makes a folder, the canary, when Python's own unpickler reads it ----------------
class Reduces:
    """Calls a function by ``__reduce__``; what most tools write."""

    def __init__(self, function: Callable[..., Any], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


class MakesWhenNew:
    def __new__(cls, path: str = "", more: str = "") -> MakesWhenNew:
        if path or more:
            os.mkdir(path or more)
        return super().__new__(cls)


class MakesWhenSet:
    def __setstate__(self, path: str) -> None:
        os.mkdir(path)


class MakesWhenFilled:
    def append(self, path: str) -> None:
        os.mkdir(path)

    def __setitem__(self, key: str, path: str) -> None:
        os.mkdir(path)


def named(kind: type) -> bytes:
    return f"c{__name__}\n{kind.__name__}\n".encode()


def attacks(path: str) -> dict[str, bytes]:
    text = b"V" + path.encode() + b"\n"
    short = b"\x8c" + bytes([len(path)]) + path.encode()
    code = f"__import__('os').mkdir('{path}')"
    system = f"mkdir '{path}'"
    mkdir = b"cos\nmkdir\n(" + text + b"tR"
    made = {f"reduce-protocol-{n}": pickle.dumps(Reduces(os.mkdir, path), n) for n in range(6)}
    return made | {
        "os-system": pickle.dumps(Reduces(os.system, system), 2),
        "posix-system": b"cposix\nsystem\n(V" + system.encode() + b"\ntR.",
        "eval": pickle.dumps(Reduces(eval, code), 4),
        "exec": pickle.dumps(Reduces(exec, code), 0),
        "python-2-builtin": b"c__builtin__\neval\n(V" + code.encode() + b"\ntR.",
        "getattr-of-import": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVmkdir\ntR("
        + text
        + b"tR.",
        "attribute-of-an-operator": pickle.dumps(
            [Reduces(operator.methodcaller("mkdir"), Path(path))], 4
        ),
        "global-and-reduce": mkdir + b".",
        "stack-global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + short + b"\x85R.",
        "stack-global-from-the-memo": b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x940h\x00h\x01\x93"
        + short
        + b"\x85R.",
        "inst": b"(" + text + b"ios\nmkdir\n.",
        "obj": b"(cos\nmkdir\n" + text + b"o.",
        "newobj": named(MakesWhenNew) + text + b"\x85\x81.",
        "newobj-ex": named(MakesWhenNew) + b")}Vmore\n" + text + b"s\x92.",
        "build": named(MakesWhenSet) + b")\x81" + text + b"b.",
        "append-to-an-object": named(MakesWhenFilled) + b")\x81" + text + b"a.",
        "appends-to-an-object": named(MakesWhenFilled) + b")\x81(" + text + b"e.",
        "setitem-of-an-object": named(MakesWhenFilled) + b")\x81Va\n" + text + b"s.",
        "extension-1-byte": b"\x82\xc8" + text + b"\x85R.",
        "extension-2-bytes": b"\x83\xc8\x00" + text + b"\x85R.",
        "extension-4-bytes": b"\x84\xc8\x00\x00\x00" + text + b"\x85R.",
        "popped-before-a-good-list": mkdir + b"0" + pickle.dumps(REFS, 0),
        "within-refs": pickle.dumps([*REFS, {"sent": Reduces(os.mkdir, path)}], 2),
        "as-a-dictionary-key": b"}" + mkdir + b"Vvalue\ns.",
        "remembered": b"(" + mkdir + b"p7\n0lg7\na.",
        "frame-around-it": pickle.dumps([REFS, Reduces(os.mkdir, path)], 4),
    }


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    copyreg.add_extension("os", "mkdir", 200)
    yield tmp_path / "c"
    copyreg.remove_extension("os", "mkdir", 200)


@pytest.mark.parametrize("name", attacks("x"))
def test_attack_runs_no_code(name: str, canary: Path) -> None:
    data = attacks(str(canary))[name]
    with pytest.raises(PickleError, match=r"opcode [A-Z_0-9]+ at byte \d+ is refused: not plain"):
        loads(data)
    file = canary.with_name("refs(unc).p")
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{re.escape(str(file))}: opcode [A-Z_0-9]+ at byte \d+"):
        read_refs(file, ANNOTATIONS)
    assert not canary.exists()
    with contextlib.suppress(Exception):  # some fail when the deed is done
        pickle.loads(data)
    assert canary.is_dir(), "not an attack at all"


def test_attack_behind_a_good_pickle(canary: Path) -> None:
    attack = attacks(str(canary))["global-and-reduce"]
    with pytest.raises(PickleError, match=rf"{len(attack)} bytes follow the end"):
        loads(pickle.dumps(REFS, 2) + attack)
    assert not canary.exists()


ALLOWED = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST
LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET
LONG_BINGET
"""
REFUSED = {each.name: each.code for each in pickletools.opcodes if each.name not in ALLOWED.split()}


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_opcode_is_refused_by_name_and_place(name: str) -> None:
    # whatever lies on the stack, and whatever follows
    for start in (b"", b"N", b"(", b"(NN", b"]", b"}NN"):
        data = start + REFUSED[name].encode("latin-1") + b"\x00\x00\x00\x00os\nsystem\n."
        with pytest.raises(PickleError) as caught:
            loads(data)
        says = f"opcode {name} at byte {len(start)} is refused: not plain data"
        assert str(caught.value).startswith(says)


# -- input that breaks readers ---------------------------------------------------------------------
def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def a_zip(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("refs.p", pickle.dumps(REFS))


def a_tar(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("refs.p"), io.BytesIO())


def with_buffers(value: object) -> bytes:
    return pickle.dumps(value, 5, buffer_callback=lambda _: False)


HUGE = b"\xff" * 7 + b"\x7f"
MILLION = b"9" * 1_000_000
BAD: dict[str, tuple[bytes, str]] = {
    # nesting and sharing
    "tuples-a-million-deep": (b")" + b"\x85" * 1_000_000 + b".", "opcode EMPTY_TUPLE at byte 0"),
    "lists-200000-deep": (b"]" * 200_000 + b"a" * 199_999 + b".", "nested more than 16"),
    "lists-of-marks-deep": (b"(" * 200_000 + b"l" * 200_000 + b".", "nested more than 16"),
    "dictionaries-deep": (b"}U\x01a" * 100_000 + b"}" + b"s" * 100_000 + b".", "nested more than"),
    "a-million-marks": (b"(" * 1_000_000 + b".", "unfinished object"),
    "list-that-holds-itself": (b"]q\x00h\x00a.", "nested more than 16"),
    "list-that-holds-itself-often": (b"]q\x00(" + b"h\x00" * 200_000 + b"e.", "nested more than"),
    "dictionary-that-holds-itself": (b"}q\x00U\x01ah\x00s.", "nested more than 16"),
    "two-lists-that-hold-each-other": (b"]q\x00]q\x01h\x00aah\x01a.", "nested more than 16"),
    "billion-laughs-in-lists": (
        b"]" + b"".join(b"q\x00](" + b"h\x00" * 10 + b"e" for _ in range(200)) + b".",
        "unfinished object",
    ),
    "billion-laughs-20-deep": (
        b"(" + b"]" + b"".join(b"q\x00](" + b"h\x00" * 9 + b"e" for _ in range(20)) + b"l.",
        "nested more than 16",
    ),
    # the memo
    "memo-of-a-million-digits": (b"Np" + MILLION + b"\n.", "at most 19 digits"),
    "memo-below-zero": (b"Np-1\n.", "memo index -1"),
    "memo-never-written": (b"j\xff\xff\xff\xff.", "memo entry 4294967295 was never written"),
    "memo-read-of-a-million-digits": (b"g" + MILLION + b"\n.", "at most 19 digits"),
    "memo-of-nothing": (b"\x94.", "nothing on the stack to remember"),
    "memo-of-a-mark": (b"(q\x00.", "nothing on the stack to remember"),
    # lengths
    "text-of-8-exabytes": (
        b"\x8d" + HUGE + b"a.",
        "truncated or damaged: expected 9223372036854775807 bytes",
    ),
    "text-of-16-exabytes": (
        b"\x8d" + b"\xff" * 8 + b"a.",
        "truncated or damaged: unicodestring8 byte count > sys.maxsize: 18446744073709551615",
    ),
    "bytes-of-8-exabytes": (b"\x8e" + HUGE + b"a.", "opcode BINBYTES8 at byte 0"),
    "bytearray-of-8-exabytes": (b"\x96" + HUGE + b"a.", "opcode BYTEARRAY8 at byte 0"),
    "text-of-4-gigabytes": (
        b"X\xff\xff\xff\xffa.",
        "truncated or damaged: expected 4294967295 bytes",
    ),
    "string-of-minus-one": (b"T\xff\xff\xff\xffa.", "string4 byte count < 0: -1"),
    "integer-of-2-gigabytes": (
        b"\x8b\xff\xff\xff\x7fa.",
        "not enough data in stream to read long4",
    ),
    "integer-of-minus-one": (b"\x8b\xff\xff\xff\xffa.", "long4 byte count < 0: -1"),
    "integer-of-255-bytes": (b"\x8a\xff" + b"\x01" * 255 + b".", "an integer of more than 8 bytes"),
    "integer-of-a-million-digits": (b"I" + MILLION + b"\n.", "at most 19 digits"),
    "long-of-a-million-digits": (b"L" + MILLION + b"L\n.", "at most 19 digits"),
    "float-of-a-million-digits": (b"F" + MILLION + b"\n.", "more than 64 characters"),
    "line-without-an-end": (b"V" + b"a" * 1_000_000, "no newline found"),
    # the end
    "empty-file": (b"", "byte 0: truncated: the end (STOP) is missing"),
    "no-stop": (pickle.dumps(REFS, 2)[:-1], "the end (STOP) is missing"),
    "only-stop": (b".", "unfinished object"),
    "only-a-protocol": (b"\x80\x04.", "unfinished object"),
    "data-behind-stop": (pickle.dumps(REFS, 4) + b"\x00" * 9, "9 bytes follow the end"),
    "two-pickles": (pickle.dumps(REFS, 4) * 2, "bytes follow the end"),
    "two-objects": (b"NN.", "unfinished object"),
    "a-mark-and-an-object": (b"(N.", "unfinished object"),
    "cut-in-a-frame": (
        b"\x80\x04\x95\x0a",
        "truncated or damaged: not enough data in stream to read uint8",
    ),
    # marks, stack, types
    "list-without-a-mark": (b"Nl.", "no mark on the stack"),
    "dictionary-without-a-mark": (b"Nd.", "no mark on the stack"),
    "appends-without-a-mark": (b"]Ne.", "no mark on the stack"),
    "setitems-without-a-mark": (b"}NNu.", "no mark on the stack"),
    "append-to-nothing": (b"Na.", "expected a list on the stack"),
    "append-of-nothing": (b"](a.", "the stack is empty"),
    "append-to-a-dictionary": (b"}Na.", "expected a list on the stack"),
    "append-to-a-mark": (b"(Na.", "expected a list on the stack"),
    "setitem-of-a-list": (b"]U\x01aNs.", "expected a dict on the stack"),
    "setitem-of-nothing": (b"s.", "the stack is empty"),
    "setitems-of-a-list": (b"](U\x01aNu.", "expected a dict on the stack"),
    "pop-of-nothing": (b"0.", "opcode POP at byte 0"),
    "odd-dictionary": (b"(U\x01aNU\x01bd.", "a key and no value"),
    "odd-setitems": (b"}(U\x01aNU\x01bu.", "a key and no value"),
    "key-that-is-a-list": (b"}]Ns.", "key that is not a string"),
    "key-that-is-a-dictionary": (b"(}Nd.", "key that is not a string"),
    "key-that-is-a-number": (b"}K\x01Ns.", "key that is not a string"),
    "key-that-is-none": (b"}(NNu.", "key that is not a string"),
    # text
    "text-that-is-not-utf-8": (b"X\x02\x00\x00\x00\xc3\x28.", "not valid Unicode text"),
    "overlong-utf-8": (b"\x8c\x02\xc0\x80.", "not valid Unicode text"),
    "surrogate-in-utf-8": (b"\x8c\x03\xed\xa0\x80.", "not valid Unicode text"),
    "surrogate-in-a-line": (b"V\\ud800\n.", "not valid Unicode text"),
    "character-beyond-unicode": (b"V\\U00110000\n.", "not valid Unicode text"),
    "string-without-quotes": (b"Sred\n.", "without quotes"),
    "string-with-two-quotes": (b"S'red\"\n.", "without quotes"),
    "string-of-one-quote": (b"S'\n.", "without quotes"),
    "string-with-an-odd-escape": (b"S'\\777'\n.", "unknown escape"),
    # numbers
    "integer-with-underscores": (b"I1_000\n.", "not an integer"),
    "integer-in-other-digits": ("I٣\n.".encode(), "not an integer"),
    "integer-that-is-empty": (b"I\n.", "not an integer"),
    "integer-with-a-nul": (b"I1\x00\n.", "not an integer"),
    "float-that-is-none": (b"Fred\n.", "could not convert string to float"),
    "float-that-is-empty": (b"F\n.", "could not convert string to float"),
    # protocols
    "protocol-6": (b"\x80\x06N.", "protocol 6; 0 to 5 are known"),
    "protocol-255": (b"\x80\xffN.", "protocol 255"),
    # other Python objects
    "tuple": (pickle.dumps((1, 2), 2), "opcode TUPLE2"),
    "bytes": (pickle.dumps(b"a" * 9, 4), "opcode SHORT_BINBYTES"),
    "bytes-of-protocol-2": (pickle.dumps(b"a\xff", 2), "opcode GLOBAL"),
    "bytearray": (pickle.dumps(bytearray(9), 5), "opcode BYTEARRAY8"),
    "set": (pickle.dumps({1, 2}, 4), "opcode EMPTY_SET"),
    "frozenset": (pickle.dumps(frozenset({1, 2}), 4), "opcode FROZENSET"),
    "set-of-protocol-2": (pickle.dumps({1, 2}, 2), "opcode GLOBAL"),
    "complex-number": (pickle.dumps(1j, 2), "opcode GLOBAL"),
    "date": (pickle.dumps(datetime.date(2014, 1, 1), 4), "opcode STACK_GLOBAL"),
    "decimal": (pickle.dumps(decimal.Decimal(1), 2), "opcode GLOBAL"),
    "ordered-dictionary": (pickle.dumps(collections.OrderedDict(a=1), 2), "opcode GLOBAL"),
    "function": (pickle.dumps(len, 2), "opcode GLOBAL"),
    "class": (pickle.dumps(int, 4), "opcode STACK_GLOBAL"),
    "numpy-scalar": (pickle.dumps(np.int64(3), 2), "opcode GLOBAL"),
    "numpy-array": (pickle.dumps(np.zeros(3), 4), "opcode STACK_GLOBAL"),
    "numpy-object-array": (pickle.dumps(np.array([None]), 2), "opcode GLOBAL"),
    "out-of-band-buffer": (
        with_buffers([pickle.PickleBuffer(bytearray(b"ab"))]),
        "opcode NEXT_BUFFER",
    ),
    "read-only-buffer": (with_buffers([pickle.PickleBuffer(b"ab")]), "opcode NEXT_BUFFER"),
    "persistent-id": (b"Pid\n.", "opcode PERSID at byte 0"),
    "binary-persistent-id": (b"U\x02idQ.", "opcode BINPERSID at byte 4"),
    "unknown-opcode": (b"\xff.", "unknown opcode b'\\xff' at byte 0"),
    # other files
    "zip": (saved(a_zip), "looks like a zip archive"),
    "tar": (saved(a_tar), "byte 0: nothing on the stack"),
    "torch-save": (saved(lambda file: torch.save({"a": torch.zeros(2)}, file)), "torch.save"),
    "torch-save-of-old": (
        saved(lambda f: torch.save([1], f, _use_new_zipfile_serialization=False)),
        "an integer of more than 8 bytes",
    ),
    "gzip": (gzip.compress(pickle.dumps(REFS)), "looks like a gzip archive"),
    "numpy-file": (saved(lambda file: np.save(file, np.zeros(3))), "looks like a NumPy array"),
    "json": (json.dumps(REFS).encode(), "JSON; give it a name that ends in .json"),
    "web-page": (b"<!DOCTYPE html>\n<title>404</title>", "looks like a web page"),
    "git-lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "text": (b"left one\nright one\n", "byte 0: no mark"),
    "zeros": (b"\x00" * 10_000, "unknown opcode b'\\x00' at byte 0"),
    "noise": (random.Random(0).randbytes(100_000), "byte"),
}


def cost(data: bytes) -> tuple[object, float, int]:
    """Read twice: for the seconds of CPU, and for the most memory; return the last outcome too."""
    outcome: object = None
    seconds = []
    for traced in (False, True):
        if traced:
            tracemalloc.start()
        start = time.process_time()
        try:
            outcome = loads(data)
        except PickleError as error:
            outcome = error
        seconds.append(time.process_time() - start)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return outcome, seconds[0], peak


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_error_soon_and_small(name: str) -> None:
    data, says = BAD[name]
    error, seconds, peak = cost(data)
    assert isinstance(error, PickleError)
    assert says in str(error)
    assert re.search(r"\bbyte \d+", str(error))
    assert len(str(error)) < 300
    assert seconds < 2
    assert peak < 2**20 + 100 * len(data)


GOOD: dict[str, tuple[bytes, object]] = {
    # hostile to other readers, harmless here
    "memo-index-of-4-billion": (b"Nr\xff\xff\xff\xff.", None),
    "memo-index-of-19-digits": (b"Np" + b"9" * 19 + b"\n.", None),
    "frame-of-8-exabytes": (b"\x80\x04\x95" + HUGE + b"N.", None),
    "integer-of-8-bytes": (b"\x8a\x08" + HUGE + b".", 2**63 - 1),
    "integer-of-no-bytes": (b"\x8a\x00.", 0),
    "float-beyond-all": (b"F1e999\n.", float("inf")),
    "string-of-latin-1": (b"U\x01\xff.", "ÿ"),
    "text-with-a-nul": (b"\x8c\x01\x00.", "\x00"),
    "key-that-comes-twice": (b"}(U\x01aNU\x01aI1\nu.", {"a": 1}),
    "a-pickle-within-a-string": (b"U\x0fcos\nsystem\n(tR..", "cos\nsystem\n(tR."),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_input_is_read_right_soon_and_small(name: str) -> None:
    data, expected = GOOD[name]
    value, seconds, peak = cost(data)
    assert repr(value) == repr(expected)
    assert seconds < 2
    assert peak < 2**20


def test_sharing_costs_nothing() -> None:
    # each of 14 lists holds the one below ten times: 10 ** 14 entries if anybody walked them all
    data = b"]" + b"".join(b"q\x00](" + b"h\x00" * 10 + b"e" for _ in range(14))
    data = b"(" + data + b"l."
    value, seconds, peak = cost(data)
    assert isinstance(value, list)
    assert len(value) == 15
    assert all(each is value[-2] for each in value[-1])
    assert seconds < 1
    assert peak < 2**20


@pytest.mark.slow
def test_too_many_opcodes() -> None:
    with pytest.raises(PickleError, match="byte 15999999: more than 16000000 opcodes"):
        loads(b"(" + b"N" * 16_000_000 + b"l.")


# -- files -----------------------------------------------------------------------------------------
def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_symlink_loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def a_terabyte_of_nothing(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "cannot be read: No such file or directory"),
    "folder": (lambda path: path.mkdir(), "not a regular file"),
    "pipe": (a_pipe, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "symlink-loop": (a_symlink_loop, "cannot be read: Too many levels of symbolic links"),
    "dangling-symlink": (lambda path: path.symlink_to("nowhere"), "cannot be read: No such file"),
    "terabyte": (a_terabyte_of_nothing, "larger than 67108864 bytes; pass max_bytes="),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_file_is_one_error_with_its_name(name: str, tmp_path: Path) -> None:
    make, says = FILES[name]
    path = tmp_path / "refs(unc).p"
    make(path)
    start = time.process_time()
    with pytest.raises(PickleError) as caught:
        read_pickle(path)
    assert str(caught.value).startswith(f"{path}: {says}")
    with pytest.raises(DataError) as damaged:
        read_refs(path, ANNOTATIONS)
    assert str(damaged.value).startswith(f"{path}: ")
    assert time.process_time() - start < 2


def test_file_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(PickleError, match="cannot be read: File name too long"):
        read_pickle(tmp_path / ("a" * 300))


# -- damage ----------------------------------------------------------------------------------------
def places(protocol: int) -> dict[str, tuple[bytes, int, int]]:
    """Where each kind of opcode with an argument comes first: the data, its begin and its end."""
    data = pickle.dumps([REFS, 70000, -1, 2**40, 1.5, "x" * 300, True], protocol)
    steps = [(opcode, position) for opcode, _, position in pickletools.genops(data)]
    ends = [position for _, position in steps[1:]] + [len(data)]
    found: dict[str, tuple[bytes, int, int]] = {}
    for (opcode, begin), end in zip(steps, ends, strict=True):
        if end - begin > 1:
            found.setdefault(f"{protocol}-{opcode.name}", (data, begin, end))
    return found


PLACES = {name: place for protocol in range(6) for name, place in places(protocol).items()}
BY_HAND = {
    "STRING": b"S'red'\n.",
    "BINSTRING": b"T\x03\x00\x00\x00red.",
    "SHORT_BINSTRING": b"U\x03red.",
    "BINUNICODE8": b"\x8d\x03\x00\x00\x00\x00\x00\x00\x00red.",
    "LONG4": b"\x8b\x02\x00\x00\x00\x00\x01.",
    "LONG_BINPUT": b"Nr\x07\x00\x00\x00.",
}
PLACES |= {f"by-hand-{name}": (data, 0, len(data)) for name, data in BY_HAND.items()}


@pytest.mark.parametrize("name", PLACES)
def test_truncated_within_each_kind_of_opcode(name: str) -> None:
    data, begin, end = PLACES[name]
    loads(data)
    for cut in range(begin, end):
        with pytest.raises(PickleError, match=r"byte \d+: truncated"):
            loads(data[:cut])


@pytest.mark.parametrize("protocol", range(6))
def test_truncated_anywhere(protocol: int) -> None:
    data = pickle.dumps(REFS, protocol)
    for cut in range(len(data)):
        with pytest.raises(PickleError, match="truncated"):
            loads(data[:cut])


OPCODES = "".join(each.code for each in pickletools.opcodes).encode("latin-1")


def mutated(number: int) -> bytes:
    """A good file with one to four kinds of damage, by its number alone."""
    key = random.Random(number)
    data = bytearray(pickle.dumps(REFS, number % 6))
    for _ in range(key.randint(1, 4)):
        at = key.randrange(len(data) + 1)
        to = min(len(data), at + key.randint(1, 12))
        kind = key.choice(["byte", "bit", "opcode", "delete", "insert", "repeat", "move", "cut"])
        if kind == "byte":
            data[at : at + 1] = key.randbytes(1)
        elif kind == "bit" and at < len(data):
            data[at] ^= 1 << key.randrange(8)
        elif kind == "opcode":
            data[at : at + 1] = bytes([key.choice(OPCODES)])
        elif kind == "delete":
            del data[at:to]
        elif kind == "insert":
            data[at:at] = key.randbytes(key.randint(1, 9))
        elif kind == "repeat":
            data[at:at] = data[at:to] * key.randint(1, 5)
        elif kind == "move":
            piece = data[at:to]
            del data[at:to]
            place = key.randrange(len(data) + 1)
            data[place:place] = piece
        elif key.random() < 0.1:
            del data[at:]
    return bytes(data)


def is_plain(value: object) -> bool:
    if type(value) is list:
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(is_plain, value.values()))
    return type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize("hundred", range(50))
def test_random_damage_raises_nothing_else(hundred: int, tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    refused = 0
    for number in range(100 * hundred, 100 * hundred + 100):
        data = mutated(number)
        try:
            assert is_plain(loads(data))
        except PickleError as error:
            assert re.search(r"\bbyte \d+", str(error))  # noqa: PT017
            refused += 1
        path.write_bytes(data)
        try:
            refs = read_refs(path, ANNOTATIONS)
        except DataError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
        else:
            assert all(type(ref) is Ref for ref in refs)
        bad = BadRecords()
        with contextlib.suppress(DataError):
            read_refs(path, ANNOTATIONS, bad)
    assert 20 < refused < 100  # the damage is neither always nor never seen
