"""What one client looks at, and the pictures that it gets: rendered a tile at a time, so that a move can end them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nerf.geometry.cameras import Cameras
from nerf.geometry.light import decode
from nerf.io.pictures import to_display
from nerf.rendering.model import Model
from nerf.rendering.view import View
from nerf.training.evaluation import as_taken
from nerf.views.video import picture_of
from nerf.views.viewer.compare import Compared, beside, compared, inner_size
from nerf.views.viewer.pace import Pace, Size

TILE_SECONDS = 0.03  # of work between two looks at whether the view has moved
SMALLEST_TILE = 1024  # rays: fewer do not keep the cores busy
MOVING_STRETCH = 2.0  # of the steps along rays while the view moves
DEPTH_LONGEST = 640  # pixels of the depths that hide what lies behind the scene
ALL_MODES = ("color", "depth", "normal", "opacity")
MOST_STOPS = 16.0  # of exposure, either way
BACKGROUNDS = {"white": 1.0, "grey": 0.5, "black": 0.0}  # sRGB values, behind what is not solid


class Photo(Protocol):
    """An input camera and its photo."""

    cameras: Cameras  # of one camera

    def pixels(self) -> tuple[np.ndarray, np.ndarray | None]:
        """As it is shown: sRGB values [h,w,3] float32, and which pixels count."""


@dataclass
class Shown:
    """A picture for a client: [h,w,3] uint8; z-depths [h,w] in world units where a scene is behind it, inf where
    nothing is; the comparison that it shows."""

    picture: np.ndarray
    z_depths: np.ndarray | None
    size: Size
    seconds: float
    compared: Compared | None = None


class Viewport:
    """The state of one client. model: what is shown now, asked for as each picture begins. show: takes each picture."""

    def __init__(
        self,
        model: Callable[[], Model | None],
        show: Callable[[Shown], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.show, self.clock = model, show, clock
        self.pace = Pace()
        self.c2w: Tensor | None = None  # [3,4] world, OpenGL
        self.fov = 0.9  # vertical, radians
        self.window = (0, 0)  # width, height of the client's canvas
        self.mode = "color"
        self.stops, self.background = 0.0, ""  # of exposure; one of BACKGROUNDS, "": the model's
        self.with_depth = False  # of the pictures, to hide what is drawn behind the scene
        self.off = False  # a mesh is shown instead
        self.photo: Photo | None = None  # compared with it, instead of the view from c2w
        self.slider, self.error = 0.5, False
        self.pictures = 0
        self._range: tuple[float, float] | None = None
        self._compared: Compared | None = None

    # ---- what the client does

    def look_from(self, c2w: Tensor, fov: float, window: tuple[int, int]) -> bool:
        """The client's camera; False where it has not moved."""
        same = self.c2w is not None and torch.allclose(self.c2w, c2w, atol=1e-9) and self.window == window
        if same and abs(fov - self.fov) < 1e-6:
            return False
        self.c2w, self.fov, self.window = c2w, fov, window
        self.pace.moved(self.clock())
        return True

    def set_mode(self, mode: str) -> None:
        if mode not in ALL_MODES:
            raise ValueError(f"mode: expected one of {', '.join(ALL_MODES)}, got {mode!r}")
        self.mode, self._range = mode, None
        self.pace.changed()

    def set_light(self, stops: float | None = None, background: str | None = None) -> None:
        """Colours so many times twice as bright; what is behind them: one of BACKGROUNDS, or "" for the model's own."""
        stops, background = (
            self.stops if stops is None else stops,
            self.background if background is None else background,
        )
        if not abs(stops) <= MOST_STOPS or background not in ("", *BACKGROUNDS):
            raise ValueError(f"light: {stops!r} stops, {background!r}")
        self.stops, self.background = stops, background
        self.pace.changed()

    def compare_with(self, photo: Photo | None) -> None:
        """Show an input camera's photo beside its rendering; None: the view from the client's camera again."""
        self.photo, self._compared = photo, None
        self.pace.moved(self.clock())

    def slide(self, share: float | None = None, error: bool | None = None) -> None:
        """Move the edge between photo and rendering; nothing is rendered for it."""
        self.slider = self.slider if share is None or not 0 <= share <= 1 else share
        self.error = self.error if error is None else error
        if self.photo is not None and self._compared is not None:
            found = self._compared
            h, w = found.rendered.shape[:2]
            picture = beside(found, self.slider, self.window, self.error)
            self._show(Shown(picture, None, Size(w, h, 2, True), 0.0, found))

    # ---- what the loop asks

    def wait(self, now: float) -> float | None:
        return None if self.c2w is None or self.off or self.model() is None else self.pace.wait(now)

    def begin(self, now: float) -> Iterator[None] | None:
        if self.c2w is None or self.off or self.model() is None:
            return None
        photo = self.photo
        if photo is not None:
            cameras = photo.cameras
            window = inner_size((int(cameras.widths[0]), int(cameras.heights[0])), self.window)
        else:
            window = self.window
        size = self.pace.next_size(now, *window)
        return None if size is None else self._render(size, photo)

    def _render(self, size: Size, photo: Photo | None) -> Iterator[None]:
        try:
            yield from self._picture(size, photo)
        except Exception:
            self.pace.level = None  # what failed once is not tried again and again: a move or a change begins anew
            raise

    def _picture(self, size: Size, photo: Photo | None) -> Iterator[None]:
        model = self.model()
        assert model is not None and self.c2w is not None
        turn, mode, started = self.pace.turn, self.mode if photo is None else "color", self.clock()
        if photo is None:
            focal = size.height / (2 * np.tan(self.fov / 2))
            cameras = Cameras.perspective(self.c2w[None], float(focal), size.width, size.height)
            model = before(model, self.background)
        else:
            cameras = photo.cameras.resized(size.width, size.height)
        if size.level == 0 and not size.last:
            model = model.coarser(MOVING_STRETCH)
        spent = 0.0
        view: View[np.ndarray] | None = None
        for view, seconds in in_tiles(model, cameras, mode == "normal", self.pace.rate, self.clock):
            spent += seconds
            if view is None:
                yield
                if self.pace.cancelled(size.level, turn):
                    return
        assert view is not None
        self.pace.finished(size.level, spent, size.width * size.height, turn, size.last)
        shown = self._shown(model, cameras, view, mode, size, photo)
        shown.seconds = self.clock() - started
        self._show(shown)

    def _shown(
        self, model: Model, cameras: Cameras, view: View[np.ndarray], mode: str, size: Size, photo: Photo | None
    ) -> Shown:
        if photo is not None:
            pixels, mask = photo.pixels()
            view = as_taken(model, cameras, view, model.background, model.linear)
            rendered = to_display(view.color * model.exposure, model.linear).astype(np.float32) / 255
            self._compared = compared(pixels, rendered, mask)
            picture = beside(self._compared, self.slider, self.window, self.error)
            return Shown(picture, None, size, 0.0, self._compared)
        if mode == "depth" and (size.level > 0 or self._range is None):
            self._range = depth_range(view)
        if mode == "color" and self.stops:
            shown = view.color * model.exposure
            picture = to_display((shown if model.linear else decode(shown)) * 2.0**self.stops, linear=True)
        else:
            picture = picture_of(view, mode, self._range or (0.0, 1.0), model)
        return Shown(picture, z_depths(model, cameras, view) if self.with_depth else None, size, 0.0)

    def _show(self, shown: Shown) -> None:
        self.pictures += 1
        self.show(shown)


