"""The tab "Edit": crop, hide, set upright, measure, set the size; everything can be undone and is kept in the run."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nerf.errors import UserError, printable
from nerf.views.viewer.panels.gizmos import RegionHandles, draw_points
from nerf.views.viewer.panels.look import small
from nerf.views.viewer.picking import plane_at, plane_through, surface_point
from nerf.views.viewer.regions import Region

if TYPE_CHECKING:
    from nerf.views.viewer.client import Client

CROP, HIDE = (38, 112, 200), (200, 70, 50)
MOST_CELLS = 1 << 20  # of the occupancy grid, that a crop is put around
MOST_NAMES = 12  # of photos left out, told at once
CROP_SIZE, HIDE_SIZE = 1.6, 0.4  # page length: of a region that is begun


class EditPanel:
    """For one client; the edits are those of the run, and the same for all."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.clicks: list[Tensor] = []  # world points
        self.tool = ""  # what clicks are for
        self._quiet = False
        gui, safely = client.handle.gui, client.safely
        has_model = client.subject.model is not None or client.viewer.sharing is not None
        history = client.subject.history
        self.undo = gui.add_button_group(" ", ("Undo", "Redo"))
        self.undo.on_click(safely(lambda _: history.undo() if self.undo.value == "Undo" else history.redo()))
        with gui.add_folder("Crop"):
            self.crop = gui.add_checkbox("Keep only a box", False, hint="drag its handles, or give numbers")
            self.crop.on_update(safely(lambda _: self._crop(self.crop.value)))
            self.handles = gui.add_checkbox("Handles", True, visible=False, hint="and its edges")
            self.handles.on_update(safely(lambda _: self.draw()))
            self.centre = gui.add_vector3("Centre", (0.0, 0.0, 0.0), step=0.01, visible=False)
            self.size = gui.add_vector3("Size", (1.0, 1.0, 1.0), step=0.01, visible=False)
            for numbers in (self.centre, self.size):
                numbers.on_update(safely(lambda _: self._numbers()))
        self.crop_handles = RegionHandles(client, "/crop", CROP, self._crop_dragged)
        with gui.add_folder("Hide", visible=has_model):
            self.begin = gui.add_button_group("In the way", ("Ball", "Box"), hint="a region that hides what is in it")
            self.begin.on_click(safely(lambda _: self._begin_hiding("sphere" if self.begin.value == "Ball" else "box")))
            self.hide_size = gui.add_number("Its size", 1.0, min=1e-9, step=0.01, visible=False)
            self.hide_size.on_update(safely(lambda _: self._resize_hiding()))
            self.hide = gui.add_button("Hide what is inside", visible=False)
            self.hide.on_click(safely(lambda _: self._hide()))
            self.drop = gui.add_button("Leave it", color="gray", visible=False)
            self.drop.on_click(safely(lambda _: self._end_hiding()))
            self.show_all = gui.add_button("Show all again", color="gray", visible=False)
            self.show_all.on_click(safely(lambda _: history.change(hidden=())))
        self.hide_handles = RegionHandles(client, "/hide", HIDE, self._hide_dragged)
        with gui.add_folder("Upright", visible=has_model):
            self.upright = gui.add_button_group(
                "Ground", ("Click on it", "Three clicks", "Reset"), hint="where the ground is, and so which way is up"
            )
            self.upright.on_click(safely(lambda _: self._upright(self.upright.value)))
        with gui.add_folder("Measure", visible=has_model):
            self.measure = gui.add_button_group("A length", ("Click two points", "Clear"))
            self.measure.on_click(safely(lambda _: self._measure()))
            self.length = gui.add_html("", visible=False)
            self.true = gui.add_number("It is truly", 1.0, min=1e-9, step=0.001, visible=False)
            self.unit = gui.add_text("Unit", "m", visible=False)
            self.set_scale = gui.add_button("Set the size of everything", visible=False)
            self.set_scale.on_click(safely(lambda _: self._scale()))
        with gui.add_folder("Photos left out of training", visible=False) as self.photos:
            self.left_out = gui.add_html("")
            self.bring_back = gui.add_button("Bring all back", color="gray")
            self.bring_back.on_click(safely(lambda _: history.change(left_out=())))
        self.message = gui.add_html("")
        self.update()
        self.draw()

    # ---- as the edits are

    @property
    def _region_scale(self) -> float:
        """Lengths as they are shown for one world length."""
        return self.client.subject.edits.scale

    def update(self) -> None:
        """Show the edits, which this client or another has changed."""
        edits = self.client.subject.edits
        self._quiet = True
        try:
            if self.crop.value != (edits.crop is not None):
                self.crop.value = edits.crop is not None
            for control in (self.handles, self.centre, self.size):
                control.visible = edits.crop is not None
            if edits.crop is not None:
                centre = (
                    self.client.frame.points(torch.tensor([edits.crop.centre]).double())[0] / self.client.frame.scale
                )
                self.centre.value = tuple(round(float(x) * edits.scale, 4) for x in centre)
                self.size.value = tuple(round(x * edits.scale, 4) for x in edits.crop.size)
        finally:
            self._quiet = False
        self.show_all.visible = bool(edits.hidden)
        if edits.hidden:
            self.show_all.label = f"Show all again ({len(edits.hidden)} hidden)"
        names = [escape(printable(name)) for name in edits.left_out]
        more = [f"and {len(names) - MOST_NAMES} more"] * (len(names) > MOST_NAMES)
        self.photos.visible = bool(names)
        self.left_out.content = small("<br>".join(names[:MOST_NAMES] + more))
        if len(self.clicks) == 2 and self.tool == "":
            self._tell_length()

    def draw(self) -> None:
        """The handles where they belong now."""
        crop = self.client.subject.edits.crop
        free = self.handles.value and not self.tool  # handles would take the clicks of a tool for themselves
        self.crop_handles.show(crop if free else None)
        self.hide_handles.show(self.hide_handles.region)
        self._draw_clicks()

    # ---- crop

    def _crop(self, on: bool) -> None:
        edits = self.client.subject.edits
        if on == (edits.crop is not None):
            return
        self.client.subject.history.change(crop=self._whole() if on else None)

    def _whole(self) -> Region:
        """The box around all of an object, upright; of an open scene one in the middle."""
        subject, frame = self.client.subject, self.client.frame
        box, model = self._new("box", CROP_SIZE), subject.model
        cells = None if model is None or not model.space.bounded else subject.occupied_cells(MOST_CELLS)
        if model is None or cells is None or not len(cells):
            return box
        there, cell = (
            frame.points(cells),
            2.0 / len(model.occupancy.occupied[0]) * frame.scale / model.scene_from_world.scale,
        )
        low, high = there.amin(dim=0) - cell, there.amax(dim=0) + cell
        centre = frame.to_world(((low + high) / 2)[None])[0]
        return Region("box", tuple(centre.tolist()), tuple(((high - low) / frame.scale).tolist()), box.rotation)

    def _new(self, shape: str, size: float) -> Region:
        """A region upright in the middle of the page, or of the mesh."""
        frame = self.client.frame
        centre = frame.to_world(torch.zeros(1, 3, dtype=torch.float64))[0]
        length = size / frame.scale
        axes = frame.from_world.rotation.T
        return Region(shape, tuple(centre.tolist()), (length,) * 3, tuple(map(tuple, axes.tolist())))

    def _numbers(self) -> None:
        """The box as the numbers say: centre along the page's axes, lengths as they are shown."""
        crop, frame = self.client.subject.edits.crop, self.client.frame
        if self._quiet or crop is None:
            return
        centre = torch.tensor([self.centre.value], dtype=torch.float64) / self._region_scale * frame.scale
        size = tuple(max(float(x) / self._region_scale, 1e-6 / frame.scale) for x in self.size.value)
        there = tuple(frame.to_world(centre)[0].tolist())
        changed = Region("box", there, size, crop.rotation)
        close = np.allclose(changed.centre, crop.centre, atol=1e-4 / frame.scale)
        if not (close and np.allclose(changed.size, crop.size, atol=1e-4 / frame.scale)):
            self.client.subject.history.change(crop=changed)

    def _crop_dragged(self, region: Region) -> None:
        self.client.subject.history.change(crop=region)

    # ---- hiding

    def _begin_hiding(self, shape: str) -> None:
        region = self._new(shape, HIDE_SIZE)
        camera = self.client.handle.camera
        ahead = torch.tensor(np.asarray(camera.look_at - camera.position, np.float64))
        model = self.client.subject.shown()
        if model is not None:  # at the surface that is looked at, in the middle of the page
            pose, _ = self.client.pose()
            point = surface_point(model, pose[:, 3], self.client.frame.directions_to_world(ahead[None])[0])
            if point is not None:
                region = Region(shape, tuple(point.tolist()), region.size, region.rotation)
        self._hide_dragged(region)
        self.hide_size.value = round(region.size[0] * self._region_scale, 4)
        for control in (self.hide_size, self.hide, self.drop):
            control.visible = True

    def _hide_dragged(self, region: Region) -> None:
        self.hide_handles.show(region)

    def _resize_hiding(self) -> None:
        region = self.hide_handles.region
        if region is not None:
            size = float(self.hide_size.value) / self._region_scale
            self._hide_dragged(Region(region.shape, region.centre, (size,) * 3, region.rotation))

    def _hide(self) -> None:
        region, history = self.hide_handles.region, self.client.subject.history
        if region is not None:
            self._end_hiding()
            history.change(hidden=(*history.now.hidden, region))

    def _end_hiding(self) -> None:
        self.hide_handles.show(None)
        for control in (self.hide_size, self.hide, self.drop):
            control.visible = False

    # ---- clicks

    def _tool(self, name: str, say: str) -> None:
        """Take clicks on the scene for this from now on."""
        self.clicks, self.tool = [], name
        self.draw()
        scene = self.client.handle.scene
        scene.remove_click_callback()
        scene.on_click()(self.client.safely(self._clicked))
        self.message.content = small(say)

    def _end_tool(self) -> None:
        self.tool = ""
        self.draw()
        self.message.content = ""
        self.client.handle.scene.remove_click_callback()

    def _clicked(self, event: Any) -> None:
        model = self.client.subject.shown()
        if model is None or not self.tool:
            return
        frame = self.client.frame
        o = frame.to_world(torch.tensor([event.ray_origin], dtype=torch.float64))[0]
        d = frame.directions_to_world(torch.tensor([event.ray_direction], dtype=torch.float64))[0]
        self.take_click(o, d)

    def take_click(self, o: Tensor, d: Tensor) -> None:
        """A click as a world ray [3]."""
        model, history = self.client.subject.shown(), self.client.subject.history
        assert model is not None
        if self.tool == "plane":
            found = plane_at(model, o, d)
            if found is None:
                raise UserError("there is no surface where you clicked: click on the ground")
            point, normal = found
            self._end_tool()
            self._set_up(point, normal)
            return
        where = surface_point(model, o, d)
        if where is None:
            raise UserError("there is no surface where you clicked")
        self.clicks.append(where)
        self._draw_clicks()
        if self.tool == "three" and len(self.clicks) == 3:
            up = plane_through(torch.stack(self.clicks), o)
            point = torch.stack(self.clicks).mean(dim=0)
            self.clicks = []
            self._end_tool()
            if up is None:
                raise UserError("the three points lie on one line: click three that span the ground")
            self._set_up(point, up)
        elif self.tool == "measure" and len(self.clicks) == 2:
            self._end_tool()
            self._tell_length()
        _ = history

    def _draw_clicks(self) -> None:
        draw_points(self.client, self.clicks)

    # ---- upright

    def _upright(self, how: str) -> None:
        if how == "Reset":
            self.client.subject.history.change(up=None, ground=None)
        elif how == "Click on it":
            self._tool("plane", "Click on the ground, or on anything level.")
        else:
            self._tool("three", "Click three points of the ground, far apart.")

    def _set_up(self, point: Tensor, up: Tensor) -> None:
        up = up / up.norm()
        self.client.subject.history.change(up=tuple(up.tolist()), ground=tuple(point.tolist()))

    # ---- size

    def _measure(self) -> None:
        for control in (self.length, self.true, self.unit, self.set_scale):
            control.visible = False
        self._tool("measure", "Click the two ends of a length.")  # which forgets the last one
        if self.measure.value == "Clear":
            self._end_tool()

    @property
    def measured(self) -> float | None:
        """The world length between two clicks."""
        return float((self.clicks[1] - self.clicks[0]).norm()) if len(self.clicks) == 2 else None

    def _tell_length(self) -> None:
        length, edits = self.measured, self.client.subject.edits
        if length is None:
            return
        shown = length * edits.scale
        unit = edits.unit or "units of the photos' poses"
        self.length.content = small(f"<b>{shown:.4g}</b> {unit}")
        self.true.value = float(f"{shown:.4g}")
        for control in (self.length, self.true, self.unit, self.set_scale):
            control.visible = True

    def _scale(self) -> None:
        length = self.measured
        if not length:
            raise UserError("click the two ends of a length first")
        unit = "".join(c for c in self.unit.value if c.isalnum())[:20]
        self.client.subject.history.change(scale=float(self.true.value) / length, unit=unit)
