"""Reader of Polycam's raw data (Export > Raw data): keyframes/ with pictures, cameras, and depths where there is LiDAR.

Frame. A camera's t_00 .. t_23 are the rows of its pose, an OpenGL camera (ARKit's: x right, y up, looking along -z) to
the world: metres, y up. Depth maps are 16-bit millimetres along the optical axis, with a confidence that is 0 where the
sensor was guessing. `corrected_` files are those that Polycam aligned once more after the capture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nerf.datasets.depths import MILLIMETRES, DepthMap
from nerf.datasets.named import pictures_in, visible
from nerf.datasets.parsed import Frame, Lens, ParsedScene
from nerf.datasets.readers import reader
from nerf.datasets.readers.transforms import finite, read_json


def find_cameras(folder: Path) -> Path | None:
    """The folder of camera files, those that Polycam corrected first; also where folder is keyframes/ itself."""
    for base in (folder / "keyframes", folder):
        for kind in ("corrected_", ""):
            place = base / f"{kind}cameras"
            some = visible(place, "*.json")[:3] if (base / f"{kind}images").is_dir() else []
            if any(b'"t_00"' in file.read_bytes() for file in some):  # other programs have folders of these names, too
                return place
    return None


@reader(
    "polycam",
    tells=lambda folder: folder if find_cameras(folder) else None,
    help="keyframes/cameras (Polycam's raw data)",
)
def read_polycam(folder: Path) -> ParsedScene:
    """One camera and picture for each file in corrected_cameras/, else in cameras/."""
    place = find_cameras(folder)
    assert place is not None
    images = place.with_name(place.name.replace("cameras", "images"))
    pictures = {p.stem: p for p in pictures_in(images)}
    frames = []
    for file in visible(place, "*.json"):
        data = read_json(file)
        where = f"{place.name}/{file.name}"
        names = [f"t_{row}{col}" for row in range(3) for col in range(4)]
        c2w = np.reshape([finite(data.get(name), name, where) for name in names], (3, 4))
        fx, fy, cx, cy = (finite(data.get(k), k, where) for k in ("fx", "fy", "cx", "cy"))
        w, h = (None if data.get(k) is None else int(finite(data[k], k, where)) for k in ("width", "height"))
        path = pictures.get(file.stem, images / f"{file.stem}.jpg")  # corrected cameras state no size since 2025
        frame = Frame(path.name, path, c2w, Lens(fx=fx, fy=fy, cx=cx, cy=cy, width=w, height=h), where)
        depth = place.parent / "depth" / f"{file.stem}.png"
        if depth.is_file():
            frame.depth = DepthMap(depth, MILLIMETRES, place.parent / "confidence" / f"{file.stem}.png")
        frames.append(frame)
    notes = [f"Polycam raw data, {place.name}: metres, y up"]
    if not place.name.startswith("corrected"):
        notes.append("Polycam did not correct these poses after the capture, so they may have drifted")
    return ParsedScene("polycam", folder, frames, notes)