def before(model: Model, background: str) -> Model:
    """The model before one of BACKGROUNDS, "": its own; its field is not copied."""
    if not background:
        return model
    other, value = copy(model), torch.tensor(BACKGROUNDS[background])
    other.background = torch.full_like(
        model.background, float(decode(value) / model.exposure if model.linear else value)
    )
    other.sky = None
    return other


def in_tiles(
    model: Model,
    cameras: Cameras,
    normals: bool,
    rate: float,
    clock: Callable[[], float] = time.perf_counter,
    seconds: float = TILE_SECONDS,
) -> Iterator[tuple[View[np.ndarray] | None, float]]:
    """The view of the first camera, whole rows at a time: (None, seconds of work) after each tile but the last, then
    (the view, seconds). Each tile takes about so many seconds at a rate of rays a second."""
    h, w = int(cameras.heights[0]), int(cameras.widths[0])
    names = {"color": 3, "opacity": 1, "depth": 1, **({"normal": 3} if normals else {})}
    parts: dict[str, list[Any]] = {name: [] for name in names}
    cameras = cameras.to(model.device)
    n_rows = max(1, round(max(SMALLEST_TILE, rate * seconds) / w))
    for top in range(0, h, n_rows):
        started = clock()
        pixels = torch.arange(top * w, min(top + n_rows, h) * w, device=model.device)
        rays = cameras.rays(torch.zeros_like(pixels), pixels // w, pixels % w, model.scene_from_world)
        seen = model.trace(*rays, normals)
        for name, part in parts.items():
            part.append(getattr(seen, name).cpu())
        if top + n_rows < h:
            yield None, clock() - started
        else:
            whole = {name: torch.cat(part).numpy().astype(np.float32) for name, part in parts.items()}
            shaped = {name: x.reshape((h, w, 3) if names[name] == 3 else (h, w)) for name, x in whole.items()}
            yield View(**shaped), clock() - started


def depth_range(view: View[np.ndarray]) -> tuple[float, float]:
    """2nd and 98th percentile of what is solid, scene length."""
    solid = view.depth[(view.opacity > 0.5) & np.isfinite(view.depth)]
    if not len(solid):
        return 0.0, 1.0
    near, far = (float(v) for v in np.percentile(solid, [2, 98]))
    return near, max(far, near * 1.0001 + 1e-9)


def z_depths(model: Model, cameras: Cameras, view: View[np.ndarray]) -> np.ndarray:
    """Depths along the optical axis in world units of a perspective view, inf where nothing solid is; at most
    DEPTH_LONGEST pixels along a side."""
    h, w = view.depth.shape
    step = max(1, -(-max(h, w) // DEPTH_LONGEST))
    rows, cols = np.arange(0, h, step), np.arange(0, w, step)
    y = (rows + 0.5 - float(cameras.cy[0])) / float(cameras.fy[0])
    x = (cols + 0.5 - float(cameras.cx[0])) / float(cameras.fx[0])
    along = 1.0 / np.sqrt(1.0 + y[:, None] ** 2 + x[None] ** 2)
    depth, opacity = view.depth[::step, ::step], view.opacity[::step, ::step]
    solid = (opacity > 0.5) & (depth > 0) & np.isfinite(depth)
    return np.where(solid, depth * along / model.scene_from_world.scale, np.inf).astype(np.float32)
