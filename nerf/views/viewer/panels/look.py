"""The tab "View": what is shown, and from where."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from nerf.errors import printable
from nerf.views.viewer.viewport import BACKGROUNDS, Shown

if TYPE_CHECKING:
    from nerf.views.viewer.client import Client

MODES = {"Colour": "color", "Depth": "depth", "Normals": "normal", "Opacity": "opacity"}
MESH = "Mesh"
OWN = "As it was trained"
SHARPEST = ("640", "960", "1280", "1920")  # pixels along the longer side
COLOURS = "orange: kept to measure by, grey: left out of training"
HELP = (
    "Drag to turn around, with the right button to shift; the wheel comes closer. "
    "<b>W A S D</b> and <b>Q E</b> walk, the arrow keys turn."
)


def small(text: str) -> str:
    """A quiet line of text."""
    return f'<div style="font-size:0.8em;color:#70757d;padding:0 0.75em 0.3em">{text}</div>'


class LookPanel:
    """What one client sees."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._quiet = False  # while a control is set from here
        gui, safely = client.handle.gui, client.safely
        names = self._photo_names()
        self.show = gui.add_dropdown("Show", self._kinds())
        self.show.on_update(safely(self._show))
        self.cameras = gui.add_checkbox(
            "Cameras", initial_value=False, hint="where the photos were taken, click one to go there; " + COLOURS
        )
        self.cameras.on_update(safely(lambda _: client.show_cameras(self.cameras.value)))
        self.points = gui.add_checkbox("Sparse points", False, visible=False)
        self.points.on_update(safely(lambda _: client.show_points(self.points.value)))
        self.occupancy = gui.add_checkbox("Occupied cells", False, hint="of the grid: elsewhere rays pass unasked")
        self.occupancy.on_update(safely(lambda _: client.show_occupancy(self.occupancy.value)))
        with gui.add_folder("Photos", visible=bool(names)) as self.folder:
            self.photo = gui.add_dropdown("Photo", names or ["none"])
            self.photo.on_update(safely(lambda _: self._go()))
            self.step = gui.add_button_group(" ", ("Before", "Go there", "Next"))
            self.step.on_click(safely(lambda _: self._step({"Before": -1, "Go there": 0, "Next": 1}[self.step.value])))
            self.compare = gui.add_checkbox("Compare", False, hint="the photo beside what is rendered from its camera")
            self.compare.on_update(safely(lambda _: self._compare()))
            self.slider = gui.add_slider("Photo | rendering", 0, 100, 1, 50, visible=False)
            self.slider.on_update(safely(lambda _: client.viewport.slide(share=self.slider.value / 100)))
            scale = "black: none, yellow: 0.2 and more"
            self.error = gui.add_checkbox("Show the error", False, visible=False, hint=scale)
            self.error.on_update(safely(lambda _: client.viewport.slide(error=self.error.value)))
            self.psnr = gui.add_html("", visible=False)
            why = "of training: where it is blurred, or something moved"
            self.left_out = gui.add_checkbox("Leave it out", False, hint=why)
            self.left_out.on_update(safely(lambda _: self._leave_out()))
            self.n_left_out = gui.add_html("", visible=False)
        with gui.add_folder("Light", expand_by_default=False):
            self.exposure = gui.add_slider("Exposure", -3.0, 3.0, 0.25, 0.0, hint="stops: each is twice as bright")
            self.exposure.on_update(safely(lambda _: self._light(stops=float(self.exposure.value))))
            behind = (OWN, *(name.capitalize() for name in BACKGROUNDS))
            self.background = gui.add_dropdown("Background", behind, hint="where nothing is")
            self.background.on_update(safely(lambda _: self._light(background=self.background.value)))
        self.sharpest = gui.add_dropdown(
            "Sharpest picture", SHARPEST, initial_value="1280", hint="pixels along the longer side"
        )
        self.sharpest.on_update(safely(self._sharpest))
        self.home = gui.add_button_group("   ", ("Back to the start",))
        self.home.on_click(safely(lambda _: client.go_to(*client.subject.first_view())))
        self.status = gui.add_html(small("&nbsp;"))
        gui.add_html(small(HELP))
        self.update()

    def _kinds(self) -> list[str]:
        subject = self.client.subject
        field = [*MODES] if subject.model is not None or self.client.viewer.sharing is not None else []
        return field + [MESH] * (subject.mesh is not None)

    def _photo_names(self) -> list[str]:
        return [f"{i + 1}  {printable(name)}" for i, name in enumerate(self.client.subject.cameras()[0])]

    def update(self) -> None:
        """What there is to choose from may have changed."""
        subject = self.client.subject
        kinds = self._kinds()
        if list(self.show.options) != kinds:
            self.show.options = kinds
        names = self._photo_names()
        if names and list(self.photo.options) != names:
            self.photo.options = names
        self.folder.visible = bool(names)
        self.cameras.visible = bool(names)
        self.compare.visible = subject.scene is not None
        self.points.visible = subject.sparse_points() is not None
        self._tell_left_out()
        model = subject.model
        self.occupancy.visible = model is not None and not (model.space.warped or model.n_cells)

    def draw(self) -> None:
        """Once more, in another frame."""
        self.client.show_cameras(self.cameras.value)
        self.client.show_points(self.points.value)
        self.client.show_occupancy(self.occupancy.value)
        if self.show.value == MESH:
            self.client.show_mesh(True)

    @property
    def chosen(self) -> int:
        """Index of the photo."""
        return list(self.photo.options).index(self.photo.value)

    def choose(self, i: int) -> None:
        """Take a photo, as if it had been chosen from the list."""
        name = list(self.photo.options)[i]
        if self.photo.value == name:
            self._go()
        else:
            self.photo.value = name  # which tells _go

    def _tell_left_out(self) -> None:
        """Whether training learns from the photo that is chosen, and from how many it does not."""
        subject = self.client.subject
        names = subject.names()
        self.left_out.visible = bool(names)
        if names:
            i = self.chosen
            self.left_out.disabled = subject.held_out(i)
            out = names[i] in subject.edits.left_out
            if self.left_out.value != out:
                self._quiet = True
                try:
                    self.left_out.value = out
                finally:
                    self._quiet = False
        n = len(subject.edits.left_out)
        goes_on = "" if self.client.viewer.training else " when it goes on (<nobr>nerf train --resume</nobr>)"
        self.n_left_out.content = small(f"{n} photo{'s' * (n > 1)} left out of training{goes_on}")
        self.n_left_out.visible = n > 0

    def _leave_out(self) -> None:
        if self._quiet:
            return
        try:
            self.client.subject.leave_out(self.chosen, self.left_out.value)
        finally:
            self._tell_left_out()

    def _step(self, by: int) -> None:
        self.choose((self.chosen + by) % len(self.photo.options))

    def _go(self) -> None:
        self._tell_left_out()
        if self.compare.value:
            self.client.compare(self.chosen)
        else:
            self.client.go_to_photo(self.chosen)

    def _compare(self) -> None:
        on = self.compare.value
        for control in (self.slider, self.error, self.psnr):
            control.visible = on
        self.psnr.content = ""
        if on:
            if self.show.value == MESH:
                self.show.value = "Colour"
            try:
                self.client.compare(self.chosen)
            except Exception:
                self.left_photo()
                raise
        else:
            self.client.compare(None)

    def left_photo(self) -> None:
        """The view has moved away from the photo that it was compared with."""
        if self.compare.value:
            self.compare.value = False
        for control in (self.slider, self.error, self.psnr):
            control.visible = False

    def _show(self, _: Any) -> None:
        if self.show.value == MESH:
            self.client.show_mesh(True)
            return
        if self.client.has("mesh"):
            self.client.show_mesh(False)
        self.client.viewport.set_mode(MODES[self.show.value])
        self.client.wake()

    def _light(self, stops: float | None = None, background: str | None = None) -> None:
        chosen = None if background is None else "" if background == OWN else background.lower()
        self.client.viewport.set_light(stops, chosen)
        self.client.wake()

    def _sharpest(self, _: Any) -> None:
        longest = int(self.sharpest.value)
        if str(longest) not in SHARPEST:
            raise ValueError(f"the sharpest picture: {longest}")
        self.client.viewport.pace.longest = longest
        self.client.viewport.pace.changed()
        self.client.wake()

    def shown(self, shown: Shown) -> None:
        """A picture has been sent."""
        size = f"{shown.size.width} &times; {shown.size.height}"
        if shown.compared is not None:
            i = self.chosen
            kept = "not trained on" if self.client.subject.held_out(i) else "trained on"
            name = escape(printable(self.client.subject.cameras()[0][i]))
            self.psnr.content = small(f"<b>{shown.compared.psnr:.2f} dB</b> PSNR at {size}<br>{name}, {kept}")
        if shown.size.level > 0 and shown.seconds > 0:
            self.status.content = small(f"{size} in {shown.seconds:.2f} s{'' if shown.size.last else ' &hellip;'}")
