"""Fields from outside: what is wrong with them is said in one sentence where they enter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_scenes import write_transforms
from torch import Tensor, nn

import nerf
from nerf.errors import UserError
from nerf.geometry.space import Box
from nerf.rendering.sampling import render_with

CONFIG = nerf.TrainConfig(steps=2, batch_samples=512, occupancy_resolution=32)
Change = Callable[[Tensor], Any]


class Glow(nn.Module):
    """One density and colour everywhere, of which one output is changed."""

    def __init__(self, width: int = 4, **changes: Change) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(width))
        self.changes = changes

    def _given(self, name: str, value: Tensor) -> Any:
        return self.changes.get(name, lambda v: v)(value)

    def density(self, x: Tensor) -> Any:
        return self._given("density", self.level.mean().exp().expand(len(x)))

    def forward(self, x: Tensor, d: Tensor) -> Any:
        sigmas = self._given("sigmas", self.level.mean().exp().expand(len(x)))
        rgbs = self._given("rgbs", self.level.mean().sigmoid().expand(len(x), 3))
        return self._given("pair", (sigmas, rgbs))


class Other(Glow):
    """Another class of field, with a parameter more."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(2, 3)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> nerf.Scene:
    return nerf.load(write_transforms(tmp_path_factory.mktemp("scene"), n=6), quiet=True)


@pytest.mark.parametrize(
    ("method", "change", "words"),
    [
        (
            "density",
            lambda v: v[:, None],
            r"density\(x\) returned \[(\d+), 1\] of torch.float32 on cpu, expected \[\1\]",
        ),
        ("density", lambda v: None, r"density\(x\) returned None, expected \["),
        (
            "density",
            lambda v: v.double(),
            r"density\(x\) returned .* of torch.float64 on cpu, expected .*float32 on cpu",
        ),
        ("density", lambda v: v.to("meta"), r"density\(x\) returned .* on meta, expected .* on cpu"),
        ("density", lambda v: v.tolist(), r"density\(x\) returned a list of \d+, expected"),
        ("sigmas", lambda v: v[:, None], r"forward\(x, d\), sigmas returned \[(\d+), 1\] .*expected \[\1\] of"),
        ("rgbs", lambda v: v[:, [0, 1, 2, 0]], r"forward\(x, d\), rgbs returned \[(\d+), 4\] .*expected \[\1, 3\] of"),
        ("rgbs", lambda v: v.half(), r"forward\(x, d\), rgbs returned .*float16"),
        ("pair", lambda v: v[1], r"forward\(x, d\) returned \[\d+, 3\] .*expected a pair, sigmas \[\d+\] and rgbs"),
        ("pair", lambda v: None, r"forward\(x, d\) returned None, expected a pair"),
        ("pair", lambda v: (*v, v[0]), r"forward\(x, d\) returned a tuple of 3, expected a pair"),
    ],
)
def test_what_a_field_returns_is_held_against_what_was_asked(
    scene: nerf.Scene, method: str, change: Change, words: str
) -> None:
    with pytest.raises(UserError, match=f"the field Glow: {words}"):
        nerf.Trainer(scene, CONFIG, Glow(**{method: change})).train_step()


def test_every_door_of_a_model_asks_alike(scene: nerf.Scene) -> None:
    model = nerf.Trainer(scene, CONFIG, Glow()).model
    model.field = Glow(density=lambda v: v[:, None], rgbs=lambda v: v[:, :2])
    points = torch.zeros(5, 3)
    with pytest.raises(UserError, match=r"density\(x\) returned \[5, 1\]"):
        model.density(points)
    with pytest.raises(UserError, match=r"rgbs returned \[5, 2\]"):
        model.color(points, points)
    with pytest.raises(UserError, match=r"density\(x\) returned"):
        model.render_image(scene.cameras, 0)


