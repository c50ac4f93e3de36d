"""A place of several fields: rays cross its cells one after another, each in the field of that cell alone.

Cells (`nerf.geometry.cells`) fill space, and a ray meets each of them in one segment at most. Light of a segment passes
what lies before it: with T the transmittance in front of a segment that has the opacity a and the foreground c,
C = sum T c, and the next one has T (1 - a); the background is added behind the last. One field that is cut into cells
so gives the same picture, but for where along a ray its samples lie. Nothing is blended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nerf.errors import UserError
from nerf.fields.own import checked
from nerf.geometry.cameras import Cameras
from nerf.geometry.cells import Cell
from nerf.geometry.space import Similarity, Unbounded
from nerf.kernels import RenderedRays
from nerf.rendering.marching import Marching, cropped
from nerf.rendering.model import Model
from nerf.rendering.rays import render_chunk, render_rays

MOST_LEVELS = 16  # of the space around all cells
_SAME = 1e-6  # by which the axes of frames may differ


@dataclass(frozen=True)
class Block:
    """One cell of a place, in the place's scene frame, and the model of what is in it.

    Its own scene is scale * x + shift. light: gain and lift [3], with which its colours are shown, gain * c + lift *
    opacity: that of the photos' exposure which its training took for common against that of the place.
    """

    cell: Cell
    model: Model
    scale: float
    shift: Tensor  # [3] float32
    light: tuple[Tensor, Tensor]

    @staticmethod
    def of(cell: Cell, model: Model, place: Similarity, light: tuple[Tensor, Tensor] | None = None) -> Block:
        """UserError where the axes of the model's frame are not the place's."""
        mine = model.scene_from_world
        if float((mine.rotation - place.rotation).abs().max()) > _SAME or not model.space.contracted:
            raise UserError("a model is of another place than its cell: train the cells again with --overwrite")
        scale = mine.scale / place.scale
        shift = (mine.translation - scale * place.translation).float().to(model.device)
        return Block(cell, model, scale, shift, light or (torch.ones(3), torch.zeros(3)))

    def to_own(self, points: Tensor) -> Tensor:
        """Points [n,3] of the place in the model's scene."""
        return (points * self.scale + self.shift).to(points.dtype)

    def segment(self, rays_o: Tensor, rays_d: Tensor, near: Tensor, far: Tensor, stop: float) -> RenderedRays:
        """What rays of the place see between near and far [n], which are lengths of the place, as those returned."""
        known = _Known(near * self.scale, far * self.scale)
        marching = cropped(replace(self.model.marching, stop_threshold=stop), known)
        # steps begin at the border itself: half a step that is left out there would be seen through
        jitter = torch.where(near > self.model.marching.near / self.scale, 0.0, 0.5)
        own = self.model.field, self.model.occupancy
        out = render_rays(*own, marching, self.to_own(rays_o), rays_d, jitter=jitter)
        gain, lift = (t.to(out.foregrounds) for t in self.light)
        return out._replace(
            foregrounds=gain * out.foregrounds + lift * out.opacities[:, None],
            depths=out.depths / self.scale,
            median_depths=out.median_depths / self.scale,
            distortions=out.distortions / self.scale,
        )


