"""Text files as they come: with or without a byte order mark, in UTF-8, UTF-16 or a code page of Windows."""

from __future__ import annotations

import codecs

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_PAGE = "cp1252"  # that of Western Europe, which most programs that write no UTF-8 mean


def decode_text(data: bytes) -> str:
    r"""The text in the bytes of a file, its byte order mark taken off. Any bytes are some text.

    >>> decode_text(b"\xef\xbb\xbfa"), decode_text("\ufeffü".encode("utf-16-le")), decode_text("ü".encode("cp1252"))
    ('a', 'ü', 'ü')
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None and 0 in data[:2] and data[:2] != b"\0\0":  # ASCII in UTF-16 has a zero in each pair
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    for name in (encoding, "utf-8", _PAGE):
        try:
            return data.decode(name) if name else data.decode("utf-8")
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def lines_of(data: bytes) -> list[str]:
    """Its lines without their ends, whichever of the three usual ones these are."""
    return decode_text(data).replace("\r\n", "\n").replace("\r", "\n").split("\n")
