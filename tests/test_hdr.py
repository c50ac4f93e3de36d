"""Linear light: EXR in, training beyond white, EXR out, and meshes and textures as the light is shown."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeModel, ring_cameras
from PIL import Image
from small_scenes import write_transforms
from tiny import FIELD, make_scene, sphere_scene, train_config

from nerf.datasets import Scene, load
from nerf.datasets.brightness import measure
from nerf.errors import UserError
from nerf.fields.radiance import FieldOptions, RadianceField
from nerf.geometry import light
from nerf.kernels import bindings
from nerf.rendering.metrics import hdr_psnr
from nerf.rendering.model import Model
from nerf.rendering.view import View
from nerf.training.config import default_field
from nerf.training.evaluation import evaluate
from nerf.training.loop import train
from nerf.views import paths, video

native = pytest.mark.skipif(bindings.load().handle is None, reason="the slow reference kernels")
SIZE = 48


@pytest.fixture
def exr():  # type: ignore[no-untyped-def]
    pytest.importorskip("OpenEXR")
    from nerf.io import exr as module

    return module


# ---- the curve


def test_the_srgb_curve_and_its_inverse() -> None:
    x = torch.cat([torch.linspace(-1, 1, 2001, dtype=torch.float64), torch.logspace(-6, 5, 500, dtype=torch.float64)])
    torch.testing.assert_close(light.decode(light.encode(x)), x, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(light.encode(x.numpy()), light.encode(x).numpy(), rtol=1e-12)
    assert light.encode(torch.tensor(1.0)).item() == pytest.approx(1.0, abs=1e-6)
    assert light.encode(torch.tensor(0.2140)).item() == pytest.approx(0.5, abs=1e-4)  # IEC 61966-2-1: middle grey
    assert bool((light.encode(x.sort().values).diff() >= 0).all())
    y = x[(x - 0.0031308).abs() > 1e-6].clone().requires_grad_()
    light.encode(y).sum().backward()
    assert y.grad is not None
    torch.testing.assert_close(y.grad, light.encode_slope(y.detach()))
    assert bool(((y.grad > 0) & (y.grad <= 12.93)).all())


# ---- files


def write_exrs(folder: Path, exr, pixels: np.ndarray, n: int = 4, names: str = "RGB") -> Path:  # type: ignore[no-untyped-def]
    """A transforms.json whose images are all the same EXR of pixels [h,w,c]."""
    write_transforms(folder, n=n)
    for i in range(n):
        (folder / "images" / f"{i:03d}.png").unlink()
        channels = {c: pixels[..., k] for k, c in enumerate(names)}
        exr.write_exr(folder / "images" / f"{i:03d}.exr", channels)
    file = folder / "transforms.json"
    file.write_text(file.read_text().replace(".png", ".exr"))
    return folder


def test_headers_say_what_decoding_finds(tmp_path: Path, exr) -> None:  # type: ignore[no-untyped-def]
    for dtype in (np.float16, np.float32):
        pixels = np.random.default_rng(0).uniform(0, 9, (5, 7, 3)).astype(dtype)
        exr.write_exr(tmp_path / "a.exr", {c: pixels[..., k] for k, c in enumerate("RGB")})
        width, height, channels = exr.read_header(tmp_path / "a.exr")
        assert (width, height) == (7, 5) and channels == {c: np.dtype(dtype) for c in "BGR"}
        np.testing.assert_array_equal(exr.read_colours(tmp_path / "a.exr"), pixels)
    (tmp_path / "b.exr").write_bytes((tmp_path / "a.exr").read_bytes()[:60])
    for name in ("b.exr", "none.exr"):
        with pytest.raises(UserError, match="cannot be read as an EXR image"):
            exr.read_header(tmp_path / name)


def test_a_crop_lies_where_its_display_window_says(tmp_path: Path, exr) -> None:  # type: ignore[no-untyped-def]
    """Renderers write only what holds data; the camera is that of the whole picture."""
    pixels = np.random.default_rng(0).uniform(1, 2, (4, 5)).astype(np.float32)
    exr.write_exr(tmp_path / "a.exr", {"Y": pixels})
    data = (tmp_path / "a.exr").read_bytes()

    def moved(display: tuple[int, int, int, int]) -> Path:
        at = data.index(b"displayWindow\0box2i\0") + len(b"displayWindow\0box2i\0") + 4
        (tmp_path / "b.exr").write_bytes(data[:at] + struct.pack("<4i", *display) + data[at + 16 :])
        return tmp_path / "b.exr"

    whole = exr.read_channels(moved((-2, -1, 6, 5)))["Y"]
    assert whole.shape == (7, 9) and whole.sum() == pytest.approx(pixels.sum())
    np.testing.assert_array_equal(whole[1:5, 2:7], pixels)
    np.testing.assert_array_equal(exr.read_channels(moved((1, 2, 3, 3)))["Y"], pixels[2:4, 1:4])  # overscan
    assert exr.read_header(moved((1, 2, 3, 3)))[:2] == (3, 2)


def test_colours_in_layers(tmp_path: Path, exr) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a.exr"
    assert exr.colour_channels(["A", "B", "G", "R", "Z"], path) == ["R", "G", "B", "A"]
    assert exr.colour_channels(["Y"], path) == ["Y"]
    layers = [f"View.{layer}.{c}" for layer in ("Combined", "Diffuse") for c in "RGB"] + ["View.Combined.A"]
    assert exr.colour_channels(layers, path) == [f"View.Combined.{c}" for c in "RGBA"]
    with pytest.raises(UserError, match="in 2 layers"):
        exr.colour_channels([f"{layer}.{c}" for layer in "ab" for c in "RGB"], path)
    with pytest.raises(UserError, match="holds the channels Z, expected R, G, B"):
        exr.colour_channels(["Z"], path)


def test_light_beyond_white_is_loaded_and_said(tmp_path: Path, exr) -> None:  # type: ignore[no-untyped-def]
    pixels = np.full((SIZE, SIZE, 3), 0.5, np.float16)
    pixels[3, 4] = 40.0
    scene = load(write_exrs(tmp_path / "a", exr, pixels), quiet=True)
    assert scene.linear and scene.brightest == 40 and scene.exposure == 1
    assert default_field(scene).color_scale == 40
    assert any("linear light, up to 40 where white is 1" in line for line in scene.notes)
    dim = load(write_exrs(tmp_path / "b", exr, pixels * np.float16(0.01)), quiet=True)
    assert dim.exposure == pytest.approx(0.8 / 0.005, rel=0.01) and dim.brightest == 1
    assert any("show it times" in line for line in dim.notes)


def test_pixels_that_are_no_numbers_are_repaired_and_counted(tmp_path: Path, exr) -> None:  # type: ignore[no-untyped-def]
    pixels = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    pixels[0, 0], pixels[0, 1, 1], pixels[0, 2] = np.nan, np.inf, 7.0
    scene = load(write_exrs(tmp_path, exr, pixels), quiet=True)
    assert scene.pixels.image(0)[0, 0].tolist() == [0, 0, 0] and scene.pixels.image(0)[0, 1].tolist() == [0.5, 7, 0.5]
    assert any("8 pixels of 4 images (the first is images/000.exr) are NaN" in line for line in scene.notes)


def test_pngs_among_exrs_become_linear(tmp_path: Path, exr) -> None:  # type: ignore[no-untyped-def]
    write_exrs(tmp_path, exr, np.full((SIZE, SIZE, 3), 0.25, np.float32))
    (tmp_path / "images" / "002.exr").unlink()
    Image.fromarray(np.full((SIZE, SIZE, 3), 188, np.uint8)).save(tmp_path / "images" / "002.png")
    file = tmp_path / "transforms.json"
    file.write_text(file.read_text().replace("002.exr", "002.png"))
    scene = load(tmp_path, quiet=True)
    assert scene.linear and any("1 images that are no EXR were brought from sRGB" in line for line in scene.notes)
    assert float(scene.pixels.image(2).mean()) == pytest.approx(0.5029, abs=1e-3)  # 188 is half the light
    assert torch.equal(scene.pixels.image(1), torch.full((SIZE, SIZE, 3), 0.25))


# ---- the model


def test_a_field_scales_its_colours_and_keeps_the_scale(tmp_path: Path) -> None:
    plain, bright = (RadianceField(replace(FIELD, color_scale=s)) for s in (1.0, 30.0))
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    d = torch.nn.functional.normalize(x, dim=1)
    (sigma, rgb), (sigma_2, rgb_2) = plain(x, d), bright(x, d)
    assert torch.equal(sigma, sigma_2)
    torch.testing.assert_close(rgb_2, rgb * 30)
    assert RadianceField(FieldOptions(**{k: v for k, v in bright.to_dict().items() if k != "contracted"})).options == (
        bright.options
    )


def hdr_sphere(peak: float = 20.0, n: int = 12, size: int = 48) -> Scene:
    """The sphere of the normals, its colours spread evenly over the magnitudes from 0.02 to the peak."""
    scene = sphere_scene(n, size)
    images = []
    for i in range(n):
        image = scene.pixels.raw(i).astype(np.float32) / 255
        image[..., :3] = 0.02 * (peak / 0.02) ** image[..., :3]
        images.append(image)
    scene = make_scene(images, scene.cameras, linear=True)
    brightest, exposure = measure(scene.pixels)
    return replace(scene, brightest=brightest, exposure=exposure)


@native
def test_light_beyond_white_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 20 times white, to within a part of the light itself in the dark and in the bright, in a held-out view."""
    scene = hdr_sphere()
    field = replace(FIELD, density_bias=3.0, color_scale=scene.brightest, width=32)
    train(scene, train_config(steps=300, batch_samples=1 << 12, field=field), tmp_path, progress=False)
    model = Model.load(tmp_path / "checkpoint.safetensors")
    assert model.linear and model.exposure == pytest.approx(scene.exposure) and model.field.options.color_scale == 20
    result = evaluate(model, scene, "test", show_progress=False)
    assert result.psnr_hdr is not None and result.psnr_hdr > 24 and result.psnr > 20  # white everywhere: under 8 dB
    view, truth = model.render_image(scene.cameras, 11), scene.pixels.image(11).numpy()
    solid = (view.opacity > 0.95) & (truth[..., 3] > 0.95)
    ratio = np.log(np.maximum(view.color, 1e-4)[solid] / truth[..., :3][solid])
    for part in (truth[..., :3][solid] < 0.2, truth[..., :3][solid] > 5):
        assert np.median(np.abs(ratio[part])) < 0.5
    assert view.color[solid].max() > 8


