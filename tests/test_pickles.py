"""The restricted pickle reader: equal to Python's own on plain data, harmless on anything else."""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksd.kit.data.pickles import PickleError, loads, read_pickle
from tests.refer_folders import ref

SHARED = ["left", "one"]
REFS = [
    {
        "ref_id": number,
        "ann_id": 10**12 + number,
        "sent_ids": [3 * number, -1, 255, 256, 65536, -(2**31), 2**40],
        "sentences": [{"raw": "Left one, café\n'\"\\", "sent": "left one", "tokens": SHARED}],
        "area": 12.5,
        "flags": [True, False, None, 0, 1],
        "empty": [{}, [], ""],
        "long": "x" * 300,
    }
    for number in range(3)
]


@pytest.mark.parametrize("protocol", range(6))
def test_equals_pickle_on_refs(protocol: int) -> None:
    data = pickle.dumps(REFS, protocol)
    assert loads(data) == REFS
    assert repr(loads(data)) == repr(pickle.loads(data))  # True is not 1, ints are not floats


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), children, max_size=4)
    ),
    max_leaves=12,
)


@given(value=plain, protocol=st.integers(0, 5))
def test_equals_pickle_on_plain_data(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    try:
        result = loads(data)
    except PickleError as error:
        assert "deep" in str(error) or "digits" in str(error)  # noqa: PT017
    else:
        assert repr(result) == repr(value)


def test_python_2_strings_are_utf8_then_latin1() -> None:
    assert loads(b"U\x05caf\xc3\xa9.") == "café"
    assert loads(b"T\x04\x00\x00\x00caf\xe9.") == "café"
    assert loads(b"S'caf\\xc3\\xa9 \\'x\\' \\n'\np1\n.") == "café 'x' \n"
    assert loads(b'S"it\'s"\n.') == "it's"


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"cos\nsystem\n(S'ls'\ntR.", "opcode GLOBAL at byte 0"),
        (pickle.dumps(Attack(), 2), "opcode GLOBAL at byte 2"),
        (pickle.dumps(Attack(), 4), "opcode STACK_GLOBAL at byte"),
        (b"]R.", "opcode REDUCE at byte 1"),
        (b"(S'ls'\nios\nsystem\n.", "opcode INST"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"N0.", "opcode POP "),
        (b"Pid\n.", "opcode PERSID"),
        (pickle.dumps((1, 2), 2), "opcode TUPLE2"),
        (b")" + b"\x85" * 1000 + b".", "opcode EMPTY_TUPLE"),
        (b"\xff.", "unknown opcode"),
        (b"", "truncated"),
        (b"(", "truncated"),
        (b"X\xff\xff\xff\xffabc", "truncated"),
        (b"\x8d" + b"\xff" * 8 + b"a.", "truncated"),
        (b"I12", "a line without an end"),
        (b"N.N", "1 bytes follow the end"),
        (b"NN.", "unfinished"),
        (b"(.", "unfinished"),
        (b".", "unfinished"),
        (b"]r\xff\xff\xff\xff" + b"j\xfe\xff\xff\xff.", "never written"),
        (b"Np-1\n.", "memo index"),
        (b"p0\n.", "nothing on the stack"),
        (b"h\x00.", "never written"),
        (b"L" + b"9" * 5000 + b"L\n.", "at most 19 digits"),
        (b"I1_0\n.", "not an integer"),
        (b"\x8b\xff\xff\xff\x7f.", "not enough data in stream to read long4"),
        (b"\x8b\xff\xff\xff\xff.", "long4 byte count < 0: -1"),
        (b"Fabc\n.", "could not convert string to float"),
        (b"Sabc\n.", "without quotes"),
        (b"S'\\q'\n.", "unknown escape"),
        (b"S'\\'\n.", "unknown escape"),
        (b"X\x01\x00\x00\x00\xe9.", "not valid Unicode text"),
        (b"V\\ud800\n.", "not valid Unicode text"),
        (b"\x80\x06N.", "protocol 6"),
        (b"}K\x01K\x02s.", "key that is not a string"),
        (b"(U\x01ad.", "no value"),
        (b"NNa.", "expected a list on the stack"),
        (b"](a.", "the stack is empty"),
        (b"]Ne.", "no mark"),
        (b"]q\x00h\x00a.", "nested more than"),
        (b"]" * 17 + b"a" * 16 + b".", "nested more than"),
    ],
)
def test_hostile_input_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(PickleError) as caught:
        loads(data)
    assert says in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("refs", [3, 1200])  # pickle hands a list its entries by the thousand
def test_a_numpy_number_is_named_with_its_record(protocol: int, refs: int) -> None:
    records: list[Any] = [ref(number, number, 7, "red", "blue") for number in range(refs)]
    records[-1]["ann_id"] = np.int64(102)
    with pytest.raises(PickleError, match=r"GLOBAL at byte .* is refused") as caught:
        loads(pickle.dumps(records, protocol))
    says = f"refs[{refs - 1}]: field 'ann_id' is a numpy number: save plain ints, or JSON"
    assert says in str(caught.value)
    records[-1]["ann_id"] = 102
    records[1]["sentences"][1]["sent_id"] = np.int32(3)
    with pytest.raises(PickleError, match=r"refs\[1\]: field 'sent_id' is a numpy number"):
        loads(pickle.dumps(records, protocol))
    with pytest.raises(PickleError, match="is a numpy number"):
        loads(pickle.dumps(np.int64(1), protocol))


def test_deep_nesting_neither_crashes_nor_hangs() -> None:
    with pytest.raises(PickleError, match="nested more than"):
        loads(b"]" * 500_000 + b"a" * 499_999 + b".")


def test_shared_lists_are_shared_and_checked_in_no_time() -> None:
    # each level holds the one below ten times: 10 ** 12 entries if anybody walked them all
    value: list[object] = []
    for _ in range(12):
        value = [value] * 10
    result = loads(pickle.dumps(value, 2))
    assert isinstance(result, list)
    assert len(result) == 10
    assert all(each is result[0] for each in result)


def test_too_many_containers() -> None:
    with pytest.raises(PickleError, match="2000000 lists and dictionaries"):
        loads(b"(" + b"]" * 2_000_001 + b"l.")


def test_size_cap_and_file_name(tmp_path) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(REFS, 2))
    assert read_pickle(path) == REFS
    with pytest.raises(PickleError, match=r"refs\(unc\).p: larger than 100 bytes; pass max_bytes="):
        read_pickle(path, max_bytes=100)
    path.write_bytes(b"cos\nsystem\n.")
    with pytest.raises(PickleError, match=r"refs\(unc\).p: opcode GLOBAL at byte 0"):
        read_pickle(path)


def test_error_survives_a_worker() -> None:
    error = PickleError("opcode GLOBAL")
    assert str(pickle.loads(pickle.dumps(error))) == "opcode GLOBAL"


@given(
    protocol=st.integers(0, 5),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 40),
)
@settings(max_examples=400)
def test_damaged_bytes_raise_only_pickle_errors(
    protocol: int, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(pickle.dumps(REFS, protocol))
    for place, value in changes:
        data[place % len(data)] = value
    if cut:
        del data[-cut:]
    with contextlib.suppress(PickleError):
        loads(bytes(data))


@given(data=st.lists(st.sampled_from(b"(]}NUXKISqhgpaesuld.\x00\x01\x02\n\x94\x80"), max_size=60))
@settings(max_examples=400)
def test_random_programs_raise_only_pickle_errors(data: list[int]) -> None:
    with contextlib.suppress(PickleError):
        loads(bytes(data))
