"""Cameras of photos that a model was not trained on, in the frame of poses that training has refined."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nerf.datasets import Scene
from nerf.geometry import light
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Similarity
from nerf.rendering import losses
from nerf.rendering.model import Model
from nerf.rendering.rays import render_rays
from nerf.training.exposure import OPAQUE, apply_exposure_over, fitted
from nerf.training.optimiser import grad_accumulator_of
from nerf.training.pose_refinement import PoseCorrections, scene_scale

STEPS = 120  # of the search for one camera's pose
RAYS = 512  # a step and camera
BLURS = (32, 16, 8, 4, 2, 1)  # pixels along the side of the blocks that are compared, coarse to fine
BLOCKS = 32  # along the shorter side of the picture, at least
CHECKS = 8  # batches that decide whether a search has found something better
REACH = 0.15  # of a block: the rate of a step at first, in each stage


def similarity_between(given: Tensor, refined: Tensor) -> Similarity:
    """The similarity that takes given poses [n,3,4] nearest to refined ones: the mean turn of the cameras (chordal),
    then scale and shift of their centres by least squares; no scale where the centres lie in one place."""
    u, _, vt = torch.linalg.svd((refined[:, :, :3] @ given[:, :, :3].transpose(1, 2)).sum(dim=0))
    flip = torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vt).sign())], dtype=torch.float64))
    rotation = u @ flip @ vt
    a, b = given[:, :, 3] @ rotation.T, refined[:, :, 3]
    spread = a - a.mean(dim=0)
    total = float(spread.square().sum())
    scale = float((spread * (b - b.mean(dim=0))).sum()) / total if total > 1e-12 * float(a.square().sum()) else 1.0
    return Similarity(scale, rotation, b.mean(dim=0) - scale * a.mean(dim=0))


def as_trained(scene: Scene, model: Model) -> Scene:
    """The scene with the poses that training has refined; cameras that it did not see move along with the others.

    A scene whose model kept the given poses, or which has the refined ones already, comes back as it is.
    """
    if model.given_poses is None:
        return scene
    index = {name: i for i, name in enumerate(scene.names)}
    pairs = [(index[name], k) for k, name in enumerate(model.names) if name in index]
    here, there = (torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
    refined, c2w = model.cameras.c2w.cpu(), scene.cameras.c2w.cpu()
    if len(pairs) and torch.equal(c2w[here], refined[there]):
        return scene
    c2w = similarity_between(model.given_poses, refined).apply_poses(c2w)
    return with_poses(scene, c2w.index_copy(0, here, refined[there]))


def with_poses(scene: Scene, c2w: Tensor) -> Scene:
    """The same scene with other poses [n,3,4]."""
    return replace(scene, cameras=scene.cameras.with_poses(c2w))


def optimise_test_poses(model: Model, cameras: Cameras, pictures: list[Tensor], masks: list[Tensor | None]) -> Tensor:
    """Poses [n,3,4] (world) with which a model's field looks most like the pictures; the field stays as it is.

    pictures: [h,w,3] each, over the model's background, in its colour space; masks [h,w] bool, True where a pixel
    counts. Stochastic descent of a Huber loss on random pixels, coarse to fine: the pictures are compared block by
    block with single rays, whose expected gradient is that of a blurred difference. As CamP (Park et al. 2023) does
    before scoring.
    """
    trainable = list(model.field.parameters())
    for p in trainable:
        p.requires_grad_(False)
    try:
        return _searched(model, cameras, pictures, masks)
    finally:
        for p in trainable:
            p.requires_grad_(True)


def _searched(model: Model, cameras: Cameras, pictures: list[Tensor], masks: list[Tensor | None]) -> Tensor:
    n, device, to_scene = len(cameras), model.device, model.scene_from_world
    here = cameras.to(device)
    distance = scene_scale(model.cameras, to_scene)
    corrections = PoseCorrections(here, torch.arange(n), to_scene, distance, fixed_frame=False)
    random = torch.Generator(device).manual_seed(0)
    accumulator = grad_accumulator_of(model.field)  # the table's gradient is made with the rays', and unused
    focal, smallest = float(cameras.fx.median()), min(min(p.shape[:2]) for p in pictures)
    image_ids = torch.arange(n, device=device).repeat_interleave(RAYS)

    def drawn(blocks: list[tuple[Tensor, Tensor | None]], blur: int) -> tuple[Tensor, ...]:
        """Rays of the cameras as given through random blocks, the blocks' colours, and which of them count."""
        parts = zip(*[_draw(colors, counts, random) for colors, counts in blocks], strict=True)
        rows, cols, wanted, counts = (torch.cat(part).to(device) for part in parts)
        rows, cols = ((t + 0.5) * blur - 0.5 for t in (rows, cols))
        return *here.rays(image_ids, rows, cols, to_scene), wanted, counts

    def differences(rays_o: Tensor, rays_d: Tensor, wanted: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        field, occupancy, marching = model.field, model.occupancy, model.marching
        seen = render_rays(field, occupancy, marching, rays_o, rays_d, grad_accumulator=accumulator)
        opacities, parts = seen.opacities[:, None], (seen.over(model.behind(rays_d)), wanted, model.background)
        shown, wanted, background = (light.shown_as(model, t) for t in parts)
        if model.log_gains is not None:  # the picture's own exposure is not the pose's affair
            views, votes = (n, RAYS, 3), (counts > 0) & (opacities > OPAQUE)
            logs = fitted(shown.detach().view(views), wanted.view(views), votes.view(n, RAYS))
            shown = apply_exposure_over(shown, logs.repeat_interleave(RAYS, dim=0), opacities, background)
        return shown * counts, wanted * counts

    for blur in BLURS:
        if blur > 1 and smallest < BLOCKS * blur:
            continue
        blocks = [shrunk(p, m, blur) for p, m in zip(pictures, masks, strict=True)]
        for k in range(STEPS // len(BLURS)):
            rays_o, rays_d, wanted, counts = drawn(blocks, blur)
            rays_o, rays_d = corrections.apply(image_ids, rays_o, rays_d)
            rays_o.requires_grad_(True)
            rays_d.requires_grad_(True)
            losses.huber(*differences(rays_o, rays_d, wanted, counts)).backward()
            assert rays_o.grad is not None and rays_d.grad is not None
            rate = REACH * blur / focal * 0.3 ** (k * len(BLURS) / STEPS)
            corrections.step(image_ids, rays_d.detach(), rays_o.grad, rays_d.grad, rate)
    better = torch.zeros(n, device=device)  # than where it began: a search may lose its way
    with torch.no_grad():
        for _ in range(CHECKS):
            rays_o, rays_d, wanted, counts = drawn(blocks, blur)
            before = differences(rays_o, rays_d, wanted, counts)
            after = differences(*corrections.apply(image_ids, rays_o, rays_d), wanted, counts)
            gain = (before[0] - before[1]).square() - (after[0] - after[1]).square()
            better += gain.view(n, -1).sum(dim=1)
    found = corrections.poses(cameras.c2w, to_scene)
    return torch.where((better > 0).cpu()[:, None, None], found, cameras.c2w.cpu())


def shrunk(truth: Tensor, mask: Tensor | None, factor: int) -> tuple[Tensor, Tensor | None]:
    """A picture [h,w,3] and its mask [h,w] at a whole fraction of their size: blocks are averaged, incomplete last ones
    cut; a block counts where all its pixels do."""
    if factor == 1:
        return truth, mask
    pool = torch.nn.functional.avg_pool2d
    smaller = pool(truth.permute(2, 0, 1)[None], factor)[0].permute(1, 2, 0).contiguous()
    return smaller, None if mask is None else pool(mask.float()[None, None], factor)[0, 0] > 0.999


def _draw(colors: Tensor, counts: Tensor | None, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(rows, cols [RAYS], colours [RAYS,3], counts [RAYS,1]: 1 where all pixels count) of random blocks."""
    h, w = colors.shape[:2]
    drawn = torch.randint(h * w, (RAYS,), generator=random, device=random.device).cpu()
    rows, cols = drawn // w, drawn % w
    return rows, cols, colors[rows, cols], torch.ones(RAYS, 1) if counts is None else counts[rows, cols, None].float()
