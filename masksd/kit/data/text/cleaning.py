"""Text before it is tokens: what is blank, and what OpenAI's CLIP does before its byte pairs.

OpenAI and open_clip call ``ftfy.fix_text``, then ``html.unescape`` twice, and collapse whitespace.
Here are the rules of ftfy that text about images meets, so that ids do not depend on it. Left out:
text in Cyrillic, Greek, Chinese or Japanese that was decoded wrongly, lost bytes, and HTML entities
in capitals.
"""

from __future__ import annotations

import html
import re
from unicodedata import category, normalize

_LATIN = {bytes([code]).decode("latin-1"): code for code in range(0x80, 0x100)}
_WINDOWS = {bytes([c]).decode("cp1252", "ignore") or chr(c): c for c in range(0x80, 0xA0)}
_BYTES = {**_LATIN, **_WINDOWS}  # characters that wrong decoding makes of a byte
_NEXT = "[" + "".join(char for char, code in _BYTES.items() if code < 0xC0) + "]"
# UTF-8 read as Windows-1252: accents, punctuation and full-width forms, emoji
_MISREAD = re.compile(f"[\xc2\xc3]{_NEXT}|[\xe2\xef]{_NEXT}{{2}}|\xf0{_NEXT}{{3}}")
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[a-zA-Z]")


def _plain_characters() -> dict[int, str | None]:
    """Return what replaces single characters; None removes one."""
    controls = (*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF)
    ligatures = (*map(ord, "Ĳĳŉﬀﬁﬂﬃﬄﬆ"), *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4))
    widths = (0x3000, *range(0xFF01, 0xFFF0))
    return {
        **{code: normalize("NFKC", chr(code)) for code in (*ligatures, *widths)},
        **{code: char for char, code in _WINDOWS.items()},  # control characters of Latin-1
        **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
        **dict.fromkeys(range(0x201C, 0x2020), '"'),
        **dict.fromkeys((*controls, *range(0xFFF9, 0xFFFD))),
        ord("ﬅ"): "ſt",
    }


_PLAIN = _plain_characters()
_INVISIBLE = {  # letters, marks and symbols that Unicode draws as nothing
    *(0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x2800, 0x3164, 0xFFA0),
    *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFF9)),
    *range(0xE0000, 0xE1000),
}


def is_blank(text: str) -> bool:
    r"""Return whether a text shows nothing: spaces, controls and invisible characters alone."""
    return all(
        category(char) in ("Cc", "Cf", "Zl", "Zp", "Zs") or ord(char) in _INVISIBLE for char in text
    )


def clean_sentence(text: str) -> str:
    """Clean a sentence as OpenAI does, all but the lower case."""
    before = None
    while text != before:  # one repair may show the next
        before = text
        if "<" not in text:  # else it may be HTML on purpose
            text = _ENTITY.sub(_unescape, text)
        text = _MISREAD.sub(_decode_again, text)
        text = normalize("NFC", _COLOUR.sub("", text).translate(_PLAIN))
    return " ".join(html.unescape(html.unescape(text)).split())


def _unescape(match: re.Match[str]) -> str:
    found = html.unescape(match[0])
    return match[0] if ";" in found else found  # a part of a name is not the entity


def _decode_again(match: re.Match[str]) -> str:
    try:
        return bytes(_BYTES[char] for char in match[0]).decode()
    except UnicodeDecodeError:
        return match[0]
