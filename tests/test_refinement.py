"""Poses that are off come back: the step's gradient and frame, what rays see of it, and a training that mends them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import FakeModel, ring_cameras
from tiny import FIELD, sphere_scene, train_config
from torch import Tensor

from nerf import kernels
from nerf.datasets import Scene
from nerf.errors import UserError
from nerf.geometry.cameras import Cameras
from nerf.geometry.rotations import rotations_of
from nerf.geometry.space import Similarity
from nerf.io import checkpoint
from nerf.rendering.model import Model
from nerf.training.alignment import as_trained, similarity_between, with_poses
from nerf.training.evaluation import evaluate
from nerf.training.loop import Trainer, train
from nerf.training.pose_refinement import ALWAYS, EVERY, PoseCorrections, scene_scale
from nerf.training.stepping import RAY_GRADIENTS

TO_SCENE = FakeModel().scene_from_world
CONFIG = train_config(steps=300, batch_samples=1 << 12, field=replace(FIELD, density_bias=3.0))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noisy(scene: Scene, degrees: float) -> Scene:
    """Cameras turned and shifted as `bench.py capture` does it."""
    c2w, off = scene.cameras.c2w, math.radians(degrees)
    distance = scene_scale(scene.cameras, scene.scene_from_world) / scene.scene_from_world.scale
    centres = c2w[:, :, 3] + normal(len(c2w), 3, seed=1) * off * distance
    return with_poses(
        scene, torch.cat([rotations_of(normal(len(c2w), 3) * off) @ c2w[:, :, :3], centres[..., None]], 2)
    )


def corrections(cameras: Cameras, fixed_frame: bool = True) -> PoseCorrections:
    return PoseCorrections(cameras, torch.arange(len(cameras)), TO_SCENE, 2.0, fixed_frame)


def test_the_gradient_of_a_turn_and_a_shift_is_that_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras, n = ring_cameras(3), 40
    here = corrections(cameras)
    here.whitening = torch.eye(6, dtype=torch.float64).expand(3, 6, 6)
    seen: list[Tensor] = []
    monkeypatch.setattr(kernels, "adam_step", lambda z, gradient, *rest: seen.append(gradient))
    ids, rays_o, rays_d = torch.arange(n) % 3, normal(n, 3, seed=2), normal(n, 3, seed=3)
    a, b = normal(n, 3, seed=4), normal(n, 3, seed=5)
    move = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    turned = (rotations_of(move[:, :3])[ids] @ rays_d[..., None])[..., 0]
    ((rays_o + 2.0 * move[ids, 3:]) * a + turned.square() * b).sum().backward()
    here.step(ids, *(t.float() for t in (rays_d, a, 2 * rays_d * b)), 1e-3)
    assert move.grad is not None
    torch.testing.assert_close(seen[0].double(), move.grad, atol=1e-5, rtol=1e-5)


def test_corrected_rays_are_those_of_the_corrected_cameras() -> None:
    cameras = ring_cameras(4)
    here = corrections(cameras)
    here.rotations = rotations_of(normal(4, 3) * 0.1)
    here.shifts = normal(4, 3, seed=1) * 0.1
    ids, rows, cols = torch.arange(4), torch.tensor([1, 5, 9, 30]), torch.tensor([7, 3, 20, 11])
    after = cameras.with_poses(here.poses(cameras.c2w, TO_SCENE))
    found = here.apply(ids, *cameras.rays(ids, rows, cols, TO_SCENE))
    for mine, true in zip(found, after.rays(ids, rows, cols, TO_SCENE), strict=True):
        torch.testing.assert_close(mine, true, atol=1e-6, rtol=1e-6)


def test_all_cameras_together_stay_where_they_were() -> None:
    """Gradients that ask for one common turn, shift and growth move nothing; others leave the mean similarity alone."""
    cameras = ring_cameras(8)
    here = corrections(cameras)
    assert here.frame is not None and here.frame.shape == (48, 7)
    small = Similarity(1 + 1e-5, rotations_of(normal(1, 3) * 1e-5)[0], normal(3, seed=1) * 1e-5)
    c = TO_SCENE.apply(cameras.centres)
    turn = normal(1, 3) * 1e-5
    common = torch.cat([turn.expand(8, 3), (small.apply(c) - c) / 2.0], dim=1).reshape(-1)
    left = common - here.frame @ (here.frame.T @ common)
    assert float(left.norm()) < 1e-4 * float(common.norm())
    ids = torch.arange(8).repeat_interleave(6)
    for k in range(20):
        here.step(ids, *(normal(48, 3, seed=10 * k + j).float() for j in range(3)), 1e-3)
    refined = here.poses(cameras.c2w, TO_SCENE)
    angles = (refined[:, :, :3] @ cameras.c2w[:, :, :3].transpose(1, 2)).diagonal(dim1=1, dim2=2).sum(1)
    assert float(((angles - 1) / 2).clamp(-1, 1).acos().min()) > 3e-3, "each of them moved"
    drift = similarity_between(cameras.c2w, refined)
    assert abs(drift.scale - 1) < 2e-3 and float((drift.rotation - torch.eye(3)).abs().max()) < 2e-3


def test_a_unit_of_each_whitened_parameter_moves_the_picture_alike() -> None:
    cameras = ring_cameras(2, size=64)
    here = corrections(cameras)
    camera, to_world = cameras.subset([0]), TO_SCENE.inverse()
    places = torch.tensor([(x, y) for x in (8, 24, 40, 56) for y in (8, 24, 40, 56)])
    o, d = camera.rays(torch.zeros(16, dtype=torch.int64), places[:, 1], places[:, 0], TO_SCENE)
    depths = 2.0 / torch.linspace(0.25, 2.0, 4).repeat_interleave(16)[:, None]
    points = to_world.apply((o.repeat(4, 1) + depths * d.repeat(4, 1)).double())
    rates = []
    for k in range(6):
        move = here.whitening[0][:, k] * 1e-4
        here.rotations[0], here.shifts[0] = rotations_of(move[None, :3])[0], 2.0 * move[3:]
        after = cameras.with_poses(here.poses(cameras.c2w, TO_SCENE)).subset([0])
        change = (after.project(points)[0] - camera.project(points)[0]) / camera.fx[0]
        rates.append(float(change.square().mean().sqrt()) / 1e-4)
    assert all(0.25 < rate < 1.2 for rate in rates), rates  # 1 but for the damping
    assert max(rates) < 2.5 * min(rates)


def test_cameras_move_in_every_step_at_first_and_settle_under_noisy_gradients() -> None:
    due = [PoseCorrections.moves(step) for step in range(-5, ALWAYS + 8 * EVERY)]
    assert due == [False] * 5 + [True] * ALWAYS + ([True] + [False] * (EVERY - 1)) * 8
    ids, zero, wanted = torch.arange(4), torch.zeros(4, 3), torch.full((4, 3), 0.02, dtype=torch.float64)

    def mean_error(rate: Callable[[PoseCorrections], float]) -> float:
        """After 600 steps, of which each hears of the error (0.02 at first) through noise that is as loud."""
        here = corrections(ring_cameras(4), fixed_frame=False)
        here.whitening = torch.eye(6, dtype=torch.float64).expand(4, 6, 6)
        for k in range(600):
            grad_o = here.shifts - wanted + 0.02 * normal(4, 3, seed=k)
            here.step(ids, zero, grad_o.float(), zero, rate(here))
        return float((here.shifts - wanted).norm(dim=1).mean())

    settled, constant = mean_error(lambda here: here.rate(1e-3)), mean_error(lambda here: 1e-3)
    assert settled < 0.003 and settled < 0.4 * constant, (settled, constant)


def test_minutes_are_filled_though_cameras_move_less_often_later() -> None:
    config = CONFIG.with_settings(steps=None, minutes=1.0, refine_poses=True, pose_after=0, batch_growth=1e9)
    trainer = Trainer(sphere_scene(4, 12), config)
    trainer.step, trainer.seconds = 100, 10.0
    total = trainer.steps_to_fill()
    assert total is not None
    plain = 0.1 / (1 + RAY_GRADIENTS)
    seconds = [0.1 if PoseCorrections.moves(step) else plain for step in range(total)]
    assert sum(seconds) == pytest.approx(0.995 * 60.0, abs=0.2) and sum(seconds[:100]) == pytest.approx(10.0)


def test_the_others_move_along_with_the_cameras_that_were_refined() -> None:
    scene = sphere_scene(6, 12)
    model = Trainer(scene, replace(CONFIG, refine_poses=True)).model
    assert as_trained(scene, model).cameras.c2w.equal(scene.cameras.c2w), "nothing was learnt yet"
    by = Similarity(1.1, rotations_of(torch.tensor([[0.1, 0.2, 0.3]]).double())[0], torch.tensor([1.0, 2, 3]).double())
    model.cameras = model.cameras.with_poses(by.apply_poses(model.cameras.c2w))
    after = as_trained(scene, model)
    torch.testing.assert_close(after.cameras.c2w, by.apply_poses(scene.cameras.c2w))
    assert as_trained(after, model) is after, "once is enough"
    model.given_poses = None
    assert as_trained(scene, model) is scene


def test_poses_that_are_off_are_mended_and_both_scores_are_given() -> None:
    wrong = noisy(sphere_scene(14, 48), 1.0)
    wrong.splits |= {"train": torch.arange(12), "test": torch.arange(12, 14)}
    results = {}
    for after in (60, 1000):  # steps; the latter never begins
        trainer = Trainer(wrong, CONFIG.with_settings(refine_poses=True, pose_after=after, seed=1))
        for _ in range(300):
            trainer.train_step()
        trainer.state()
        results[after] = evaluate(trainer.model, wrong, show_progress=False)
    mended, left = results[60], results[1000]
    assert mended.psnr_aligned is not None and left.psnr_aligned is not None
    assert mended.psnr_aligned > left.psnr_aligned + 1.0
    assert mended.psnr_aligned > mended.psnr + 2.0, "the test cameras are off, too"
    assert "after the similarity" in mended.protocol.poses and "psnr_aligned" in mended.to_dict()["views"][0]
    assert "psnr_aligned" not in evaluate(trainer.model, wrong, "train", show_progress=False).to_dict()


def test_refinement_goes_on_to_the_bit(tmp_path: Path) -> None:
    scene, config = noisy(sphere_scene(8, 24), 1.0), replace(CONFIG, steps=40, refine_poses=True, exposure=True)
    config = config.with_settings(pose_after=5)
    train(scene, config, tmp_path / "whole", progress=False)
    half = Trainer(scene, config)
    for _ in range(17):
        half.train_step()
    checkpoint.save(tmp_path / "parts" / "checkpoint.safetensors", *half.state())
    model = train(scene, config, tmp_path / "parts", resume=True, progress=False)
    (a, _), (b, _) = (checkpoint.load(tmp_path / p / "checkpoint.safetensors") for p in ("whole", "parts"))
    assert a.keys() == b.keys() and {"given_poses", "log_gains", "poses.rotations", "gains.logs"} <= a.keys()
    assert [k for k in a if a[k].numpy().tobytes() != b[k].numpy().tobytes()] == []
    again = Model.load(tmp_path / "parts")
    assert again.cameras.c2w.equal(model.cameras.c2w) and again.names == model.names
    assert not again.cameras.c2w.equal(scene.cameras.c2w[:-1]) and again.given_poses is not None
    assert again.given_poses.equal(scene.cameras.c2w[:-1])


def test_a_checkpoint_of_a_version_with_fewer_settings_is_continued(tmp_path: Path) -> None:
    scene, config, file = sphere_scene(6, 12), replace(CONFIG, steps=4), tmp_path / "checkpoint.safetensors"
    train(scene, replace(config, steps=4), tmp_path, progress=False)
    tensors, about = checkpoint.load(file)
    for name in ("refine_poses", "exposure", "pose_rate"):
        del about["training"]["config"][name]
    checkpoint.save(file, tensors, about)
    Trainer(scene, config).restore(file)
    with pytest.raises(UserError, match="refine_poses False, now True"):
        Trainer(scene, replace(config, refine_poses=True)).restore(file)


def test_corrections_are_the_same_bits_with_any_number_of_threads(threads) -> None:
    """Matrix products and a singular value decomposition of the common similarity's basis were not."""
    n, found = 60, []
    for k in (1, 2, 3):
        threads(k)
        poses = PoseCorrections(ring_cameras(n), torch.arange(n), Similarity.around([0.0, 0.0, 0.0], 1.0), 3.0)
        g = torch.Generator().manual_seed(1)
        for _ in range(2):
            ids = torch.randint(0, n, (4096,), generator=g)
            d, grad_o, grad_d = torch.nn.functional.normalize(torch.randn(3, 4096, 3, generator=g), dim=2)
            poses.step(ids, d, grad_o, grad_d, 1e-3)
        assert poses.frame is not None and float(poses.shifts.abs().max()) > 0
        eye = torch.eye(poses.frame.shape[1], dtype=torch.float64)
        torch.testing.assert_close(poses.frame.T @ poses.frame, eye, rtol=0, atol=1e-12)
        found.append((poses.frame, poses.rotations, poses.shifts))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
