"""The training step of a GPU's own kernels: the batch and the gradients that torch makes, in few launches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import emulation
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nerf import kernels
from nerf.datasets.bits import packed
from nerf.geometry.space import Box, Ndc
from nerf.kernels import BatchPlan, nvrtc, reference
from nerf.rendering.marching import Marching
from nerf.training.fused_step import photo_table
from nerf.training.loop import Trainer
from nerf.training.objective import near_end
from nerf.training.pixel_sampler import PixelBatch, PixelSampler, ray_lengths

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from benchmarks import cuda_step_checks as step_checks

pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="needs a C++ compiler")


@pytest.fixture
def emulated() -> Iterator[None]:
    with emulation.use():
        yield


LIGHT = ("exposure", "vignetting", "flash")


def trainer_of(scene: Any = None, **changes: Any) -> Trainer:
    settings = {"steps": 40, "batch_samples": 256, "field": tiny.FIELD, "occupancy_every": 100, "graph": False}
    return Trainer(scene or tiny.sphere_scene(3, 20), tiny.train_config(**(settings | changes)))


def drawn_in(trainer: Trainer, n: int, near: Tensor | None = None) -> kernels.DrawnRays:
    """n pixels of a training by the reference."""
    sampler, lit = trainer.sampler, trainer.exposures is not None
    assert isinstance(sampler, PixelSampler)
    table = photo_table(trainer.scene, trainer.model, sampler, trainer.weights, trainer.viewpoints, lit)
    return reference.draw_rays(table, BatchPlan(n, 0, 3, near=sampler.near if near is None else near))


def test_an_open_scene_has_rays_of_keypoints_and_rays_before_cameras(emulated: None) -> None:
    trainer = trainer_of(tiny.open_scene(), vignetting=True)
    scene, sampler = trainer.scene, trainer.sampler
    drawn = drawn_in(trainer, 4000)
    assert drawn.t_depths is not None and drawn.pixels is not None and scene.keypoints is not None
    assert not bool(drawn.t_depths[:3500].any()) and bool((drawn.t_depths[3500:] > 0).all())
    image, row, column = drawn.pixels.unbind(1)
    assert 3 not in image.tolist()  # which is held out, and what it shows with it
    rays_o, rays_d = scene.cameras.rays(image, row, column, scene.scene_from_world)
    assert torch.allclose(rays_o, drawn.rays.o[:4000], atol=1e-6)
    assert torch.allclose(rays_d, drawn.rays.d[:4000], atol=1e-6)
    depths = {tuple(at): z for *at, z in zip(*(v.tolist() for v in vars(scene.keypoints).values()), strict=True)}
    z = torch.tensor([depths[tuple(at)] for at in drawn.pixels[3500:].tolist()])
    batch = PixelBatch(*(t[3500:] for t in (image, row, column, drawn.places)), None, None, None, depths=z)  # type: ignore[arg-type]
    assert torch.allclose(drawn.t_depths[3500:], ray_lengths(scene, batch, rays_d[3500:]), rtol=1e-5)
    blocks = sampler.blocks[drawn.places]  # type: ignore[union-attr]
    assert torch.equal(blocks, torch.stack([image, row // 16, column // 16], dim=1))

    o, d, far = drawn.rays.o[4000:], drawn.rays.d[4000:], drawn.rays.t_far[4000:]
    assert len(o) == 1000 and torch.equal(d, drawn.rays.viewdirs[4000:])
    assert bool(((drawn.rays.d[:4000].view(1000, 4, 3) - d[:, None]).abs().amax(2) == 0).any(1).all())
    assert float(far.max()) == pytest.approx(near_end(trainer.model.marching))
    distances = (o[:, None] - trainer.viewpoints.centres).norm(dim=2).amin(1)
    assert float(distances[::2].max()) < 1e-6
    assert float((distances[1::2] > 1e-3).float().mean()) == pytest.approx(2 / 3, abs=0.06)  # each is nearest to itself
    wanted = trainer.viewpoints.draw(50000, torch.Generator().manual_seed(0))
    assert torch.allclose(o[1::2].mean(0), wanted.mean(0), atol=0.3)
    assert torch.allclose(o[1::2].T.cov(), wanted.T.cov(), atol=0.6)


def test_only_keypoints_and_viewpoints_of_photos_in_use_are_drawn(
    emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tiny.open_scene())
    drawn = drawn_in(trainer, 800, torch.tensor([70, 71]))  # row 8, columns 14 and 15 of photo 1
    assert drawn.t_depths is not None and len(drawn.t_depths[700:].unique()) == 2
    drawn = drawn_in(trainer, 800, torch.tensor([], dtype=torch.int64))
    assert drawn.t_depths is None
    trainer.leave_out_photos(["view_000.png"])
    sampler = trainer.sampler
    assert isinstance(sampler, PixelSampler) and 0 < len(sampler.near) < len(sampler.keypoint_places)
    real, centres = kernels.draw_rays, []
    monkeypatch.setattr(kernels, "draw_rays", lambda *a: (centres.append(a[0].before.centres), real(*a))[1])
    assert 0 < trainer.train_step() < 1
    kept = trainer.scene.scene_from_world.apply(trainer.scene.cameras.centres[[1, 2]])
    assert torch.equal(centres[0], kept.float())


def test_a_batch_is_what_the_photos_show_and_the_cameras_see(emulated: None) -> None:
    """By the parts that plain torch trains with: pixel store, cameras, marching."""
    trainer = trainer_of()
    scene, sampler = trainer.scene, trainer.sampler
    table = photo_table(scene, trainer.model, sampler)  # type: ignore[arg-type]
    drawn = reference.draw_rays(table, BatchPlan(500, 0, 3))
    image, row, column = sampler.blocks[drawn.places].unbind(1)  # type: ignore[union-attr]
    side = torch.arange(table.side)
    found = torch.zeros(500, dtype=torch.bool)
    for r in side:  # which of the block's pixels it was is known by its ray
        for c in side:
            rows, cols = (row * table.side + r).clamp_max(19), (column * table.side + c).clamp_max(19)
            rays_o, rays_d = scene.cameras.rays(image, rows, cols, scene.scene_from_world)
            same = ((rays_o - drawn.rays.o).abs().amax(1) < 1e-6) & ((rays_d - drawn.rays.d).abs().amax(1) < 1e-6)
            rgba = scene.pixels.gather(image, rows, cols)
            shown = rgba[:, :3] * rgba[:, 3:] + drawn.backgrounds * (1 - rgba[:, 3:])
            assert torch.allclose(shown[same], drawn.targets[same], atol=1e-6)
            found |= same
    assert bool(found.all())
    _, _, _, near, far = trainer.model.marching.enter(drawn.rays.o, drawn.rays.d)
    assert torch.equal(near, drawn.rays.t_near) and torch.equal(far, drawn.rays.t_far)
    assert torch.equal(drawn.rays.jitter, reference.ray_jitter(0, 3, torch.arange(500)))
    # one pixel in each 500th of all blocks; others in the next step
    assert int(drawn.places.bincount().max() - drawn.places.bincount().min()) <= 1
    assert not torch.equal(reference.draw_rays(table, BatchPlan(500, 0, 4)).targets, drawn.targets)


def test_masks_and_silhouettes_are_those_of_the_scene(emulated: None) -> None:
    """By their own `gather`; behind an object before one colour is that colour."""
    scene, images = tiny.sphere_scene(3, 20), []
    for seed in (1, 2):
        bits = torch.rand(3, 20, 20, 1, generator=torch.Generator().manual_seed(seed)) < 0.7
        images.append(packed([(20, 20)] * 3, lambda i, bits=bits: 255 * bits[i].numpy().astype(np.uint8)))
    scene = replace(scene, masks=images[0], silhouettes=images[1], background=torch.tensor([0.1, 0.2, 0.9]))
    trainer = trainer_of(scene)
    assert trainer.fused is not None
    table = photo_table(trainer.scene, trainer.model, trainer.sampler)  # type: ignore[arg-type]
    blocks = torch.cartesian_prod(torch.arange(3), torch.arange(20), torch.arange(20))  # every pixel is its own
    drawn = reference.draw_rays(replace(table, blocks=blocks, side=1), BatchPlan(1200, 0, 3))
    where = blocks[drawn.places].unbind(1)
    assert drawn.used is not None and torch.equal(drawn.used, images[0].gather(*where)[:, 0])
    solid = images[1].gather(*where)[:, 0] > 0
    behind = (drawn.backgrounds - torch.tensor([0.1, 0.2, 0.9])).abs().amax(1) < 1e-6
    assert torch.equal(behind, solid)
    assert 0 < trainer.train_step() < 1


def test_random_directions_are_nearly_uniform() -> None:
    table = step_checks.photo_tables()["grey"]
    found = reference.draw_rays(table, BatchPlan(50000, 1, 0, any_direction=True)).rays.viewdirs
    assert torch.allclose(found.norm(dim=1), torch.ones(50000))
    assert float(found.mean(0).abs().max()) < 0.01
    moments = found.T @ found / len(found)
    assert torch.allclose(moments, torch.eye(3) / 3, atol=0.01)
    assert float(((found.abs().amax(1)) ** 4).mean()) == pytest.approx(0.5, abs=0.03)  # 0.4998 where it is uniform


CASES = {
    "draw": lambda: step_checks.check_draw(257),
    "learn, half": lambda: step_checks.check_learn(True, 40, 0.06, width=32, n_features=16),
    "learn, single": lambda: step_checks.check_learn(False, 40, 0.06, width=32, n_features=16),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_what_torch_and_autograd_make_of_it(name: str, emulated: None) -> None:
    rows = list(CASES[name]())
    wrong = [row for row in rows if not row[1] <= row[2]]
    assert rows and not wrong


needs_native = pytest.mark.skipif(bool(kernels.BACKENDS["cpu"].why_missing()), reason="needs the CPU kernels")
CPU_CASES = CASES | {  # rays of hundreds of samples, more than whose activations are kept
    "learn, long rays": lambda: step_checks.check_learn(True, 12, 0.003, width=32, n_features=16),
}


@needs_native
@pytest.mark.parametrize("name", CPU_CASES)
def test_a_step_of_the_cpu_is_what_torch_and_autograd_make_of_it(name: str) -> None:
    with kernels.using("cpu"):
        rows = list(CPU_CASES[name]())
    wrong = [row for row in rows if not row[1] <= row[2]]
    assert rows and not wrong


@needs_native
@pytest.mark.parametrize("kind", ["object", "open scene"])
def test_levels_that_step_with_their_gradients_at_hand_step_alike(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with one thread and with two, beside an accumulator and Adam for the whole table."""
    found, threads = [], torch.get_num_threads()
    scene, light = (None, {}) if kind == "object" else (tiny.open_scene(), dict.fromkeys(LIGHT, True))
    for at_once, n_threads in ((True, 1), (True, 2), (False, 1)):
        with kernels.using("cpu"):
            torch.set_num_threads(n_threads)
            trainer = trainer_of(scene, batch_samples=4096, **light)
            assert trainer.fused is not None
            if not at_once:
                monkeypatch.setattr(trainer.optimiser, "table_step", lambda *_: None)
            for _ in range(4):
                trainer.train_step()
            torch.set_num_threads(threads)
            accumulator = trainer.optimiser.grad_accumulator
            assert accumulator is not None and not bool(accumulator.table.any())
        found.append(trainer.optimiser.tensors() | dict(trainer.model.field.state_dict()))
        if trainer.exposures is not None:
            found[-1] |= {f"light.{k}": t for k, t in trainer.exposures.tensors().items()}
    for other in found[1:]:
        assert all(torch.equal(t, other[name]) for name, t in found[0].items())
    assert float(found[0]["0.v"].sum()) > 0


