"""Ways of damaging a file: its bytes, its text, its structure, and contents that a right checksum vouches for."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

NUMBERS = [
    *("0", "-1", "-0.0", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "1e308", "1e-320", "0.5", "1e30"),
    *("255", "65536", "2147483648", "-2147483649", "4294967296", "9223372036854775808", "1e18"),
    *("9" * 310, "-" + "9" * 310, "9" * 5000, "0." + "3" * 5000),
]
WORDS = [
    *(b"", b"A" * 5000, b"a\0b", b"a\x1b[31mb\x07", b"\xed\xa0\x80", b"\xe9\xfc", b"\xff\xfe", b"../../x", b"a\nb"),
    *(b"\xe2\x80\xae", b"/", b".", b"..", b"C:\\a\\b.png", b"null", b"\xf0\x9f\x93\xb7"),
]
JSON_WORDS = ["", "A" * 5000, "a\\u0000b", "a\\u001b[31mb", "\\ud800", "../../x", "a\\nb", "/", ".", "PINHOLE", "none"]
WRONG = ["null", "true", "[]", "{}", '""', '"x"', "[1]", "[[]]", '{"a": 1}', '["x", 1]', "[null]", "[[1], [1, 2]]"]
DEPTHS = (20, 300, 1000, 5000, 100_000)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_WORD = re.compile(rb"[A-Za-z_][\w./-]*")


# ---- bytes


def flip(data: bytes, random: Random) -> bytes:
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 40)) if out else 0):
        # headers decide more than what follows them
        out[random.randrange(min(len(out), random.choice((64, 512, len(out)))))] ^= 1 << random.randrange(8)
    return bytes(out)


def truncate(data: bytes, random: Random) -> bytes:
    return data[: random.choice((0, 1, 8, len(data) // 2, max(0, len(data) - 1), random.randrange(len(data) + 1)))]


def insert(data: bytes, random: Random) -> bytes:
    at, n = random.randrange(len(data) + 1), random.choice((1, 4, 100, 5000))
    return data[:at] + random.choice((random.randbytes(n), b"\0" * n, b"\xff" * n)) + data[at:]


def splice(data: bytes, random: Random) -> bytes:
    """A piece of the file over, or in front of, another place of it."""
    a, b, n = (random.randrange(len(data) + 1) for _ in range(3))
    piece = data[a : a + n % 300]
    return data[:b] + piece + data[b + random.choice((0, len(piece))) :]


def word(data: bytes, random: Random) -> bytes:
    """A number of 2, 4 or 8 bytes somewhere in the beginning becomes an extreme one: sizes, counts, offsets."""
    form = random.choice(("<H", ">H", "<I", ">I", "<Q", ">Q", "<f", "<d"))
    size = struct.calcsize(form)
    if len(data) < size:
        return insert(data, random)
    if form[1] in "fd":
        value: float = random.choice((float("nan"), float("inf"), -1.0, 0.0, 1e30, 1e-30))
    else:
        top = 1 << (8 * size)
        value = random.choice((0, 1, top - 1, top // 2, top // 2 - 1, top // 16, 1000, 60000 % top))
    last = min(len(data), random.choice((64, 256, len(data)))) - size
    at = random.randrange(max(1, last + 1))
    at -= at % random.choice((1, min(size, 4)))
    return data[:at] + struct.pack(form, value) + data[at + size :]


RAW: tuple[Mutation, ...] = (flip, flip, truncate, insert, splice, word, word)


def raw(data: bytes, random: Random) -> bytes:
    return random.choice(RAW)(data, random)


# ---- text


def number(data: bytes, random: Random) -> bytes:
    return _replaced(_NUMBER, data, random, lambda: random.choice(NUMBERS).encode())


def name(data: bytes, random: Random) -> bytes:
    return _replaced(_WORD, data, random, lambda: random.choice(WORDS))


def _replaced(pattern: re.Pattern[bytes], data: bytes, random: Random, new: Callable[[], bytes]) -> bytes:
    found = list(pattern.finditer(data))
    for match in sorted(random.sample(found, min(len(found), random.choice((1, 1, 1, 5)))), key=lambda m: -m.start()):
        data = data[: match.start()] + new() + data[match.end() :]
    return data


def lines(data: bytes, random: Random) -> bytes:
    rows = data.split(b"\n")
    i, j = random.randrange(len(rows)), random.randrange(len(rows))
    what = random.randrange(4)
    if what == 0:
        del rows[i]
    elif what == 1:
        rows.insert(j, rows[i])
    elif what == 2:
        rows[i], rows[j] = rows[j], rows[i]
    else:
        rows[i] = rows[i][: random.randrange(len(rows[i]) + 1)]
    return b"\n".join(rows)


def encoding(data: bytes, random: Random) -> bytes:
    text = data.decode("latin-1")
    declared = random.choice((b"utf-7", b"utf-16", b"cp037", b"latin-1", b"no-such", b"A" * 5000))
    accents = _replaced(_WORD, data, random, lambda: b"\xe9t\xe9")
    marked = text.encode("utf-8-sig"), text.encode("utf-16"), text.encode("utf-16-be"), text.encode("utf-32"), accents
    return random.choice((*marked, data.replace(b"UTF-8", declared)))


def nest(data: bytes, random: Random) -> bytes:
    """Brackets or elements within one another, in the place of a number."""
    depth, (a, b) = (
        random.choice(DEPTHS),
        random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"<a>", b"</a>"), (b"(", b")"))),
    )
    middle = b"1" if a != b"<a>" else b""
    return _replaced(_NUMBER, data, random, lambda: a * depth + middle + b * random.choice((depth, 0)))


def text(data: bytes, random: Random) -> bytes:
    return random.choice((number, number, number, name, name, lines, encoding, nest, raw))(data, random)


# ---- structure


def tree(data: bytes, random: Random) -> bytes:
    """One place of a JSON document becomes something else, or goes."""
    try:
        content = json.loads(data)
    except ValueError:
        return text(data, random)
    return changed(content, random).encode("utf-8", "surrogatepass")


def changed(content: Any, random: Random) -> str:
    """JSON text of a document with one or a few places changed; what goes in need not be anything that JSON has."""
    mark, new = "\x01place\x01", []
    for _ in range(random.choice((1, 1, 1, 3))):
        places: list[tuple[Any, Any]] = []
        _walk(content, places, random)
        if not places:
            break
        parent, key = random.choice(places)
        what = random.randrange(12)
        if what == 0:
            del parent[key]
        elif what == 1:
            other, at = random.choice(places)
            parent[key] = json.loads(json.dumps(other[at], default=str))
        elif what == 2 and isinstance(parent[key], list):
            parent[key] = random.choice((parent[key][:-1], parent[key] * 2, [], [parent[key]]))
        elif what == 3 and isinstance(parent, dict):
            parent["A" * 5000 if random.random() < 0.3 else "unknown"] = parent.pop(key)
        else:
            parent[key] = f"{mark}{len(new)}"
            new.append(_literal(random))
    written = json.dumps(content)
    for i in reversed(range(len(new))):
        written = written.replace(json.dumps(f"{mark}{i}"), new[i])
    return written


def _walk(content: Any, places: list[tuple[Any, Any]], random: Random) -> None:
    keys: Any = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    keys = list(keys)
    for key in keys if len(keys) < 40 else random.sample(keys, 40):
        places.append((content, key))
        _walk(content[key], places, random)


def _literal(random: Random) -> str:
    kind = random.randrange(10)
    if kind < 4:
        return random.choice(NUMBERS)
    if kind < 6:
        return f'"{random.choice(JSON_WORDS)}"'
    if kind < 9:
        return random.choice(WRONG)
    depth, (a, b) = random.choice(DEPTHS), random.choice((("[", "]"), ('{"a":', "}")))
    return f"{a * depth}1{b * depth}"


def json_file(data: bytes, random: Random) -> bytes:
    return random.choice((tree, tree, tree, text, raw))(data, random)


# ---- inside of binary formats


def head_of(end: bytes) -> Mutation:
    """Text up to a mark, then bytes: the text is damaged."""

    def damage(data: bytes, random: Random) -> bytes:
        if random.random() < 0.4:
            return raw(data, random)
        at = data.find(end) + 1
        return text(data[:at], random) + data[at:]

    return damage


def npy(data: bytes, random: Random) -> bytes:
    """The header, a Python literal whose length comes before it."""
    if random.random() < 0.4 or data[:6] != b"\x93NUMPY":
        return raw(data, random)
    end = data.index(b"\n") + 1
    what = random.choice((number, name, nest, lines, encoding))
    header = what(data[10:end], random)[:60000]
    return data[:8] + struct.pack("<H", len(header)) + header + data[end:]


def npz(data: bytes, random: Random) -> bytes:
    """One of the arrays in a ZIP archive that is otherwise right."""
    if random.random() < 0.4:
        return raw(data, random)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {item: archive.read(item) for item in archive.namelist()}
    chosen = random.choice(list(members))
    members[chosen] = npy(members[chosen], random)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for item, content in members.items():
            archive.writestr(item, content)
    return out.getvalue()


def png(data: bytes, random: Random) -> bytes:
    """A chunk's contents, its checksum right again."""
    if random.random() < 0.4:
        return raw(data, random)
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    i = random.randrange(len(chunks))
    chunks[i] = (chunks[i][0], random.choice((flip, word, truncate))(chunks[i][1], random))
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def glb(data: bytes, random: Random) -> bytes:
    """The JSON of a GLB, its lengths right again."""
    if random.random() < 0.3:
        return raw(data, random)
    (size,) = struct.unpack_from("<I", data, 12)
    content = tree(data[20 : 20 + size], random)
    content += b" " * (-len(content) % 4)
    rest = data[20 + size :]
    return data[:8] + struct.pack("<II", 20 + len(content) + len(rest), len(content)) + b"JSON" + content + rest