def test_hdr_psnr_sees_what_is_beyond_white() -> None:
    truth = torch.full((4, 4, 3), 10.0)
    assert hdr_psnr(truth, truth, 20.0) == float("inf")
    assert hdr_psnr(truth * 2, truth, 20.0) < hdr_psnr(truth * 1.1, truth, 20.0) < 50
    dark = torch.full((4, 4, 3), 0.01)
    assert hdr_psnr(dark * 2, dark, 20.0) < 26  # and the dark no less


# ---- out


def test_exr_frames_hold_the_light_itself_and_depths(tmp_path: Path, exr) -> None:  # type: ignore[no-untyped-def]
    class Bright(FakeModel):
        def render_image(self, cameras, i, normals=True, samples=None):  # type: ignore[no-untyped-def]
            view = super().render_image(cameras, i, normals)
            return replace(view, color=view.color * 9)

    cameras = ring_cameras(2, 24)
    path = paths.CameraPath(cameras, 30.0, "a ring")
    model = Bright(linear=True)
    written = video.render_video(model, path, tmp_path / "out", video.MODES, show_progress=False, exr=True)
    assert [p.name for p in written] == list(video.MODES)
    view = model.render_image(cameras, 1)
    np.testing.assert_array_equal(exr.read_colours(tmp_path / "out" / "color" / "00001.exr"), view.color)
    z = exr.read_channels(tmp_path / "out" / "depth" / "00001.exr")["Z"]
    rows, cols = np.nonzero(z)
    o, d = cameras.rays(torch.full((len(rows),), 1), torch.from_numpy(rows), torch.from_numpy(cols))
    along = (d.double() @ cameras.forward[1]).numpy()
    points = o.double().numpy() + d.double().numpy() * (z[rows, cols] / along)[:, None]
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.7 * 1.5, atol=1e-4)  # the sphere, world units
    assert (z[view.opacity < 0.5] == 0).all()
    normals = exr.read_channels(tmp_path / "out" / "normal" / "00001.exr")
    np.testing.assert_array_equal(normals["Y"], view.normal[..., 1])

    srgb = video.render_video(FakeModel(), path, tmp_path / "srgb", show_progress=False, exr=True)[0]
    decoded = exr.read_colours(srgb / "00000.exr")
    np.testing.assert_allclose(light.encode(decoded), FakeModel().render_image(cameras, 0).color, atol=1e-6)
    with pytest.raises(UserError, match="holds pictures already"):
        video.render_video(model, path, tmp_path / "srgb", show_progress=False, exr=True)
    with pytest.raises(UserError, match="--exr writes a folder"):
        video.render_video(model, path, tmp_path / "a.mp4", show_progress=False, exr=True)


