"""The tab "Film": key views, their times, a preview, files, and the film."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nerf.errors import UserError
from nerf.io.folders import scratch_folder
from nerf.io.outputs import check_output
from nerf.views.viewer import exports
from nerf.views.viewer.key_views import (
    FILM,
    KeyPath,
    KeyView,
    load_keys,
    moved,
    save_keys,
    save_nerfstudio,
    with_view,
)
from nerf.views.viewer.panels.look import small

if TYPE_CHECKING:
    from nerf.views.viewer.client import Client

PATH_COLOR = (230, 120, 20)
SIZES = {"320 x 180": (320, 180), "640 x 360": (640, 360), "1280 x 720": (1280, 720), "1920 x 1080": (1920, 1080)}
PREVIEW_FPS = 12.0
MOST_POINTS = 400  # of the line that shows the path
LARGEST_FILE = 20_000_000  # bytes, of a path that is loaded
NONE = "none yet"


class FilmPanel:
    """For one client: each makes a path of its own."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.path = KeyPath()
        self._playing = self._rendering = False
        self._quiet = False
        gui, safely = client.handle.gui, client.safely
        self.add = gui.add_button("Add this view")
        self.add.on_click(safely(lambda _: self.add_view()))
        self.keys = gui.add_dropdown("Key view", (NONE,))
        self.keys.on_update(safely(lambda _: self._chosen()))
        self.order = gui.add_button_group(" ", ("Earlier", "Later", "Go there"), visible=False)
        self.order.on_click(safely(lambda _: self._order(self.order.value)))
        self.change = gui.add_button_group("  ", ("Replace", "Remove"), visible=False)
        self.change.on_click(safely(lambda _: self._change(self.change.value)))
        self.seconds = gui.add_number("Seconds to it", 2.0, min=0.05, max=3600, step=0.1, visible=False)
        self.fov = gui.add_slider("Field of view", 10, 120, 1, 50, visible=False)
        for number in (self.seconds, self.fov):
            number.on_update(safely(lambda _: self._times()))
        with gui.add_folder("The path"):
            self.speed = gui.add_slider("Speed", 0.1, 4.0, 0.1, 1.0)
            self.closed = gui.add_checkbox("Back to the first", False)
            self.fps = gui.add_number("Frames a second", 30, min=1, max=120, step=1)
            for setting in (self.speed, self.closed, self.fps):
                setting.on_update(safely(lambda _: self._settings()))
            self.play = gui.add_button("Preview", color="gray", hint="plays in this page")
            self.play.on_click(safely(lambda _: self._play()))
            self.save = gui.add_button_group("Save", ("For nerf", "For nerfstudio"))
            self.save.on_click(safely(lambda _: self._save(self.save.value == "For nerfstudio")))
            self.load = gui.add_upload_button("Load a path", mime_type="application/json", color="gray")
            self.load.on_upload(safely(lambda _: self._load(self.load.value.content)))
        has_model = client.subject.model is not None or client.viewer.sharing is not None
        with gui.add_folder("The film", visible=has_model):
            self.size = gui.add_dropdown("Size", [*SIZES])
            self.render = gui.add_button("Render the film")
            self.render.on_click(safely(lambda _: self._render()))
            self.bar = gui.add_progress_bar(0.0, visible=False)
        self.about = gui.add_html("")
        self._tell()

    def close(self) -> None:
        """The client has gone: nothing goes on for it."""
        self._playing = self._rendering = False

    # ---- key views

    @property
    def chosen(self) -> int | None:
        """Index of the key view that is chosen."""
        options = list(self.keys.options)
        return options.index(self.keys.value) if self.path.views and self.keys.value in options else None

    def add_view(self) -> None:
        """The client's view becomes the key view after the one that is chosen, or the last."""
        pose, fov = self.client.pose()
        views, i = list(self.path.views), self.chosen
        at = len(views) if i is None else i + 1
        views.insert(at, KeyView(pose, min(max(fov, 1.0), 170.0)))
        self.set(replace(self.path, views=tuple(views)), at)

    def set(self, path: KeyPath, chosen: int | None = None) -> None:
        """Take a path, and show it."""
        self.path = path
        self._quiet = True
        try:
            names = tuple(f"{k + 1}" for k in range(len(path.views))) or (NONE,)
            self.keys.options = names
            i = min(chosen or 0, len(names) - 1)
            self.keys.value = names[i]
            for control in (self.order, self.change, self.seconds, self.fov):
                control.visible = bool(path.views)
            if path.views:
                self.seconds.value = path.views[i].seconds
                self.fov.value = round(min(max(path.views[i].fov, 10), 120))
            self.speed.value, self.closed.value, self.fps.value = path.speed, path.closed, path.fps
        finally:
            self._quiet = False
        self._tell()
        self.draw()

    def _chosen(self) -> None:
        i = self.chosen
        if i is not None and not self._quiet:
            self.set(self.path, i)

    def _order(self, what: str) -> None:
        i = self.chosen
        if i is None:
            return
        if what == "Go there":
            self.client.go_to(self.path.views[i].c2w, self.path.views[i].fov)
            return
        by = -1 if what == "Earlier" else 1
        there = min(max(i + by, 0), len(self.path.views) - 1)
        self.set(replace(self.path, views=moved(self.path.views, i, by)), there)

    def _change(self, what: str) -> None:
        i = self.chosen
        if i is None:
            return
        pose, fov = self.client.pose()
        view = KeyView(pose, min(max(fov, 1.0), 170.0), self.path.views[i].seconds) if what == "Replace" else None
        self.set(with_view(self.path, i, view), max(0, i if view else i - 1))

    def _times(self) -> None:
        i = self.chosen
        if i is None or self._quiet:
            return
        view = self.path.views[i]
        fov = view.fov if round(view.fov) == self.fov.value else float(self.fov.value)
        self.path = with_view(self.path, i, KeyView(view.c2w, fov, float(self.seconds.value)))
        self._tell()

    def _settings(self) -> None:
        if not self._quiet:
            fps, speed = (float(np.clip(x.value, FILM[n].low, FILM[n].high)) for n, x in self._named())
            self.path = replace(self.path, fps=fps, speed=speed, closed=bool(self.closed.value))
            self._tell()
            self.draw()

    def _named(self) -> list[tuple[str, Any]]:
        return [("fps", self.fps), ("speed", self.speed)]

    def _tell(self) -> None:
        n, path = len(self.path.views), self.path
        if n < 2:
            self.about.content = small("Look from where the film begins, add the view; then from where it goes on.")
        else:
            self.about.content = small(f"{n} key views, {path.duration:.1f} s, {path.n_frames} frames")

    def draw(self) -> None:
        """The path as a line, with its key views."""
        path, scene, frame = self.path, self.client.handle.scene, self.client.frame
        self.client.clear("/path")
        self.client.clear("/key views")
        if not path.views:
            return
        nodes: list[Any] = []
        for k, view in enumerate(path.views):
            wxyz, position = frame.pose(view.c2w)
            fov = float(np.radians(min(view.fov, 100)))
            node = scene.add_camera_frustum(
                f"/path/{k}", fov=fov, aspect=16 / 9, scale=0.1, color=PATH_COLOR, thickness=2.0,
                thickness_units="screen", wxyz=tuple(wxyz), position=tuple(position), cast_shadow=False,
            )  # fmt: skip
            node.on_click(self.client.safely(lambda _, k=k: self.set(self.path, k)))
            nodes.append(node)
        self.client.put("/key views", nodes)
        self.client.hide_near()
        if len(path.views) > 1 and path.duration > 0:
            seconds = torch.linspace(0, path.duration, min(MOST_POINTS, 32 * len(path.views)), dtype=torch.float64)
            line = frame.points(path.poses_at(seconds)[0][:, :, 3]).numpy()
            segments = np.stack([line[:-1], line[1:]], axis=1).astype(np.float32)
            line = scene.add_line_segments("/path/line", segments, PATH_COLOR, thickness=2.0, thickness_units="screen")
            self.client.put("/path", [line])

    # ---- preview

    def _play(self) -> None:
        if self._playing:
            self._playing = False
            return
        if len(self.path.views) < 2:
            raise UserError("a preview needs two key views: add some first")
        self._playing, self.play.label = True, "Stop"
        threading.Thread(target=self._run, name="nerf-viewer-preview", daemon=True).start()

    def _run(self) -> None:
        started = time.perf_counter()
        try:
            while self._playing and not self.client.closed:
                path, at = self.path, time.perf_counter() - started
                if not path.views or at >= path.duration:
                    break
                poses, fovs = path.poses_at(torch.tensor([at]))
                self.client.go_to(poses[0], float(fovs[0]))
                time.sleep(1 / PREVIEW_FPS)
        finally:
            self._playing = False
            if not self.client.closed:
                self.play.label = "Preview"

    # ---- files

    def _save(self, nerfstudio: bool) -> None:
        if not self.path.views:
            raise UserError("there is no key view to save yet")
        name = "camera-path-nerfstudio.json" if nerfstudio else "camera-path.json"
        place = exports.free_name(self.client.subject.folder, name)
        check_output(place, overwrite=False)
        (save_nerfstudio if nerfstudio else save_keys)(place, self.path, *SIZES[self.size.value])
        self.client.export.saved(place)

    def _load(self, content: bytes) -> None:
        if len(content) > LARGEST_FILE:
            raise UserError(f"the file has {len(content):,} bytes, and a camera path at most {LARGEST_FILE:,}")
        with scratch_folder() as folder:
            file = Path(folder, "camera-path.json")
            file.write_bytes(content)
            self.set(load_keys(file))

    def _render(self) -> None:
        if self._rendering:
            self._rendering = False
            return
        path = self.path.cameras(*SIZES[self.size.value])
        self._rendering, self.render.label, self.bar.visible = True, "Stop", True
        self._progress(0.0)
        work = exports.film(self.client.subject, path, self._progress, lambda: not self._rendering)
        self.client.viewer.loop.add_patient(exports.told(work, self._done, self._failed))
        if self.client.viewer.training and not self.client.viewer.paused:
            self.client.said("The film waits", "It is rendered when training is paused or done.")

    def _progress(self, share: float) -> None:
        if not self.client.closed:
            self.bar.value = min(100.0 * share, 100.0)

    def _done(self, place: Path | None) -> None:
        self._rendering = False
        if not self.client.closed:
            self.render.label, self.bar.visible = "Render the film", False
            if place is not None:
                self.client.export.saved(place)

    def _failed(self, error: Exception) -> None:
        self._done(None)
        self.client.said("No film", str(error), bad=True)
