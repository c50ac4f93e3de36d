"""The rooms of nerf/ and which may import which: a test holds imports to this table, docs/architecture.md draws it.

`python scripts/rooms.py` writes the drawing anew.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: written by scripts/rooms.py -->", "<!-- end of rooms -->"

# room -> (what is in it, the rooms that it may import); a room comes after all that it knows
ROOMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "errors": ("`UserError`, the sentence that a user reads; `Range`, what a setting may be", ()),
    "geometry": ("cameras, rotations, spaces, light, triangle meshes", ("errors",)),
    "io": ("files, pictures, films, checkpoints, progress, interrupts", ("errors", "geometry")),
    "kernels": ("native code behind one interface: reference, CPU, CUDA, tinycudann", ("errors", "geometry", "io")),
    "fields": ("encodings, networks, the radiance field, the occupancy grid", ("errors", "kernels")),
    "rendering": (
        "rays to colours: marching, compositing, losses and metrics, `Model`",
        ("errors", "geometry", "io", "kernels", "fields"),
    ),
    "datasets": ("folders of posed photos to a `Scene`: readers, pixel store, export", ("errors", "geometry", "io")),
    "training": (
        "the loop: pixels, objective, schedules, pose and exposure corrections; evaluation",
        ("errors", "geometry", "io", "kernels", "fields", "rendering", "datasets"),
    ),
    "meshing": (
        "a field to a textured mesh, and a mesh against the truth",
        ("errors", "geometry", "io", "kernels", "rendering", "datasets", "training"),
    ),
    "capture": ("photos or a video without poses to a data set", ("errors", "geometry", "io", "datasets")),
    "checks": (
        "photos asked whether they fit poses, lenses and masks",
        ("errors", "geometry", "io", "datasets", "capture"),
    ),
    "signals": (
        "images, sounds, videos, shapes: the same encodings and networks",
        ("errors", "geometry", "io", "kernels", "fields", "rendering", "meshing"),
    ),
    "views": (
        "camera paths, videos, the viewer, the page to send, the report",
        ("errors", "geometry", "io", "rendering", "training", "meshing"),
    ),
    "cli": (
        "the command `nerf`, one file a verb",
        (
            *("errors", "geometry", "io", "kernels", "rendering", "datasets", "training", "meshing"),
            *("capture", "checks", "signals", "views"),
        ),
    ),
}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for path in sorted((ROOT / "nerf").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, type_checking: bool = True) -> list[tuple[str, bool]]:
    """(dotted name, at module level?) of every import in a file, those inside functions included; without those under
    TYPE_CHECKING, which never run, unless they are asked for."""
    found: list[tuple[str, bool]] = []

    def walk(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test) and not type_checking:
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: write imports in full"
                found.extend((f"{child.module}.{alias.name}", top) for alias in child.names)
            walk(child, top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    walk(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def room_of(module: str) -> str:
    """The room of a dotted name below nerf ("" for the package itself and names that it defines)."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (parts[1] in ROOMS or parts[1] == "__main__") else ""


def drawing() -> str:
    """The table as a diagram and as text."""
    # an arrow that follows from two others is left out of the picture, not out of the table
    lines = ["```mermaid", "graph BT"]
    for room, (_, known) in ROOMS.items():
        direct = (other for other in known if not any(other in ROOMS[between][1] for between in known))
        lines += [f"    {room} --> {other}" for other in direct]
    lines += ["```", "", "| room | what is in it | may import |", "|---|---|---|"]
    for room, (what, known) in ROOMS.items():
        lines.append(f"| `nerf/{room}{'.py' if room == 'errors' else '/'}` | {what} | {', '.join(known) or '-'} |")
    return "\n".join(lines)


def page_with_drawing(text: str) -> str:
    """A page whose part between the two marks is the drawing of today."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{drawing()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_drawing(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
