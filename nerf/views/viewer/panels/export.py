"""The tab "Export": a picture, the mesh, the cameras."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerf.views.viewer import exports
from nerf.views.viewer.panels.look import MODES, small

if TYPE_CHECKING:
    from nerf.views.viewer.client import Client

LONGEST = 16384  # pixels of a picture
TEXTURES = {"Coloured vertices": 0, "2048": 2048, "4096": 4096}


class ExportPanel:
    """For one client. Files go into the run's folder, and can be taken from the page too."""

    def __init__(self, client: Client) -> None:
        self.client = client
        gui, safely = client.handle.gui, client.safely
        has_model = client.subject.model is not None or client.viewer.sharing is not None
        self._cancelled = False
        with gui.add_folder("Picture of this view", visible=has_model):
            self.width = gui.add_number("Width", 1920, min=16, max=LONGEST, step=1)
            self.height = gui.add_number("Height", 1080, min=16, max=LONGEST, step=1)
            self.picture = gui.add_button("Save the picture")
            self.picture.on_click(safely(self._picture))
        with gui.add_folder("Mesh"):
            self.texture = gui.add_dropdown(
                "Texture", [*TEXTURES], hint="texels along its longer side", visible=has_model
            )
            self.resolution = gui.add_number(
                "Cells", 256, min=16, max=1024, step=1, hint="along the longest side", visible=has_model
            )
            self.mesh = gui.add_button("Make the mesh" if has_model else "Save the mesh")
            self.mesh.on_click(safely(self._mesh))
        with gui.add_folder("Cameras", visible=has_model):
            self.cameras = gui.add_button_group("Save as", ("transforms.json", "COLMAP"))
            self.cameras.on_click(safely(lambda _: self._cameras(self.cameras.value == "COLMAP")))
        self.bar = gui.add_progress_bar(0.0, visible=False)
        self.status = gui.add_html("")
        self.stop = gui.add_button("Stop", visible=False)
        self.stop.on_click(safely(lambda _: setattr(self, "_cancelled", True)))
        self.update()

    def update(self) -> None:
        """What the edits make of it."""
        words = self.client.subject.edits.in_words()
        self.status.content = small("" if words == "nothing changed" else f"Edits: {words}")

    def progress(self, share: float | None) -> None:
        """Of what is being made; None: nothing is."""
        self.bar.visible = self.stop.visible = share is not None
        self.bar.value = 100.0 * (share or 0.0)

    def saved(self, path: Path, download: bool = True) -> None:
        """Tell where a file lies, and offer it."""
        self.client.said(f"Saved {path.name}", f"in {path.parent}")
        if download:
            self.client.handle.send_file_download(path.name, path.read_bytes())

    def _picture(self, _: Any) -> None:
        viewer, viewport = self.client.viewer, self.client.viewport
        pose, fov = self.client.pose()
        mode = viewport.mode if self.client.look.show.value in MODES else "color"
        width, height = (min(max(int(n.value), 16), LONGEST) for n in (self.width, self.height))
        size = width, height
        self._cancelled = False
        work = exports.picture(
            self.client.subject, pose, fov, size, mode, self.progress, lambda: self._cancelled or self.client.closed
        )
        viewer.loop.add_patient(exports.told(work, self._done, self._failed))

    def _done(self, path: Any) -> None:
        self.progress(None)
        if path is not None:
            self.saved(path)

    def _failed(self, error: Exception) -> None:
        self.progress(None)
        self.client.said("That did not work", str(error), bad=True)

    def _mesh(self, _: Any) -> None:
        viewer = self.client.viewer
        viewer.check_no_training("the mesh")
        texture, resolution = TEXTURES[self.texture.value], int(self.resolution.value)
        self.mesh.disabled = True
        note = self.client.handle.add_notification(
            "Making the mesh", "This takes a minute or more.", loading=True, with_close_button=False
        )

        def work() -> None:
            try:
                path = exports.mesh(self.client.subject, resolution, texture)
                self.client.safely(lambda: self.saved(path))()
            except Exception as error:
                self.client.said("No mesh", str(error), bad=True)
            finally:
                note.remove()
                self.mesh.disabled = False

        threading.Thread(target=work, name="nerf-viewer-mesh", daemon=True).start()

    def _cameras(self, colmap: bool) -> None:
        path = exports.cameras(self.client.subject, colmap)
        self.saved(path, download=not colmap)
