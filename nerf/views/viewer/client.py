"""One browser: its view, its pictures, the things that are drawn over them, and its panels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError, brief, note
from nerf.meshing.finish import transform_mesh
from nerf.views.viewer.frame import PageFrame
from nerf.views.viewer.key_views import fov_of
from nerf.views.viewer.pace import BESIDE_TRAINING
from nerf.views.viewer.panels.edit import EditPanel
from nerf.views.viewer.panels.export import ExportPanel
from nerf.views.viewer.panels.film import FilmPanel
from nerf.views.viewer.panels.look import LookPanel
from nerf.views.viewer.panels.training import TrainingPanel
from nerf.views.viewer.quiet import MOST_TOLD
from nerf.views.viewer.viewport import Shown, Viewport

if TYPE_CHECKING:
    from nerf.views.viewer.server import Viewer

INK = (40, 44, 52)
ACCENT = (38, 112, 200)
ORANGE = (200, 120, 40)
PALE = (165, 168, 173)
MOST_CELLS = 60_000  # of the occupancy grid, drawn at once
MOST_FRUSTA = 150  # drawn at once; of more cameras, evenly chosen ones
FRUSTUM = 0.13  # page length
KEY_VIEWS = "/key views"  # what they are drawn under
NEAR = 3 * FRUSTUM  # a frustum nearer than that would hide the view from it
QUALITY = (55, 75, 88)  # of JPEG, by the level of a picture
PAPER = np.full((2, 2, 3), 236, np.uint8)  # behind a mesh


class Client:
    """Made when a browser connects, `close`d when it has gone. handle: viser's."""

    def __init__(self, viewer: Viewer, handle: Any) -> None:
        self.viewer, self.handle, self.subject = viewer, handle, viewer.subject
        self.frame: PageFrame = self.subject.frame()
        self.viewport = Viewport(self.subject.shown, self._show)
        if viewer.training:
            self.viewport.pace.budgets = BESIDE_TRAINING
        self.closed = False
        self._n_mistakes = 0
        self._photo: int | None = None
        self._photo_pose: np.ndarray | None = None  # where the photo was taken, on the page
        self._arrived = False  # the browser is there: until then it may still tell of where it was before
        self._own: Any = None  # the camera while it is set from here
        self._nodes: dict[str, list[Any]] = {}
        self._frusta: list[int] = []  # the input cameras that are drawn
        self._lock = threading.RLock()
        with handle.atomic():
            tabs = handle.gui.add_tab_group()
            self.training = None
            if viewer.sharing is not None:
                with tabs.add_tab("Training"):
                    self.training = TrainingPanel(self)
            with tabs.add_tab("View"):
                self.look = LookPanel(self)
            with tabs.add_tab("Edit"):
                self.edit = EditPanel(self)
            with tabs.add_tab("Film"):
                self.film = FilmPanel(self)
            with tabs.add_tab("Export"):
                self.export = ExportPanel(self)
        if self.subject.model is None and viewer.sharing is None:
            self.show_mesh(True)
        handle.camera.on_update(self.moved)
        self.moved(handle.camera)
        viewer.loop.add(self.viewport)

    def close(self) -> None:
        """Nothing is kept of it."""
        self.closed = True
        self.viewer.loop.remove(self.viewport)
        self.film.close()

    # ---- talking

    def said(self, title: str, body: str = "", bad: bool = False) -> None:
        """A line in the corner of the page."""
        if not self.closed:
            self.handle.add_notification(title, body, auto_close_seconds=8.0, color="red" if bad else None)

    def safely(self, do: Callable[..., Any]) -> Callable[..., Any]:
        """What a button does, with its mistakes told on the page: none ends anything else."""

        def run(*arguments: Any) -> None:
            if self.closed:
                return
            try:
                do(*arguments)
            except UserError as error:
                self.said("That did not work", str(error), bad=True)
            except Exception as error:
                self._n_mistakes += 1
                if self._n_mistakes <= MOST_TOLD:  # a page that sends nonsense must not fill the terminal
                    note(f"viewer: {type(error).__name__}: {brief(error)}")
                self.said("That did not work", f"{type(error).__name__}: {brief(error)}", bad=True)

        return run

    def wake(self) -> None:
        self.viewer.loop.wake()

    # ---- the view

    def pose(self) -> tuple[Tensor, float]:
        """(world pose [3,4], vertical field of view in degrees) of the client's camera."""
        camera = self.handle.camera
        return self.frame.pose_to_world(camera.wxyz, camera.position), float(np.degrees(camera.fov))

    def moved(self, camera: Any) -> None:
        """The browser says where its camera is; numbers that are none change nothing."""
        numbers = np.array([*camera.wxyz, *camera.position, camera.fov], np.float64)
        if not np.isfinite(numbers).all() or not 0.01 < camera.fov < 3.1 or not np.linalg.norm(camera.wxyz) > 1e-6:
            return
        width, height = (int(min(max(n, 1), 8192)) for n in (camera.image_width, camera.image_height))
        if self._photo_pose is not None and camera is not self._own:
            there = np.allclose(numbers[4:7], self._photo_pose, atol=1e-3)
            if self._arrived and not there:  # who moves has done with comparing
                self.compare(None)
                self.look.left_photo()
            self._arrived = there or self._arrived
        pose = self.frame.pose_to_world(camera.wxyz, camera.position)
        if self.viewport.look_from(pose, float(camera.fov), (width, height)):
            self.wake()
            self.hide_near()

    def go_to(self, c2w: Tensor, fov: float | None = None) -> None:
        """Put the client's camera at a world pose; fov: vertical, degrees."""
        _, position = self.frame.pose(c2w)
        forward = self.frame.from_world.apply_directions(-c2w[None, :, 2].double())[0].numpy()
        distance = max(float(-position @ forward), 0.25)  # what is turned around later: the middle of the page
        camera = self.handle.camera
        with self.handle.atomic():
            camera.up_direction = (0.0, 0.0, 1.0)
            camera.position = tuple(position)
            camera.look_at = tuple(position + distance * forward)
            if fov is not None:
                camera.fov = float(np.radians(fov))
        self._own = camera
        self.moved(camera)
        self._own = None

    def go_to_photo(self, i: int) -> None:
        """The view of an input camera."""
        _, cameras = self.subject.cameras()
        if cameras is not None and 0 <= i < len(cameras):
            window = self.viewport.window
            fov = fov_of(cameras, i)
            wide = float(cameras.widths[i]) / float(cameras.heights[i])
            if window[1] and window[0] / window[1] < wide:  # the whole photo is to fit in
                tangent = np.tan(np.radians(fov) / 2) * wide * window[1] / window[0]
                fov = float(np.degrees(2 * np.arctan(tangent)))
            self.go_to(cameras.c2w[i], min(fov, 120.0))

    def compare(self, i: int | None) -> None:
        """Put an input camera's photo beside its rendering; None: no more."""
        if i is None:
            self._photo = self._photo_pose = None
            self.viewport.compare_with(None)
            self.wake()
            return
        photo = self.subject.photo(i)
        if photo is None:
            raise UserError("the photos of this run are not here, so nothing can be compared with them")
        self._photo_pose = None
        self.go_to_photo(i)
        self._arrived = False
        self._photo, self._photo_pose = i, np.asarray(self.handle.camera.position, np.float64).copy()
        self.viewport.compare_with(photo)
        self.wake()

    def _show(self, shown: Shown) -> None:
        if self.closed or self.viewport.off:
            return
        z = None if shown.z_depths is None else shown.z_depths * self.frame.scale
        self.handle.scene.set_background_image(
            shown.picture, format="jpeg", jpeg_quality=QUALITY[min(shown.size.level, 2)], depth=z
        )
        self.look.shown(shown)

    # ---- what is drawn over the pictures

    def redraw(self) -> None:
        """After the edits, the photos or the mesh have changed: the page is set up anew around the same view."""
        pose, _ = self.pose()
        before, self.frame = self.frame, self.subject.frame()
        turned = not torch.allclose(before.from_world.matrix(), self.frame.from_world.matrix())
        self.look.update()
        self.edit.update()
        self.export.update()
        if turned:
            names = [name for name, nodes in self._nodes.items() if nodes]
            for name in names:
                self.clear(name)
            self.look.draw()
            self.go_to(pose)
        self.colour_cameras()
        self.edit.draw()
        self.film.draw()
        self.viewport.pace.changed()
        self.wake()

    def put(self, name: str, nodes: list[Any]) -> None:
        """Keep what was drawn under a name, in the place of what was drawn under it before."""
        with self._lock:
            self.clear(name)
            self._nodes[name] = nodes
            self._need_depth()

    def clear(self, name: str) -> None:
        with self._lock:
            for node in self._nodes.pop(name, []):
                node.remove()
            self._need_depth()

    def _need_depth(self) -> None:
        """Depths go along with pictures while something is drawn that the scene may hide."""
        needed = any(self._nodes.values())
        if needed and not self.viewport.with_depth:
            self.viewport.pace.changed()
            self.wake()
        self.viewport.with_depth = needed

    def has(self, name: str) -> bool:
        return bool(self._nodes.get(name))

    def show_cameras(self, on: bool) -> None:
        """Input cameras as frusta with their photos; a click on one goes there."""
        _, cameras = self.subject.cameras()
        if not on or cameras is None:
            self.clear("cameras")
            return
        n = len(cameras)
        some = (
            range(n)
            if n <= MOST_FRUSTA
            else sorted({round(k * (n - 1) / (MOST_FRUSTA - 1)) for k in range(MOST_FRUSTA)})
        )
        nodes, self._frusta = [], list(some)
        for i in some:
            if self.closed:
                return
            wxyz, position = self.frame.pose(cameras.c2w[i])
            image = self.subject.thumbnail(i) if self.subject.scene is not None else None
            node = self.handle.scene.add_camera_frustum(
                f"/cameras/{i}",
                fov=float(np.radians(min(fov_of(cameras, i), 100.0))),
                aspect=float(cameras.widths[i]) / float(cameras.heights[i]),
                scale=FRUSTUM,
                color=self._camera_color(i),
                thickness=1.5,
                thickness_units="screen",
                image=image,
                format="jpeg",
                wxyz=tuple(wxyz),
                position=tuple(position),
                cast_shadow=False,
                receive_shadow=False,
            )
            node.on_click(self.safely(lambda _, i=i: self.look.choose(i)))
            nodes.append(node)
        self.put("cameras", nodes)
        self.hide_near()

    def _camera_color(self, i: int) -> tuple[int, int, int]:
        return PALE if self.subject.left_out(i) else ORANGE if self.subject.held_out(i) else ACCENT

    def colour_cameras(self) -> None:
        """By what training does with their photos now."""
        with self._lock:
            for i, node in zip(self._frusta, self._nodes.get("cameras", []), strict=False):
                if tuple(node.color) != self._camera_color(i):
                    node.color = self._camera_color(i)

    def hide_near(self) -> None:
        """Draw no frustum that the client's camera stands in, of input cameras and of key views."""
        with self._lock:
            nodes = [*self._nodes.get("cameras", []), *self._nodes.get(KEY_VIEWS, [])]
            if not nodes:
                return
            places = np.array([node.position for node in nodes])
            far = np.linalg.norm(places - np.asarray(self.handle.camera.position), axis=1) > NEAR
            for node, shown in zip(nodes, far.tolist(), strict=True):
                if node.visible != shown:
                    node.visible = shown

    def show_points(self, on: bool) -> None:
        points = self.subject.sparse_points() if on else None
        if points is None:
            self.clear("points")
            return
        there = self.frame.points(points).float().numpy()
        node = self.handle.scene.add_point_cloud(
            "/points", there, ACCENT, point_size=0.006, point_shape="circle", precision="float32", point_shading="flat"
        )
        self.put("points", [node])

    def show_occupancy(self, on: bool) -> None:
        """The cells that rays stop in, as they are now."""
        cells = self.subject.occupied_cells(MOST_CELLS) if on else None
        if cells is None:
            self.clear("occupancy")
            return
        there = self.frame.points(cells).float().numpy()
        node = self.handle.scene.add_point_cloud(
            "/occupancy", there, ORANGE, point_size=0.01, point_shape="square", precision="float32"
        )
        self.put("occupancy", [node])

    def show_mesh(self, on: bool) -> None:
        """The mesh in the place of the field."""
        self.viewport.off = on
        if not on or self.subject.mesh is None:
            self.viewport.off = False
            self.clear("mesh")
            self.viewport.pace.changed()
            self.wake()
            return
        if not self.has("mesh"):
            mesh = self.viewer.cut_mesh().copy()
            transform_mesh(mesh, self.frame.from_world)
            node = self.handle.scene.add_mesh_trimesh("/mesh", mesh, cast_shadow=False, receive_shadow=False)
            self.put("mesh", [node])
        self.handle.scene.set_background_image(PAPER, format="png")
