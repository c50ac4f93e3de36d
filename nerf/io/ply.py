"""Binary PLY files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Columns(NamedTuple):
    """Some properties of each PLY vertex: PLY's type, the names with blanks between, values [n, number of names]."""

    kind: str
    names: str
    values: np.ndarray


_CODES = {"double": "<f8", "float": "<f4", "uchar": "u1"}


def ply(columns: Sequence[Columns], triangles: np.ndarray | None = None) -> bytes:
    """A binary little-endian PLY of vertices with these properties, in their order, and triangles [f,3]."""
    fields = [(name, column, k) for column in columns for k, name in enumerate(column.names.split())]
    rows = np.empty(len(columns[0].values), [(name, _CODES[column.kind]) for name, column, _ in fields])
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    for name, column, k in fields:
        rows[name] = np.asarray(column.values)[:, k]
        head.append(f"property {column.kind} {name}")
    body = rows.tobytes()
    if triangles is not None:
        faces = np.empty(len(triangles), [("n", "u1"), ("corners", "<i4", 3)])
        faces["n"], faces["corners"] = 3, triangles
        head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        body += faces.tobytes()
    return "\n".join([*head, "end_header", ""]).encode("ascii") + body
