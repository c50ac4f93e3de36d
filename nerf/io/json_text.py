"""JSON from outside, of which nothing is known yet but that it should be JSON."""

from __future__ import annotations

import json
from typing import Any

from nerf.io.text import decode_text

_EXACT = 18  # digits that every whole-number type of a library holds


def parse_json(data: bytes | str) -> Any:
    """What JSON text holds; ValueError for everything that is none, json.JSONDecodeError where a place can be told.

    Text is in any encoding that `decode_text` knows. A whole number that no library has room for becomes a float, and
    infinity above 1e308, so that who asks for a finite number need not think of it. What no name of a file can hold
    (NUL, half of a surrogate pair) is refused.

    >>> parse_json(b'{"w": 640, "h": 1000000000000000000000}')
    {'w': 640, 'h': 1e+21}
    """
    text = decode_text(data) if isinstance(data, bytes) else data
    try:
        content = json.loads(text, parse_int=_number)
        if "\\u0000" in text or "\\ud" in text.lower():
            plain = json.dumps(content, ensure_ascii=False)
            plain.encode("utf-8", "surrogateescape")  # halves of pairs have no code, but for bytes that are no UTF-8
            if "\\u0000" in plain.replace("\\\\", ""):  # no backslash before it
                raise ValueError("a text in it holds the character NUL")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _EXACT else float(digits)