@dataclass(frozen=True)
class _Known:
    """Where rays enter and leave, found before; of as many rays as are rendered at once."""

    near: Tensor
    far: Tensor

    def clip_rays(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
        return self.near, self.far


class BlockField:
    """The field of a place: at each point that of the cell in which it lies; densities in 1/length of the place."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks

    def density(self, x: Tensor) -> Tensor:
        """[n] at points [n,3]."""
        sigmas = x.new_zeros(len(x))
        for b, mine in self._owners(x):
            sigmas[mine] = b.scale * checked(b.model.field).density(b.to_own(x[mine]))
        return sigmas

    def __call__(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Densities [n] and colours [n,3] at points [n,3] seen along unit directions [n,3]."""
        sigmas, rgbs = x.new_zeros(len(x)), x.new_zeros(len(x), 3)
        for b, mine in self._owners(x):
            own, colours = checked(b.model.field)(b.to_own(x[mine]), d[mine])
            gain, lift = (t.to(x) for t in b.light)
            sigmas[mine], rgbs[mine] = b.scale * own, gain * colours + lift
        return sigmas, rgbs

    def _owners(self, x: Tensor) -> Iterator[tuple[Block, Tensor]]:
        for b in self.blocks:
            mine = b.cell.contains(x).nonzero()[:, 0]
            if len(mine):
                yield b, mine


class BlockedModel(Model):
    """A place of several fields, for pictures, films, numbers and meshes as a `Model` is; it has no occupancy, and is
    not trained or saved as a whole. Its scene has the ground along x and y. A crop of `marching` cuts all cells."""

    def __init__(self, blocks: Sequence[Block], place: Similarity, cameras: Cameras, names: list[str]) -> None:
        """cameras, names: of the photos that the cells were trained on, each once."""
        models = [b.model for b in blocks]
        first, marches = models[0], [(b.model.marching, b.scale) for b in blocks]
        reach = max((m.space.half_extent + float(b.shift.abs().max())) / b.scale for b in blocks for m in [b.model])
        space = Unbounded(min(MOST_LEVELS, 1 + max(0, math.ceil(math.log2(reach)))))
        marching = Marching(
            space,
            min(m.near / scale for m, scale in marches),
            max(m.far / scale for m, scale in marches),
            step_size=min(m.step_size / scale for m, scale in marches),
            cone_angle=max(m.cone_angle for m, _ in marches),
        )
        parts: tuple[Any, Any] = BlockField(blocks), None
        super().__init__(*parts, marching, place, cameras, first.background, first.linear, exposure=first.exposure)
        self.blocks, self.names, self.georeference = list(blocks), names, first.georeference
        skies = [m.sky for m in models if m.sky is not None]
        self.sky = torch.stack(skies).mean(dim=0) if len(skies) == len(models) else None  # of the same axes
        self.meta = {"blocks": len(blocks), "data": first.meta.get("data")}
        self.meta |= {name: sum(m.meta[name] for m in models) for name in ("steps", "seconds") if name in first.meta}

    @property
    def device(self) -> torch.device:
        return self.blocks[0].model.device

    @property
    def n_cells(self) -> int:
        return len(self.blocks)

    def to(self, device: torch.device | str) -> BlockedModel:
        self.blocks[:] = [replace(b, model=b.model.to(device), shift=b.shift.to(device)) for b in self.blocks]
        self.field.blocks = self.blocks
        return self

    def each(self, change: Callable[[Model], Model]) -> BlockedModel:
        """The same place, with a change made to the model of each cell."""
        other = copy(self)
        other.blocks = [replace(b, model=change(b.model)) for b in self.blocks]
        return other

    def coarser(self, stretch: float) -> BlockedModel:
        return self.each(lambda model: model.coarser(stretch))

    def render_rays(self, rays_o: Tensor, rays_d: Tensor) -> RenderedRays:
        """As `Model.render_rays`. Median depths are those of the segment in which half the light is gone, by itself;
        second moments are those before the light of cells is brought into line."""
        return self._cross(rays_o, rays_d, None)

    def median_depths(self, rays_o: Tensor, rays_d: Tensor) -> tuple[Tensor, Tensor]:
        out = self._cross(rays_o, rays_d, 0.499)
        return out.median_depths, out.distortions / out.opacities.clamp_min(1e-6).square()

    @torch.no_grad()
    def _cross(self, rays_o: Tensor, rays_d: Tensor, stop: float | None) -> RenderedRays:
        parts = [
            self._segments(o.float(), d.float(), stop)
            for o, d in zip(*(t.split(render_chunk(self.device)) for t in (rays_o, rays_d)), strict=True)
        ]
        f, a, t, medians, moments, spreads = (torch.cat(column) for column in list(zip(*parts, strict=True))[:6])
        evaluated, kept = sum(p.evaluated for p in parts), sum(p.kept for p in parts)
        return RenderedRays(f, a, t, medians, moments, spreads, evaluated, kept)

    def _segments(self, o: Tensor, d: Tensor, stop: float | None) -> RenderedRays:
        """What rays [n,3] see, segment after segment; stop: the share of light with which one ends."""
        near, far = (
            torch.stack(side, dim=1) for side in zip(*(b.cell.clip_rays(o, d) for b in self.blocks), strict=True)
        )
        *_, start, end = self.marching.enter(o, d)  # of a crop, where there is one
        near, far = torch.maximum(near, start[:, None]), torch.minimum(far, end[:, None])
        near = torch.where(near < far, near, math.inf)
        order = near.argsort(dim=1)
        n = len(o)
        colors, rest = o.new_zeros(n, 3), o.new_zeros(5, n)
        opacities, depths, medians, moments, distortions = rest
        evaluated: Any = 0
        kept: Any = 0
        for which in order.T:
            least = self.blocks[0].model.marching.stop_threshold if stop is None else stop
            live = near.gather(1, which[:, None])[:, 0].isfinite() & (1 - opacities > least)
            for k in which[live].unique().tolist():
                rows = (live & (which == k)).nonzero()[:, 0]
                out = self.blocks[k].segment(o[rows], d[rows], near[rows, k], far[rows, k], least)
                before, moment_before = opacities[rows], depths[rows]
                left = 1 - before
                weight, moment = left * out.opacities, left * out.depths
                colors[rows] += left[:, None] * out.foregrounds
                moments[rows] += left * out.second_moments
                # pairs of samples, one before and one here: twice the sum of w_i w_j (t_j - t_i)
                distortions[rows] += left.square() * out.distortions + 2 * (before * moment - moment_before * weight)
                middle = torch.where(
                    out.median_depths > 0, out.median_depths, out.depths / out.opacities.clamp_min(1e-6)
                )
                half = (before < 0.5) & (before + weight >= 0.5)
                medians[rows] = torch.where(half, middle, medians[rows])
                opacities[rows] += weight
                depths[rows] += moment
                evaluated, kept = evaluated + out.evaluated, kept + out.kept
        return RenderedRays(colors, opacities, depths, medians, moments, distortions, evaluated, kept)
