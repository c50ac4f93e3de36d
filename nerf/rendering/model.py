"""Model: what a checkpoint holds - field, occupancy, frame - and what pictures, videos and meshes are made from."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nerf import kernels
from nerf.errors import MISFITS, UserError, brief
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.own import check_module, checked
from nerf.fields.radiance import FieldOptions, RadianceField, check_sizes
from nerf.geometry.cameras import Cameras
from nerf.geometry.geodesy import Georeference
from nerf.geometry.space import Similarity, Space
from nerf.io import checkpoint
from nerf.kernels import RenderedRays
from nerf.rendering.footprint import averaged, rays_a_side
from nerf.rendering.marching import Marching
from nerf.rendering.rays import density_normals, render_chunk, render_many
from nerf.rendering.sky import sky_colours
from nerf.rendering.state import check_cameras, check_field, check_occupancy, check_shown
from nerf.rendering.view import View

FIELD_CHUNK = 1 << 20


class Model:
    """A trained scene. Poses and meshes are in the world frame of the input; rays and points here are in the scene
    frame.

    >>> model = nerf.Model.load("runs/robot/checkpoint.safetensors")
    >>> view = model.render_image(model.cameras, 0, normals=False)
    >>> view.color.shape, view.depth.shape
    ((40, 40, 3), (40, 40))
    """

    def __init__(
        self,
        field: RadianceField | Any,  # or any nn.Module with density(x) and forward(x, d)
        occupancy: OccupancyGrid,
        marching: Marching,
        scene_from_world: Similarity,
        cameras: Cameras,
        background: Tensor,
        linear: bool = False,
        meta: dict[str, Any] | None = None,
        exposure: float = 1.0,
    ) -> None:
        self.field, self.occupancy, self.marching = field, occupancy, marching
        self.scene_from_world, self.cameras = scene_from_world, cameras
        self.background, self.linear, self.meta = background, linear, meta or {}
        self.exposure = exposure  # of linear light: colours times this are shown, white at 1
        self.names: list[str] = []  # of the photos that it was trained on, in the order of the cameras
        self.given_poses: Tensor | None = None  # [n,3,4] those of the cameras before training refined them, if it did
        self.log_gains: Tensor | None = None  # [n,3] of the photos' light against what is shown, if they were learnt
        self.sky: Tensor | None = None  # colours by direction in the background's place, see `nerf.rendering.sky`
        self.vignetting: Tensor | None = None  # [n,2] of their cameras, see `nerf.training.exposure.vignetting`
        self.falloff: Tensor | None = None  # [n,2] of their flash, see `nerf.training.exposure.falloff`
        self.georeference: Georeference | None = None  # where the world stands on the earth, if that is known

    @property
    def device(self) -> torch.device:
        """Where the field and the occupancy are; rays and points may come from anywhere, and results go back there."""
        return self.occupancy.occupied.device

    @property
    def space(self) -> Space:
        return self.marching.space

    @property
    def n_cells(self) -> int:
        """Of a place that is divided, each with a field of its own: then there is no occupancy. 0: it is not."""
        return 0

    def to(self, device: torch.device | str) -> Model:
        """Move field and occupancy, in place: the backend in use must run there. Returns the model."""
        device = torch.device(device)
        self.field.to(device)
        if isinstance(self.field, RadianceField) and self.field.table_half is not None:
            self.field.table_half = self.field.table_half.to(device)
        self.occupancy.to(device)
        return self

    # ---- questions to the field

    def density(self, points: Tensor) -> Tensor:
        """Densities [n] (1/scene length) at points [n,3] of the scene frame (NDC points in the space Ndc)."""
        field = checked(self.field)
        with torch.no_grad():
            return torch.cat([field.density(p) for p in points.split(FIELD_CHUNK)]) if len(points) else torch.zeros(0)

    def color(self, points: Tensor, directions: Tensor) -> Tensor:
        """Colours [n,3] at scene points seen along unit directions [n,3]."""
        pairs = zip(points.split(FIELD_CHUNK), directions.split(FIELD_CHUNK), strict=True)
        field = checked(self.field)
        with torch.no_grad():
            return torch.cat([field(p, d)[1] for p, d in pairs]) if len(points) else torch.zeros(0, 3)

    def render_rays(self, rays_o: Tensor, rays_d: Tensor) -> RenderedRays:
        """What scene rays [n,3] (unit directions) see, in front of any background, see `behind`.
        No gradients, bounded memory."""
        return render_many(self.field, self.occupancy, self.marching, rays_o, rays_d)

    def behind(self, rays_d: Tensor) -> Tensor:
        """The colours [n,3], or the one [3], that scene rays of unit directions [n,3] see where nothing is."""
        return self.background if self.sky is None else sky_colours(self.sky, rays_d)

    def coarser(self, stretch: float) -> Model:
        """The same model, not a copy, whose rays march in steps so many times longer: faster, a little less exact."""
        other, m = copy(self), self.marching
        other.marching = replace(m, step_size=stretch * m.step_size, cone_angle=stretch * m.cone_angle)
        return other

    def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
        """Where half the light of scene rays is gone [n], scene length along the ray, 0 where that is nowhere; and how
        far the places spread where it goes [n]: their mean distance, over this half, in the march's length."""
        until_half = replace(self.marching, stop_threshold=0.499)  # what lies behind is not asked for
        out = render_many(self.field, self.occupancy, until_half, rays_o, rays_d)
        spread = out.distortions / out.opacities.clamp_min(1e-6).square()
        return self.space.t_to_depth(rays_o, rays_d, out.median_depths), spread

    def render_image(
        self, cameras: Cameras, i: int, normals: bool = True, samples: int | None = None
    ) -> View[np.ndarray]:
        """View of camera i (world frame), [h,w]. Without normals, which cost six densities a pixel, a view of an open
        scene takes a third less.

        samples: rays a side of a pixel, whose mean it shows; None: as many as make them no wider than the photos'
        pixels (see footprint.py): more than one for pictures smaller than those, or from farther away."""
        n = rays_a_side(self, cameras.subset([i])) if samples is None else samples
        h, w = int(cameras.heights[i]), int(cameras.widths[i])
        names = {"color": 3, "opacity": 1, "depth": 1, **({"normal": 3} if normals else {})}
        view = {name: np.empty((h * w, k), np.float32) for name, k in names.items()}
        cameras, chunk = cameras.to(self.device), max(1, render_chunk(self.device) // n**2)
        off = (torch.arange(n, device=self.device) + 0.5) / n - 0.5
        down, right = off.repeat_interleave(n), off.repeat(n)
        for start in range(0, h * w, chunk):  # a part at a time: a large picture needs little more than itself
            pixels = torch.arange(start, min(start + chunk, h * w), device=self.device)
            rows, cols = pixels // w, pixels % w
            if n > 1:
                rows, cols = (rows[:, None] + down).flatten(), (cols[:, None] + right).flatten()
            rays = cameras.rays(torch.full_like(rows, i, dtype=torch.int64), rows, cols, self.scene_from_world)
            seen = averaged(self.trace(*rays, normals), n**2)
            for name, whole in view.items():
                whole[start : start + len(pixels)] = getattr(seen, name).reshape(len(pixels), -1).cpu().numpy()
        return View(**{name: v.reshape((h, w, 3) if names[name] == 3 else (h, w)) for name, v in view.items()})

    def trace(self, rays_o: Tensor, rays_d: Tensor, normals: bool = True) -> View[Tensor]:
        """What n scene rays see."""
        out = self.render_rays(rays_o, rays_d)
        return View(
            out.over(self.behind(rays_d)).clamp(0, None if self.linear else 1),
            out.opacities,
            self.space.t_to_depth(rays_o, rays_d, out.median_depths),
            self._normals(rays_o, rays_d, out.median_depths) if normals else None,
        )

    def _normals(self, rays_o: Tensor, rays_d: Tensor, median_depths: Tensor) -> Tensor:
        """World normals [n,3] where half the light of scene rays is gone, zero where that is nowhere."""
        hit = (median_depths > 0).nonzero()[:, 0]
        o, d, *_ = self.marching.enter(rays_o[hit], rays_d[hit])
        t = median_depths[hit, None]
        points = o + t * d
        normals = torch.zeros_like(rays_d)
        scene_normals = density_normals(
            self.field, points, (t * self.marching.cone_angle).clamp_min(2 * self.marching.step_size)
        )
        scene_normals = self.space.directions_to_scene(points, scene_normals)
        normals[hit] = self.scene_from_world.inverse().apply_directions(scene_normals)
        return normals

    # ---- on disk

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON-able config) for `nerf.io.checkpoint`."""
        tensors = {f"field.{name}": t for name, t in self.field.state_dict().items()}
        tensors |= {f"occupancy.{name}": t for name, t in self.occupancy.tensors().items()}
        tensors |= {f"cameras.{name}": t for name, t in self.cameras.tensors().items()}
        tensors["background"] = self.background
        learnt = {
            "given_poses": self.given_poses,
            "log_gains": self.log_gains,
            "vignetting": self.vignetting,
            "falloff": self.falloff,
            "sky": self.sky,
        }
        tensors |= {name: t for name, t in learnt.items() if t is not None}
        config = {
            "field": self.field.to_dict() if isinstance(self.field, RadianceField) else {"class": _class(self.field)},
            "marching": self.marching.to_dict(),
            "occupancy": {"n_levels": self.occupancy.n_levels, "resolution": self.occupancy.resolution},
            "scene_from_world": self.scene_from_world.to_dict(),
            "linear": self.linear,
            "exposure": self.exposure,
            "names": self.names,
            "meta": self.meta,
        }
        if self.georeference is not None:
            config["georeference"] = self.georeference.to_dict()
        return tensors, config

    @staticmethod
    def from_state(
        tensors: dict[str, Tensor],
        config: dict[str, Any],
        where: str = "checkpoint",
        field: nn.Module | None = None,
        device: torch.device | None = None,
    ) -> Model:
        """The model of `to_state`, on a device (None: that of the backend in use); field: the one to fill with what was
        learnt, needed if it is not ours."""
        try:
            if config.get("format") == "nerf-signal":
                raise UserError(f"{where} holds a fitted {config['kind']} and no scene: `nerf sample` gives it out")
            options, given = dict(config["field"]), field is not None
            if given:
                check_module(field)
            if "class" in options and (field is None or isinstance(field, RadianceField)):
                raise UserError(
                    f"{where} holds a field of the class {options['class']}: give one to fill, "
                    "as in Model.load(path, field=MyField())"
                )
            if "class" not in options and field is not None and not isinstance(field, RadianceField):
                raise UserError(f"{where} holds no {_class(field)} but the field of this package: leave out field")
            if "class" not in options:
                check_field(options, tensors)
            check_occupancy(config["occupancy"], tensors)
            if field is None:
                contracted = options.pop("contracted")
                sizes = FieldOptions(**options)
                field = RadianceField(sizes, contracted)
            checkpoint.fill(field, checkpoint.part(tensors, "field"), where, given)
            device = kernels.device() if device is None else device
            field.to(device)
            if isinstance(field, RadianceField):
                field.table_half = field.table.detach().half()
                check_sizes(field)
            occupancy = OccupancyGrid(**config["occupancy"])
            occupancy.restore(checkpoint.part(tensors, "occupancy"))
            occupancy.to(device)
            cameras = Cameras(**checkpoint.part(tensors, "cameras"))
            check_cameras(cameras)
            check_shown(config, tensors)
            model = Model(
                field,
                occupancy,
                Marching.from_dict(config["marching"]),
                Similarity.from_dict(config["scene_from_world"]),
                cameras,
                tensors["background"],
                config["linear"],
                config["meta"],
                config.get("exposure", 1.0),
            )
            model.names = config.get("names", [])
            if config.get("georeference") is not None:
                model.georeference = Georeference.from_dict(config["georeference"], where)
            for name in ("given_poses", "log_gains", "vignetting", "falloff", "sky"):
                setattr(model, name, tensors.get(name))
            return model
        except MISFITS as error:
            raise UserError(
                f"{where} does not hold a model this version understands ({brief(error)}): train it again"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the model alone (a run's own checkpoint also holds what `--resume` needs)."""
        checkpoint.save(path, *self.to_state())

    @staticmethod
    def load(path: str | Path, field: nn.Module | None = None) -> Model:
        """Read a model from a checkpoint file, or from the run folder that holds one; field: of your own, made as it
        was for the training, to fill with what was learnt."""
        path = Path(path)
        if path.is_dir():
            path = path / "checkpoint.safetensors"
        return Model.from_state(*checkpoint.load(path), str(path), field)


def _class(field: nn.Module) -> str:
    return type(field).__qualname__
