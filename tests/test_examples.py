"""The examples run, on the public API alone, and do what they say."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import nerf
from nerf.errors import UserError
from nerf.kernels import bindings
from nerf.rendering.model import Model

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = str(ROOT / "data" / "sample")
EXAMPLES = ROOT / "examples"
SMALL = nerf.TrainConfig(steps=6, batch_samples=512, occupancy_resolution=32)
native = pytest.mark.skipif(bindings.load().handle is None, reason="the slow reference kernels")


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_use_the_public_names_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.module.split(".")[0] != "nerf", f"{path.name} imports from {node.module}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nerf":
            assert node.attr in nerf.__all__, f"{path.name}: nerf.{node.attr} is not public"


@native
def test_examples_find_the_bundled_scene_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert example("custom_loss").main(["--steps", "2", "--downscale", "16"]) > 0
    for name in ("train_loop", "custom_field"):
        assert Path(example(name).SAMPLE) == Path(SAMPLE)


@native
def test_the_loop_written_out_gives_the_bits_of_train(tmp_path: Path) -> None:
    model = example("train_loop").main([SAMPLE, "--steps", "20", "--downscale", "16"])
    scene = nerf.load(SAMPLE, downscale=16, quiet=True)
    # with the loss named, steps are those of torch: the fused ones draw other pixels
    same = nerf.train(scene, nerf.TrainConfig(steps=20), tmp_path, progress=False, loss=nerf.SceneLoss())
    for (name, a), b in zip(model.field.named_parameters(), same.field.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(model.occupancy.values, same.occupancy.values)
    pictures = [m.render_image(scene.cameras, 0).color for m in (model, same)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


@native
def test_a_loss_of_ones_own_is_what_is_learnt() -> None:
    psnr = example("custom_loss").main([SAMPLE, "--steps", "60", "--downscale", "16"])
    assert psnr > 17  # a white picture has 10 dB


@native
@pytest.mark.parametrize("returned", [None, 1.0, torch.ones(3, requires_grad=True), torch.tensor(1.0)])
def test_a_loss_that_returns_no_number_to_learn_by_is_said(returned: object) -> None:
    scene = nerf.load(SAMPLE, downscale=16, quiet=True)
    with pytest.raises(UserError, match="no single number with a gradient"):
        nerf.Trainer(scene, SMALL, loss=lambda rendered, batch: returned).train_step()  # type: ignore[arg-type, return-value]


@native
def test_a_field_of_ones_own_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    module = example("custom_field")
    psnr = module.main([SAMPLE, "--steps", "30", "--downscale", "16", "--batch", "2048"])
    assert psnr["planes and lines"] > psnr["hash grid"] - 1.5 and min(psnr.values()) > 13  # a white picture has 10 dB
    field = module.VectorMatrixField(4, (16,))
    before = {name: t.clone() for name, t in field.state_dict().items()}
    scene = nerf.load(SAMPLE, downscale=16, quiet=True)
    model = nerf.train(scene, SMALL, tmp_path, progress=False, field=field)
    assert all(not torch.equal(t, before[name]) for name, t in model.field.state_dict().items())
    with pytest.raises(UserError, match=r"holds a field of the class VectorMatrixField: give one to fill.*field="):
        Model.load(tmp_path)
    again = Model.load(tmp_path, field=module.VectorMatrixField(4, (16,)))
    assert again.render_image(scene.cameras, 0).color.tobytes() == (
        model.render_image(scene.cameras, 0).color.tobytes()
    )


@native
def test_a_field_of_ones_own_goes_on_to_the_bit(tmp_path: Path) -> None:
    field = example("custom_field").VectorMatrixField
    scene, config = nerf.load(SAMPLE, downscale=16, quiet=True), SMALL
    whole = nerf.train(scene, config, tmp_path / "whole", progress=False, field=field(4, (16,)))
    half = nerf.Trainer(scene, config, field(4, (16,)))
    for _ in range(3):
        half.train_step()
    from nerf.io import checkpoint

    checkpoint.save(tmp_path / "parts" / "checkpoint.safetensors", *half.state())
    parts = nerf.train(scene, config, tmp_path / "parts", resume=True, progress=False, field=field(4, (16,)))
    for (name, a), b in zip(whole.field.state_dict().items(), parts.field.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
