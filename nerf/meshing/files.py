"""Meshes to files: PLY, OBJ and GLB, in the world frame of the photos, through trimesh."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerf.errors import UserError

if TYPE_CHECKING:
    import trimesh

KINDS = (".ply", ".obj", ".glb")


def check_path(path: Path, overwrite: bool = True) -> None:
    """UserError unless a mesh can be written there; asked before the work begins."""
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{path}: a mesh file ends in {', '.join(KINDS)}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UserError(f"{path} exists; choose another name or give --overwrite")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: there is no such folder to write {path.name} to")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent} is not writable, so {path.name} cannot go there")


def save(mesh: trimesh.Trimesh, path: Path | str) -> None:
    """Write a mesh; the ending says how. A file of that name is replaced only when the new one is complete.

    Vertices keep their world coordinates in all formats (glTF calls y up; nothing is turned for it). PLY and GLB hold
    float32.
    """
    path = Path(path)
    check_path(path)
    kind = path.suffix.lower()[1:]
    data: Any = mesh.export(file_type=kind)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
