"""Small right inputs: how posed photos, pictures, sounds, films, arrays, meshes, checkpoints and packs are written, and
how the verbs read them. The scenes are those of the tests."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import small_scenes
import test_other_tools as other_tools
import torch
import trimesh
from PIL import Image

import nerf
from nerf.capture.folder import write_photos
from nerf.capture.photos import read_photos
from nerf.capture.video import check_video, take_frames
from nerf.cli import sample as cli_sample
from nerf.datasets import load
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import FieldOptions, RadianceField
from nerf.geometry.space import Box, Similarity, Unbounded
from nerf.geometry.triangles import read_mesh, read_textured_mesh
from nerf.io import checkpoint, exr
from nerf.io.images import read_header, read_pixels, write_png_16
from nerf.io.outputs import OutputFolder
from nerf.io.video import ffmpeg, mp4
from nerf.rendering.marching import Marching
from nerf.signals import ct, latents, shape
from nerf.signals.fitting import Fitter, field_for
from nerf.signals.image import read_image
from nerf.signals.packing import load_signal, pack
from nerf.signals.solid import read_solid

PHOTO = (160, 210)  # (height, width): the least that `nerf poses` takes for a photo
N = 4  # photos of a scene


def scene(path: Path) -> None:
    load(path, quiet=True)


def noise(*size: int, dtype: Any = np.uint8) -> np.ndarray:
    random = np.random.default_rng(0)
    smooth = np.linspace(0, 1, size[1])[None, :, None] + random.random((size[0], size[1], 1)) * 0.1
    values = np.broadcast_to(smooth, size) / 1.1
    return (values * np.iinfo(dtype).max).astype(dtype) if np.dtype(dtype).kind == "u" else values.astype(dtype)


# ---- posed photos


def write_colmap(folder: Path) -> None:
    small_scenes.write_colmap(folder, n=N, camera="OPENCV 48 48 60 60 24 24 0.01 0 0 0")


def write_depths(folder: Path) -> None:
    """transforms.json with all that it may name."""
    lists = {"train_filenames": [f"images/{i:03d}.png" for i in range(N)], "applied_scale": 1.0, "k1": 0.01}
    small_scenes.write_transforms(folder, n=N, channels=4, ply_file_path="points.ply", aabb_scale=4, **lists)

    def name_depths(data: dict[str, Any]) -> None:
        for i, frame in enumerate(data["frames"]):
            frame["depth_file_path"], frame["mask_path"] = f"depths/{i:03d}.npy", f"masks/{i:03d}.png"

    small_scenes.edit(folder / "transforms.json", name_depths)
    (folder / "depths").mkdir()
    for i in range(N):
        np.save(folder / "depths" / f"{i:03d}.npy", np.full((48, 48), 3.0, np.float32))
        small_scenes.save(folder / "masks" / f"{i:03d}.png", noise(48, 48, 3)[..., 0])
    trimesh.PointCloud(np.random.default_rng(0).normal(size=(50, 3))).export(folder / "points.ply")


def write_record3d(folder: Path) -> None:
    other_tools.write_record3d(folder, per_frame=True)
    (folder / "depth").mkdir()
    for i in range(other_tools.N):
        exr.write_exr(folder / "depth" / f"{i}.exr", {"R": np.full((12, 16), 1.5, np.float32)})


def write_masked(folder: Path) -> None:
    small_scenes.write_transforms(folder, n=N)
    for i in range(N):
        mask = folder / "masks" / f"{i:03d}.png"
        small_scenes.save(mask, np.where(noise(48, 48, 1)[..., 0] > 60, 255, 0).astype(np.uint8))


# ---- pictures, sounds, films


def write_pictures(folder: Path) -> None:
    colour = noise(24, 32, 3)
    for suffix in ("png", "jpg", "webp", "bmp"):
        Image.fromarray(colour).save(folder / f"a.{suffix}", exif=_exif())
    Image.fromarray(noise(24, 32, 4)).save(folder / "alpha.png")
    Image.fromarray(colour).convert("P").save(folder / "palette.png")
    Image.fromarray(noise(24, 32, 1, dtype=np.uint16)[..., 0]).save(folder / "deep.tif")
    Image.fromarray(noise(24, 32, 1, dtype=np.float32)[..., 0]).save(folder / "float.tif")
    Image.fromarray(colour).save(folder / "packed.tif", compression="tiff_lzw")
    write_png_16(folder / "deep.png", noise(24, 32, 3, dtype=np.uint16))
    exr.write_exr(
        folder / "a.exr", dict(zip("RGBA", noise(24, 32, 4, dtype=np.float16).transpose(2, 0, 1), strict=True))
    )


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = 6, "Maker", "Model"
    exif.get_ifd(0x8769).update({0x920A: 4.2, 0xA405: 28})
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 1.0, 2.0), 3: "E", 4: (8.0, 1.0, 2.0)})
    return exif


def read_each(read: Callable[[Path], Any]) -> Callable[[Path], None]:
    """The one file that was damaged; the others are gone by then."""

    def each(folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            read(path)

    return each


def read_picture(path: Path) -> None:
    read_image(path)
    if path.suffix.lower() in (".jpg", ".png"):
        read_pixels(read_header(path), 2)


def write_sounds(folder: Path) -> None:
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.arange(800, dtype="<i2").tobytes())
    (folder / "b.wav").write_bytes(ffmpeg("-i", str(folder / "a.wav"), "-c:a", "pcm_f32le", "-f", "wav", "-"))
    (folder / "a.flac").write_bytes(ffmpeg("-i", str(folder / "a.wav"), "-f", "flac", "-"))


def write_films(folder: Path) -> None:
    with mp4(folder / "a.mp4", 64, 48, 10.0) as write:
        for k in range(6):
            write(np.roll(noise(48, 64, 3), 9 * k, axis=1))
    for name, form in (("a.mkv", "matroska"), ("a.mts", "mpegts")):
        (folder / name).write_bytes(ffmpeg("-i", str(folder / "a.mp4"), "-c", "copy", "-f", form, "-"))


def read_film(path: Path) -> None:
    check_video(path)
    with OutputFolder.open(path.parent / "out", "dataset") as out:
        (out.path / "images").mkdir()
        take_frames(path, out)


def write_photos_of(folder: Path) -> None:
    for i in range(3):
        picture = np.roll(noise(*PHOTO, 3), 20 * i, axis=1)
        Image.fromarray(picture).save(folder / f"{i}.{('jpg', 'png', 'tif')[i]}", exif=_exif())


def read_photos_of(folder: Path) -> None:
    photos = read_photos(folder, out=folder / "out")
    with OutputFolder.open(folder / "out", "dataset") as out:
        write_photos(photos, out, None)


# ---- arrays


def write_arrays(folder: Path) -> None:
    np.save(folder / "sinogram.npy", noise(16, 12, 1, dtype=np.float32)[..., 0])
    np.save(folder / "latents.npy", np.zeros((3, 8), np.float32))
    (folder / "angles.txt").write_text("\n".join(str(15.0 * k) for k in range(12)) + "\n")
    np.save(folder / "angles.npy", np.arange(12.0))


def read_arrays(folder: Path) -> None:
    sinogram = folder / "sinogram.npy"
    if sinogram.is_file():
        ct.read_sinogram(sinogram)
    for path in folder.glob("angles.*"):
        ct.read_angles(path, 12)
    if (folder / "latents.npy").is_file():
        latents.check_latents(folder / "latents.npy", 8)


# ---- meshes


def write_meshes(folder: Path) -> None:
    ball = trimesh.creation.icosphere(subdivisions=1)
    textured = trimesh.creation.box()
    uv = np.random.default_rng(0).random((len(textured.vertices), 2))
    material = trimesh.visual.material.SimpleMaterial(image=Image.fromarray(noise(8, 8, 3)))
    textured.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    for suffix in ("ply", "stl", "off", "obj", "glb"):
        ball.export(folder / f"a.{suffix}")
    ball.export(folder / "text.ply", encoding="ascii")
    nerf.save_mesh(ball, folder / "ours.glb")
    nerf.save_mesh(textured, folder / "textured.glb")
    (folder / "points.ply").write_bytes(_cloud(trimesh.creation.icosphere(subdivisions=3)))


def _cloud(ball: trimesh.Trimesh) -> bytes:
    from nerf.io.ply import Columns, ply

    columns = [Columns("float", "x y z", ball.vertices), Columns("float", "nx ny nz", ball.vertex_normals)]
    return ply(columns)


def read_meshes(path: Path) -> None:
    if path.name != "points.ply":
        read_mesh(path)
        read_textured_mesh(path)
    shape.Shape(read_solid(path), pool=256)


# ---- checkpoints


def small_model(contracted: bool) -> nerf.Model:
    options = FieldOptions(n_levels=4, log2_hashmap_size=8, base_resolution=4, finest_resolution=16, width=16)
    space = Unbounded(2) if contracted else Box()
    grid = OccupancyGrid(space.n_levels, 32)
    grid.restrict(lambda centres, sizes: centres.norm(dim=1) < 0.8)
    marching = Marching(space, 0.0, 100.0, 0.05, 0.01 if contracted else 0.0)
    cameras = nerf.Cameras.perspective(
        torch.from_numpy(np.stack(small_scenes.ring(3))[:, :3]), torch.full((3,), 30.0, dtype=torch.float64), 12, 12
    )
    around = Similarity.around([0.1, 0.0, 0.0], 1.5)
    model = nerf.Model(RadianceField(options, contracted, seed=1), grid, marching, around, cameras, torch.ones(3))
    model.meta = {"steps": 7, "seconds": 1.0, "data": "somewhere", "downscale": 1}
    return model


def write_models(folder: Path) -> None:
    small_model(False).save(folder / "box.safetensors")
    small_model(True).save(folder / "open.safetensors")


def read_model(path: Path) -> None:
    model = nerf.Model.load(path)
    if len(model.cameras) and max(int(model.cameras.heights[0]), int(model.cameras.widths[0])) <= 64:
        model.render_image(model.cameras, 0)
    for kind in ("orbit", "interpolate"):
        nerf.camera_path(kind, model.cameras, model.scene_from_world, model.space, n_frames=3, longest=16)


FIT = nerf.FitConfig(steps=51, batch=64)
TRAINING = nerf.TrainConfig(
    steps=51,
    batch_samples=256,
    occupancy_resolution=32,
    refine_poses=True,
    exposure=True,
    field=FieldOptions(n_levels=4, log2_hashmap_size=8, base_resolution=4, finest_resolution=16, width=16),
).with_settings(pose_after=0, exposure_after=0.0, importance_after=1, importance_every=50)


def write_training(folder: Path) -> None:
    """A training and a fit that were stopped some steps before their end."""
    small_scenes.write_transforms(folder / "data", n=N)
    trainer = nerf.Trainer(load(folder / "data", downscale=4, quiet=True), TRAINING)
    fitter = Fitter(_ramp(), field_for(_ramp(), "hash"), FIT)
    for name, running in (("run", trainer), ("fit", fitter)):
        running.train_step()
        running.step = 49  # the next is one of those that the curve and the report know
        checkpoint.save(folder / name / "checkpoint.safetensors", *running.state())


def _ramp() -> nerf.Signal:
    return nerf.Signal("image", np.linspace(0, 255, 64).astype(np.uint8)[:, None], (8, 8), one=255.0)


def go_on_training(folder: Path) -> None:
    posed = load(folder / "data", downscale=4, quiet=True)
    nerf.train(posed, TRAINING, folder / "run", resume=True, progress=False)


def go_on_fitting(folder: Path) -> None:
    nerf.fit(_ramp(), "hash", FIT, folder / "fit", resume=True)


def fitted_signals() -> dict[str, nerf.Fitted]:
    def about(kind: str, shape: tuple[int, ...], channels: int) -> dict[str, Any]:
        signal = nerf.Signal(kind, np.zeros((int(np.prod(shape)), channels), np.uint8), shape, one=255.0)
        return signal.describe() | {"name": "a", "rate": 100, "bits": 8, "fps": 5.0, "unit": 1.0, "centre": 3.5}

    small = nerf.FieldChoice("mlp", width=16, depth=2)
    hashed = nerf.FieldChoice("hash", width=16, n_levels=2, log2_hashmap_size=8, finest_resolution=8)
    placed = {"name": "a", "low": [0.0, 0.0, 0.0], "sides": [1.0, 1.0, 1.0], "signed": True}
    return {
        "image": nerf.Fitted(nerf.SignalField(hashed, 2, 3), "image", about("image", (8, 8), 3)),
        "audio": nerf.Fitted(nerf.SignalField(small, 1, 1), "audio", about("audio", (64,), 1)),
        "shape": nerf.Fitted(nerf.SignalField(small, 3, 1), "shape", placed),
        "ct": nerf.Fitted(nerf.SignalField(small, 2, 1), "ct", about("ct", (8, 8), 1)),
    }


def write_signals(folder: Path) -> None:
    for name, fitted in fitted_signals().items():
        fitted.save(folder / f"{name}.safetensors")


def write_packs(folder: Path) -> None:
    for name, fitted in fitted_signals().items():
        (folder / f"{name}.nerf").write_bytes(pack(fitted, 8))


SAMPLED = {
    "image": "out.png",
    "audio": "out.wav",
    "shape": "out.ply",
    "ct": "out.npy",
    "video": "out.mp4",
    "set": "out.png",
}


def read_signal(path: Path) -> None:
    """Loaded, and given out as `nerf sample` does it where that is small."""
    fitted = load_signal(path)
    if np.prod([float(s) for s in fitted.signal.get("shape", ()) if isinstance(s, (int, float))]) > 4096:
        return
    out = path.parent / SAMPLED.get(fitted.kind, "out.bin")
    cli_sample.main(cli_sample.SampleArgs(path, out, grid=8 if fitted.kind == "shape" else None))
