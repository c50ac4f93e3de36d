"""Reader of Agisoft Metashape: the XML of File > Export > Export Cameras (Agisoft XML), and a folder of photos.

Frame. A camera's transform takes its own frame (OpenCV: x right, y down, z forward) to the chunk's, and the transform
of its component (older files: of the chunk) takes that to Metashape's world: local coordinates in metres, or, for a
georeferenced chunk, geocentric ones (metres from the middle of the earth). Without such a transform the chunk's own
frame, of arbitrary scale, is the world.
In a multi-camera system only the master camera has a transform: a slave's is the master's, and then the rotation and
location of the slave's sensor, which take the slave's frame to the master's.
Lens. x' = x (1 + k1 r^2 + .. + k4 r^8) + p1 (r^2 + 2 x^2) + 2 p2 x y, so p1 and p2 change places with OpenCV's;
u = w/2 + cx + x' (f + b1) + y' b2, v = h/2 + cy + y' f; r is the angle from the axis for a fisheye. The type spherical,
which has no calibration, is the whole sphere: u = w/2 + w/(2 pi) atan(x / z), v = h/2 + h/pi atan(y / hypot(x, z)).
Source: Metashape Professional manual, appendix C.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from nerf.datasets.colmap_models import coefficients
from nerf.datasets.named import find_named, listed, visible
from nerf.datasets.parsed import Frame, Lens, ParsedScene, panorama
from nerf.datasets.readers import reader
from nerf.datasets.readers.transforms import numbers
from nerf.errors import UserError, brief
from nerf.geometry.cameras import OPENGL_FROM_OPENCV
from nerf.geometry.geodesy import GEOCENTRIC, Georeference
from nerf.geometry.lenses import FISHEYE, OPENCV, PERSPECTIVE, THIN_PRISM_FISHEYE
from nerf.io.text import decode_text

_MODELS = {"frame": OPENCV, "fisheye": FISHEYE}  # fisheye: equidistant, Metashape's own default
_EARTH = 6e6  # metres; a world so far from its origin is geocentric


def find_file(folder: Path) -> Path | None:
    """The first XML file in the folder that holds a chunk of cameras."""
    for file in visible(folder, "*.[xX][mM][lL]"):
        with suppress(OSError), open(file, "rb") as f:
            head = decode_text(f.read(4096))
            if "<document" in head and "<chunk" in head:
                return file
    return None


@reader("metashape", tells=find_file, help="an .xml of Metashape's cameras", file=".xml")
def read_metashape(file: Path) -> ParsedScene:
    """The aligned, enabled cameras of the chunk's largest component."""
    try:
        root = _root(file.read_bytes())
    except OSError as e:
        raise UserError(f"{file}: cannot be read ({e.strerror})") from e
    except (ElementTree.ParseError, ValueError, LookupError) as e:
        raise UserError(f"{file}: not valid XML ({brief(e)}): the file is cut off or damaged, export it again") from e
    chunk = root.find("chunk")
    entries = None if chunk is None else chunk.find("cameras")
    if chunk is None or entries is None:
        raise UserError(
            f"{file}: no <chunk> with <cameras> in it: in Metashape choose File > Export > Export Cameras, Agisoft XML"
        )
    lenses = {s.get("id"): s for s in chunk.iter("sensor")}
    all_cameras = list(entries.iter("camera"))
    disabled = [c for c in all_cameras if c.get("enabled", "1").lower() in ("0", "false")]
    masters = {c.get("id"): c for c in all_cameras if c.find("transform") is not None}
    lost = [c for c in all_cameras if c not in disabled and _master(c, masters) is None]
    notes: list[str] = []
    for what, some in (("disabled", disabled), ("not aligned", lost)):
        if some:
            names = listed([str(c.get("label")) for c in some])
            notes.append(f"left out {len(some)} of {len(all_cameras)} cameras that are {what}: {names}")
    if slaves := sum(c.find("transform") is None for c in all_cameras if c not in disabled and c not in lost):
        notes.append(f"multi-camera system: the poses of {slaves} slave cameras come from their masters'")
    aligned = _largest_component([c for c in all_cameras if c not in disabled and c not in lost], masters, notes)
    if not aligned:
        raise UserError(f"{file}: none of its {len(all_cameras)} cameras is aligned: align the photos and export again")

    first = _master(aligned[0], masters)
    world = _world_from_chunk(chunk, None if first is None else first.get("component_id"), file)
    georeference: Georeference | None = None
    if world is None:
        notes.append("world: the chunk's own frame, of arbitrary scale and direction (it has no transform)")
        world = np.eye(4)
    elif np.linalg.norm(world[:3, 3]) > _EARTH:
        notes.append("world: Metashape's geocentric frame, metres from the middle of the earth")
        georeference = Georeference(epsg=GEOCENTRIC)
    else:
        notes.append("world: Metashape's local frame")
    labels = [str(c.get("label", "")) for c in aligned]
    images = find_named(file.parent, labels, str(file))
    fitted: dict[str, Lens] = {}
    frames = []
    for camera, label in zip(aligned, labels, strict=True):
        where = f"{file.name}, camera {label}"
        sensor = str(camera.get("sensor_id"))
        if sensor not in fitted:
            if sensor not in lenses:
                raise UserError(f"{where}: its sensor {sensor} is not in the file")
            fitted[sensor] = _lens(lenses[sensor], f"{file.name}, sensor {sensor}", notes)
        master = _master(camera, masters)
        assert master is not None
        pose = _numbers(master.find("transform"), 16, where).reshape(4, 4)
        if master is not camera:
            pose = pose @ _offset(lenses[sensor], f"{file.name}, sensor {sensor}")
        name = images[label].name if images[label].is_file() else label
        frames.append(Frame(name, images[label], world @ pose @ OPENGL_FROM_OPENCV, fitted[sensor], where))
    return ParsedScene("metashape", file.parent, frames, notes, georeference=georeference)