class Launches(TorchDispatchMode):
    """Counts operations that a GPU would launch something for: not views, nor memory that is only set aside."""

    QUIET = ("empty", "view", "alias", "detach", "slice", "select", "split", "unbind", "as_strided", "expand", "t")
    QUIET += (
        "unsqueeze",
        "squeeze",
        "transpose",
        "permute",
        "reshape",
        "lift_fresh",
        "_unsafe_view",
        "set_",
        "split_with_sizes",
    )
    QUIET += ("empty_like", "new_empty", "unflatten", "is_same_size", "result_type", "_reshape_alias", "empty_strided")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().split("::")[1].split(".")[0]
        if name not in self.QUIET:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["object, diffuse", "object", "open scene"])
def test_a_default_step_launches_little(kind: str, emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Surface loss and error map on; what happens every 16th step left out."""
    counts = {}
    for fused in (True, False):
        scene = tiny.open_scene() if kind == "open scene" else None
        trainer = trainer_of(scene, importance_after=1, importance_every=100)
        trainer.sampler.update_importance(0.5)
        assert trainer.fused is not None
        trainer.fused = trainer.fused if fused else None
        trainer.train_step()  # what is prepared once
        plan = replace(trainer.plan(), diffuse="diffuse" in kind)
        assert plan.surface > 0 and plan.by_importance
        before = nvrtc.statistics["launched"]
        with Launches() as seen:
            result = trainer.learn(plan)
            assert trainer.meter.read(replace(plan, step=100), result) is None  # not looked at
        counts[fused] = len(seen.names) + int(nvrtc.statistics["launched"] - before), seen.names
    assert counts[True][0] <= 25, counts[True]
    assert counts[False][0] > 3 * counts[True][0], counts


def test_only_steps_that_are_the_same_are_fused(emulated: None) -> None:
    scene = tiny.sphere_scene(3, 20)
    assert trainer_of(scene).fused is not None
    assert trainer_of(tiny.open_scene(), exposure=True, vignetting=True, flash=True).fused is not None
    for changes in ({"deterministic": True}, {"refine_poses": True}):
        assert trainer_of(scene, **changes).fused is None
    depths = tiny.store([np.full((20, 20, 1), 2.0, np.float32)] * 3)
    assert trainer_of(replace(scene, depths=depths)).fused is None
    assert trainer_of(replace(scene, linear=True)).fused is None
    assert trainer_of(replace(scene, space=Ndc(1.0, 1.0))).fused is not None
    assert 0 < trainer_of(replace(scene, space=Ndc(1.0, 1.0)), flash=True).train_step() < 1  # which NDC does not have
    config = trainer_of().config
    assert Trainer(scene, config, loss=lambda rendered, batch: rendered.opacities.mean()).fused is None
    kernels.use("reference")
    assert trainer_of(scene).fused is None


def test_fused_steps_learn_a_scene(emulated: None) -> None:
    trainer = trainer_of(batch_samples=1024, occupancy_every=8, importance_after=16, importance_every=8)
    assert trainer.fused is not None
    errors = []
    for _ in range(40):
        trainer.n_rays = 64
        errors.append(trainer.train_step())
    assert sum(errors[-8:]) < 0.6 * sum(errors[:8])
    assert float(trainer.sampler.counts.sum()) > 0 and trainer.samples["trained"] > 0


def test_a_box_is_entered_where_the_march_enters_it(emulated: None) -> None:
    """Also along its sides, where a ray is parallel to them."""
    marching, table = Marching(Box(), near=0.0, far=100.0), step_checks.photo_tables()["rgb, lenses"]
    cameras = torch.zeros(2, 16)
    cameras[:, [0, 4, 8]] = 1.0
    cameras[0, 11], cameras[1, 10] = -3.0, 1.5
    assert table.directions is not None
    directions = 0.3 * table.directions[0] + torch.tensor([0.0, 0.0, 1.0])
    directions[::2, 0], directions[::3, 1] = 0.0, 0.0
    lenses = directions, table.directions[1]
    table = replace(table, cameras=cameras, directions=lenses, space=Box(), near=0.0, far=100.0)
    drawn = kernels.draw_rays(table, BatchPlan(300, 1, 1))
    _, _, _, near, far = marching.enter(drawn.rays.o, drawn.rays.d)
    hit, parallel = near < far, (drawn.rays.d == 0).any(dim=1)
    assert all(bool((some & parallel).any()) for some in (hit, ~hit))
    assert torch.equal(drawn.rays.t_near < drawn.rays.t_far, hit)
    assert torch.allclose(drawn.rays.t_near[hit], near[hit]) and torch.allclose(drawn.rays.t_far[hit], far[hit])