def test_a_function_may_be_rendered_and_is_checked_too() -> None:
    rays = torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]])
    march = nerf.OccupancyGrid(), nerf.Marching(Box(), near=0.0, far=10.0, step_size=0.5)
    with pytest.raises(UserError, match=r"rgbs returned \[3\] .*expected \[3, 3\]"):
        render_with(lambda x, d: (torch.ones(len(x)), torch.ones(len(x))), *rays, *march)
    assert float(render_with(lambda x, d: (torch.ones(len(x)), torch.ones(len(x), 3)), *rays, *march).opacities) > 0.7


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (Glow, r"field: is the class Glow, expected one of its objects, as in Glow\(\)"),
        (lambda x, d: None, "field: is a function, expected an nn.Module"),
        (nn.Linear(3, 1), r"the field Linear has no method density\(x\)"),
        (Glow(sigmas=Tensor.detach, rgbs=Tensor.detach), "returned densities and colours without a gradient"),
    ],
)
def test_what_is_no_field_is_said(scene: nerf.Scene, field: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        nerf.Trainer(scene, CONFIG, field).train_step()


def test_a_field_to_fill_must_be_the_one_that_was_trained(scene: nerf.Scene, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    nerf.Trainer(scene, CONFIG, Glow()).model.save(path)
    assert nerf.Model.load(path, field=Glow()).field.level.shape == (4,)
    made = "make it as it was when it was trained"
    with pytest.raises(
        UserError, match=rf"own.safetensors holds .* Glow .*: level is \[4\] there and \[1\] here; {made}"
    ):
        nerf.Model.load(path, field=Glow(1))  # which would be filled by broadcasting
    with pytest.raises(
        UserError, match=rf"Other .* more.weight is missing there and \[3, 2\] here, and 1 more.*{made}"
    ):
        nerf.Model.load(path, field=Other())
    with pytest.raises(UserError, match="field: is the class Glow"):
        nerf.Model.load(path, field=Glow)  # type: ignore[arg-type]


def test_our_field_of_another_size_is_said_alike(scene: nerf.Scene, tmp_path: Path) -> None:
    small = nerf.FieldOptions(log2_hashmap_size=10, n_levels=4, width=16)
    path = tmp_path / "ours.safetensors"
    nerf.Trainer(scene, nerf.TrainConfig(steps=1, occupancy_resolution=32, field=small), None).model.save(path)
    wide = nerf.RadianceField(nerf.FieldOptions(log2_hashmap_size=10, n_levels=4, width=32))
    with pytest.raises(UserError, match=r"density_weights.0 is \[16, 16\] there and \[32, 16\] here"):
        nerf.Model.load(path, field=wide)


def test_a_module_fitted_to_a_signal_is_filled_alike(tmp_path: Path) -> None:
    def module(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1))

    ramp = nerf.Signal("image", torch.linspace(0, 1, 16)[:, None].numpy(), (4, 4))
    nerf.fit(ramp, module(8), nerf.FitConfig(steps=1)).save(tmp_path / "fit.safetensors")
    with pytest.raises(
        UserError, match=r"fit.safetensors holds .*: network.0.weight is \[8, 2\] there and \[5, 2\] here"
    ):
        nerf.Fitted.load(tmp_path / "fit.safetensors", network=module(5))


# ---- a training that breaks down says what is left of it


def nan_from(step: int) -> Callable[[Any, Any], Tensor]:
    calls: list[int] = []

    def loss(rendered: Any, batch: Any) -> Tensor:
        calls.append(1)
        return rendered.foregrounds.mean() * (float("nan") if len(calls) > step else 1.0)

    return loss


def test_a_loss_that_is_nan_at_once_leaves_no_checkpoint(scene: nerf.Scene, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at step 0: the loss is nan; no checkpoint was written yet; try"):
        nerf.train(scene, CONFIG, tmp_path, progress=False, field=Glow(), loss=nan_from(0))
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_nan_later_names_the_checkpoint(scene: nerf.Scene, tmp_path: Path) -> None:
    config = CONFIG.with_settings(checkpoint_seconds=0.0)
    with pytest.raises(UserError, match="at step 1: the loss is nan; the checkpoint of step 1 is kept"):
        nerf.train(scene, config, tmp_path, progress=False, field=Glow(), loss=nan_from(1))
    assert nerf.Model.load(tmp_path, field=Glow()).meta["steps"] == 1
    with pytest.raises(UserError, match="at step 1: the loss is nan; the checkpoint of step 1 is kept"):
        nerf.train(scene, CONFIG, tmp_path, resume=True, progress=False, field=Glow(), loss=nan_from(0))