def _root(data: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError):  # often of the encoding, which is not the one it states
        return ElementTree.fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", decode_text(data)))


def _master(camera: ElementTree.Element, masters: dict[str | None, ElementTree.Element]) -> ElementTree.Element | None:
    """The camera whose transform says where this one is: itself, or the one that it is a slave of; else None."""
    own = camera.find("transform") is not None
    return camera if own else masters.get(camera.get("master_id")) if camera.get("master_id") else None


def _offset(sensor: ElementTree.Element, where: str) -> np.ndarray:
    """[4,4] from the frame of a slave sensor to its master's."""
    matrix = np.eye(4)
    if (rotation := sensor.find("rotation")) is not None:
        matrix[:3, :3] = _numbers(rotation, 9, f"{where}, rotation").reshape(3, 3)
    if (location := sensor.find("location")) is not None:
        matrix[:3, 3] = _numbers(location, 3, f"{where}, location")
    return matrix


def _largest_component(
    cameras: list[ElementTree.Element], masters: dict[str | None, ElementTree.Element], notes: list[str]
) -> list[ElementTree.Element]:
    """Cameras of one component: those of another are placed by themselves, not against these."""
    groups: defaultdict[str | None, list[ElementTree.Element]] = defaultdict(list)
    for camera in cameras:
        master = _master(camera, masters)
        assert master is not None
        groups[master.get("component_id")].append(camera)
    if len(groups) > 1:
        sizes = ", ".join(str(len(g)) for g in groups.values())
        notes.append(f"of {len(groups)} components ({sizes} cameras) the largest was taken")
    return max(groups.values(), key=len, default=[])


def _world_from_chunk(chunk: ElementTree.Element, component_id: str | None, file: Path) -> np.ndarray | None:
    """[4,4] similarity, or None where neither the component nor the chunk states one."""
    component = next((c for c in chunk.iter("component") if c.get("id") == component_id), None)
    owner = chunk if component is None or component.find("transform") is None else component
    transform, where = owner.find("transform"), f"{file.name}, transform of the {owner.tag}"
    if transform is None:
        return None
    matrix = np.eye(4)
    if transform.find("rotation") is None and transform.find("translation") is None:
        if transform.text and len(transform.text.split()) == 16:
            matrix = _numbers(transform, 16, where).reshape(4, 4)
    else:
        scale = transform.find("scale")
        s = 1.0 if scale is None else float(_numbers(scale, 1, where)[0])
        if not s > 0:
            raise UserError(f"{where}: its scale is {s:g}, expected a number above zero")
        matrix[:3, :3] = s * _numbers(transform.find("rotation"), 9, where).reshape(3, 3)
        matrix[:3, 3] = _numbers(transform.find("translation"), 3, where)
    return matrix