def checkpoint(data: bytes, random: Random) -> bytes:
    """Config, tensors and header of a checkpoint, under a checksum that is right; or its bytes."""
    what = random.randrange(10)
    if what < 2:
        return raw(data, random)
    (size,) = struct.unpack_from("<Q", data)
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if what < 7:
        about = header["__metadata__"]
        about["config"] = changed(json.loads(about["config"]), random)
    else:
        names = [key for key in header if key != "__metadata__"]
        header, body = _tensor(header, body, random.choice(names), random)
    blank = "0" * 64
    header["__metadata__"]["sha256"] = blank
    start = json.dumps(header, separators=(",", ":")).encode()
    start += b" " * (-len(start) % 8)
    start = struct.pack("<Q", len(start)) + start
    digest = hashlib.sha256(start + body).hexdigest()
    return start.replace(blank.encode(), digest.encode(), 1) + body


def _tensor(header: dict[str, Any], body: bytes, key: str, random: Random) -> tuple[dict[str, Any], bytes]:
    entry = header[key]
    start, end = entry["data_offsets"]
    what = random.randrange(6)
    if what == 0:  # gone; the others stay where they are, so it keeps its bytes under another name
        header["unknown"] = header.pop(key)
    elif what == 1:
        entry["dtype"] = random.choice(
            {"F32": ("I32", "U32"), "F64": ("I64", "U64"), "I64": ("F64", "U64")}.get(entry["dtype"], ("U8", "BOOL"))
        )
    elif what == 2:
        shape = entry["shape"]
        entry["shape"] = random.choice((shape[::-1], [*shape, 1], [1, *shape], [end - start]))
    elif what == 3:  # numbers of other kinds, the same bytes
        pattern = random.choice(
            (b"\xff" * 8, b"\0" * 8, b"\0\0\x80\x7f" * 2, b"\xf0\x49\x02\xf0" * 2, b"\x01" + b"\0" * 7)
        )
        body = body[:start] + (pattern * ((end - start) // 8 + 1))[: end - start] + body[end:]
    else:
        body = body[:start] + raw(body[start:end], random)[: end - start].ljust(end - start, b"\0") + body[end:]
    return header, body


def packed(data: bytes, random: Random) -> bytes:
    """The compressed JSON at the beginning of a packed signal, its length right again; or its bytes."""
    if random.random() < 0.4:
        return raw(data, random)
    at = data.index(b"\n") + 1
    (size,) = struct.unpack_from("<I", data, at)
    header = zlib.decompress(data[at + 4 : at + 4 + size])
    header = zlib.compress(tree(header, random) if random.random() < 0.8 else text(header, random))
    return data[:at] + struct.pack("<I", len(header)) + header + data[at + 4 + size :]


# what a mutation comes upon in a file that an earlier one has damaged
SPOILT = (ValueError, LookupError, TypeError, RecursionError, struct.error, zlib.error, zipfile.BadZipFile)

BY_SUFFIX: dict[str, Mutation] = {
    **dict.fromkeys((".json", ""), json_file),
    **dict.fromkeys((".txt", ".csv", ".xml", ".obj", ".off", ".mtl"), text),
    ".ply": head_of(b"end_header\n"),
    ".npy": npy,
    ".npz": npz,
    ".png": png,
    ".glb": glb,
    ".safetensors": checkpoint,
    ".nerf": packed,
}


def mutate(data: bytes, suffix: str, random: Random) -> bytes:
    """The contents of a file of that kind, damaged once or twice."""
    damage = BY_SUFFIX.get(suffix, raw)
    for _ in range(random.choice((1, 1, 1, 2))):
        try:
            data = damage(data, random)
        except SPOILT:
            data = raw(data, random)
    return data