def test_pictures_and_textures_show_light_with_the_exposure() -> None:
    """One light, one colour: in frames, in the colours of vertices, and in the photos that textures are made of."""
    from nerf.meshing.texture import load_photo_colors

    model, dim = FakeModel(linear=True, exposure=40.0), 0.0125
    view = View(np.full((2, 2, 3), dim, np.float32), np.ones((2, 2)), np.ones((2, 2)))
    expected = light.encode(np.array(0.5))
    frame = video.picture_of(view, "color", (0, 1), model)  # type: ignore[arg-type]
    assert abs(frame[0, 0, 0] / 255 - expected) < 0.003
    scene = make_scene([np.full((4, 4, 3), dim, np.float32)] * 3, ring_cameras(3, 4), linear=True)
    np.testing.assert_allclose(load_photo_colors(model, scene, 0), expected, atol=1e-5)  # type: ignore[arg-type]


def test_a_texture_of_bright_photos_shows_their_light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of a white ball 4 times as bright as the exposure's white / 40: their light, not white and not black."""
    import trimesh
    from test_texture import GreyField

    from nerf.meshing.finish import texture_mesh

    cameras, value = ring_cameras(8, 64), 8.0
    exposure = 0.25 / value
    scene = make_scene([np.full((64, 64, 3), value, np.float32)] * 8, cameras, linear=True, n_test=0)
    model = GreyField()
    model.linear, model.exposure = True, exposure
    mesh = texture_mesh(model, scene, trimesh.creation.icosphere(subdivisions=2, radius=0.5), 256, 200)  # type: ignore[arg-type]
    texture = np.asarray(mesh.visual.material.baseColorTexture).reshape(-1, 3)
    seen = 255 * light.encode(np.array(0.25))
    assert np.mean(np.abs(texture - seen).max(axis=1) < 2) > 0.5
    hidden = 255 * light.encode(np.array(0.3125 * exposure))  # what no photo shows, as the field has it
    assert (np.minimum(np.abs(texture - seen), np.abs(texture - hidden)) < 60).all()