def _numbers(element: ElementTree.Element | None, count: int, where: str) -> np.ndarray:
    text = "" if element is None else element.text or ""
    values = numbers(text.split(), f"{where}: {text.strip()[:60]!r} holds something that is no number")
    if values.shape != (count,) or not np.isfinite(values).all():
        raise UserError(f"{where}: expected {count} finite numbers, got {len(values)} ({text.strip()[:60]!r})")
    return values


def _lens(sensor: ElementTree.Element, where: str, notes: list[str]) -> Lens:
    if str(sensor.get("type")).lower() == "spherical":
        notes.append(f"{where}: panoramas (the type spherical)")
        return panorama(*_resolution([sensor], where), where)
    found = sensor.findall("calibration")
    calibration = next((c for c in found if c.get("class") == "adjusted"), found[0] if found else None)
    if calibration is None:
        raise UserError(f"{where}: has no calibration: align the photos with this sensor and export again")
    kind = str(calibration.get("type") or sensor.get("type") or "frame").lower()
    model = _MODELS.get(kind, -1)
    if kind not in _MODELS or _MODELS.get(str(sensor.get("type", kind)).lower(), -1) != model:
        raise UserError(
            f"{where}: cameras of the type {sensor.get('type', kind)} are not supported (known: frame, fisheye, which "
            "is equidistant, and spherical): undistort the photos in Metashape and export those cameras"
        )

    def number(name: str, default: float) -> float:
        element = calibration.find(name)
        return default if element is None else float(_numbers(element, 1, f"{where}, {name}")[0])

    width, height = _resolution([calibration, sensor], where)
    f = number("f", math.nan)
    if math.isnan(f):  # before version 1.2: two focal lengths, and the principal point from the corner
        fx, fy = number("fx", math.nan), number("fy", math.nan)
        cx, cy, b2 = number("cx", 0.5 * width), number("cy", 0.5 * height), number("skew", 0.0)
    else:
        fx, fy, b2 = f + number("b1", 0.0), f, number("b2", 0.0)
        cx, cy = 0.5 * width + number("cx", 0.0), 0.5 * height + number("cy", 0.0)
    if not (fx > 0 and fy > 0):
        raise UserError(f"{where}: the focal length is {fx} x {fy}, expected pixels above zero")
    p1, p2 = number("p2", 0.0), number("p1", 0.0)  # OpenCV's names for them
    reach = 0.5 * math.hypot(width, height) / min(fx, fy)  # of the picture's corner, before distortion
    tangential = 3 * math.hypot(p1, p2) * reach**2 * max(fx, fy)
    shift = tangential * (abs(number("p3", 0.0)) * reach**2 + abs(number("p4", 0.0)) * reach**4)
    if shift > 1.0:
        raise UserError(
            f"{where}: p3, p4 move pixels by up to {shift:.1f} and are not supported: switch them off in Metashape "
            "(Optimize Cameras), or undistort the photos there and export those cameras"
        )
    if shift > 0.01:
        notes.append(f"{where}: p3, p4 were left out; they move pixels by at most {shift:.2f}")
    k = {f"k{i}": number(f"k{i}", 0.0) for i in (1, 2, 3, 4)} | {"p1": p1, "p2": p2, "skew": b2 / fx}
    if model == FISHEYE and (p1 or p2):
        model = THIN_PRISM_FISHEYE
    if model == OPENCV and not any(k.values()):
        model = PERSPECTIVE
    return Lens(model, fx, fy, cx, cy, width, height, coefficients(k))


def _resolution(elements: list[ElementTree.Element], where: str) -> tuple[int, int]:
    """(width, height), of the first of the elements that states it."""
    found = next((r for element in elements if (r := element.find("resolution")) is not None), None)
    try:
        width, height = (int(str(found.get(k))) for k in ("width", "height"))  # type: ignore[union-attr]
        if not 0 <= min(width, height) <= max(width, height) <= 1 << 31:
            raise ValueError
    except (AttributeError, ValueError) as e:
        raise UserError(f"{where}: states no resolution") from e
    return width, height
