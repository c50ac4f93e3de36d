"""Kinds of input: how a small right one is written, and how the verbs read it.

The scenes are those of the tests. A kind's `write` fills an empty folder; `read` does with the folder what the verb
does before anything is trained.
"""

from __future__ import annotations

import json
import os
import sys
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import trimesh
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import small_scenes
import test_other_tools as other_tools

import nerf
from nerf.capture.folder import open_folder, state_of, write_photos, write_state
from nerf.capture.photos import read_photos
from nerf.capture.video import check_video, take_frames
from nerf.cli import sample as cli_sample
from nerf.datasets import load
from nerf.errors import UserError
from nerf.fields.occupancy import OccupancyGrid
from nerf.fields.radiance import FieldOptions, RadianceField
from nerf.geometry.space import Box, Similarity, Unbounded
from nerf.geometry.triangles import read_mesh, read_textured_mesh
from nerf.io import exr
from nerf.io.files import write_file
from nerf.io.images import read_header, read_pixels, write_png_16
from nerf.io.outputs import OutputFolder, check_output, read_record
from nerf.io.video import ffmpeg, mp4
from nerf.meshing import files as mesh_files
from nerf.rendering.marching import Marching
from nerf.signals import ct, latents, shape
from nerf.signals.audio import read_audio
from nerf.signals.image import read_image
from nerf.signals.packing import load_signal, pack
from nerf.signals.solid import read_solid
from nerf.signals.video import read_video
from nerf.training.runs import Run, open_run, read_run, scene_of_run, write_run
from nerf.views.paths import CameraPath, load_path, save_path
from nerf.views.report import write_report

PHOTO = (160, 210)  # (height, width): the least that `nerf poses` takes for a photo
N = 4  # photos of a scene


@dataclass(frozen=True)
class Kind:
    """One kind of input. files: globs of what is damaged, each chosen as often as the others (None: see `damage`)."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ()
    damage: Callable[[Path, Random], None] | None = None


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


# ---- JSON of ours, and folders


def write_paths(folder: Path) -> None:
    cameras = small_model(False).cameras
    save_path(folder / "ours.json", CameraPath(cameras, 30.0, "path"))
    frames = [{"camera_to_world": np.eye(4).ravel().tolist(), "fov": 50.0, "aspect": 1.0}] * 3
    content = {"render_width": 64, "render_height": 48, "fps": 24, "camera_type": "perspective", "camera_path": frames}
    (folder / "nerfstudio.json").write_text(json.dumps(content))


def write_run_folder(folder: Path) -> None:
    """A run that nothing but its records is left of."""
    small_scenes.write_blender(folder / "data", n=6)
    run = folder / "run"
    (run / "eval").mkdir(parents=True)
    write_run(run, Run("data", masks=None, images=4))
    curve = [{"step": 50 * k, "seconds": 1.0 * k, "loss": 0.1, "psnr": 20.0} for k in range(1, 4)]
    (run / "training.json").write_text(json.dumps({"steps": 150, "seconds": 3.0, "curve": curve, "backend": "cpu"}))
    views = [{"name": f"{i}.png", "index": i, "psnr": 20.0 + i, "ssim": 0.8, "seconds": 0.1} for i in range(3)]
    protocol = {"held_out": True, "resolution": ["48x48"], "background": "white"}
    evaluation = {"psnr": 21.0, "ssim": 0.8, "n_views": 3, "render_seconds_per_view": 0.1, "views": views}
    (run / "eval" / "eval.json").write_text(json.dumps(evaluation | {"protocol": protocol}))
    nerf.save_mesh(trimesh.creation.box(), run / "mesh.glb")


def read_run_folder(folder: Path) -> None:
    os.chdir(folder)
    run = folder / "run"
    read_run(run)
    with open_run(run, None, resume=True, overwrite=False):
        write_report(run)
    scene_of_run(run, {})


def write_record(folder: Path) -> None:
    with OutputFolder.open(folder / "out", "run") as out:
        out.claim("run.json", "eval/", "mesh.glb")
        (out.path / "run.json").write_text("{}")
        with OutputFolder.open(out.path / "eval", "evaluation") as evaluation:
            evaluation.claim("eval.json")
            (out.path / "eval" / "eval.json").write_text("{}")


def read_record_folder(folder: Path) -> None:
    out = folder / "out"
    read_record(out)
    check_output(out / "new.ply", True)
    with OutputFolder.open(out, "run", overwrite=True, names=("run.json",)) as opened:
        opened.clear()


def write_capture(folder: Path) -> None:
    os.makedirs(folder / "photos")
    write_photos_of(folder / "photos")
    os.chdir(folder)
    photos = read_photos(Path("photos"))
    out, _ = open_folder(Path("out"), Path("photos"), False)
    with out:
        write_photos(photos, out, None)
        state = state_of(photos, Path("photos"), None, "auto", 1600)
        write_state(Path("out"), state | {"source": "photos"})


def read_capture(folder: Path) -> None:
    os.chdir(folder)
    photos = read_photos(folder / "photos", out=folder / "out")
    out, before = open_folder(folder / "out", folder / "photos", overwrite=True)
    with out:
        write_photos(photos, out, before)


# ---- names


def write_names(folder: Path) -> None:
    small_scenes.write_transforms(folder / "data", n=N)
    write_masked(folder / "masked")
    (folder / "photos").mkdir()
    write_photos_of(folder / "photos")
    write_meshes(folder)


NAMES = [
    *(
        b"\xff\xfe",
        b"caf\xe9",
        b"a b",
        b"a\nb",
        b"\x1b[31m",
        b"a#b?c%41",
        b"a:b",
        b"-o",
        b"'\"",
        b"\xf0\x9f\x93\xb7",
        b"e\xcc\x81",
    ),
    *(b"A" * 200, b"A" * 251, b".hidden", b"a.", b"con", b"%s", b"{0}", b"*", b"[a]", b"~"),
]


def damage_names(folder: Path, random: Random) -> None:
    """One of the names becomes another, which no file that names it knows of; and results are to go to a strange one."""
    place = random.choice([p for p in sorted(folder.rglob("*")) if "nerf" not in p.name])
    new = os.fsdecode(random.choice(NAMES)) + random.choice(("", place.suffix))
    if len(os.fsencode(new)) <= 255 and not (place.parent / new).exists():
        place.rename(place.parent / new)
    out = random.choice((*NAMES, b"A" * 256, b"A" * 5000, b"b/" * 2100))
    (folder / "out.name").write_bytes(out)


def read_names(folder: Path) -> None:
    named = folder / "out.name"
    out = folder / (os.fsdecode(named.read_bytes()) if named.is_file() else "out")
    photos = next((p for p in sorted(folder.iterdir()) if p.is_dir() and p.name not in ("data", "masked")), None)
    tasks: list[Callable[[], Any]] = [
        lambda: scene(folder / "data"),
        lambda: load(folder / "masked", masks=folder / "masked" / "masks", quiet=True),
        lambda: photos is not None and read_photos(photos, out=out),
        lambda: mesh_files.check_path(out.with_name(out.name + ".ply")),
        lambda: mesh_files.save_mesh(trimesh.creation.box(), out.with_name(out.name + ".obj")),
        lambda: check_output(out, False, folder / "a.ply"),
        lambda: write_file(out, "text"),
        lambda: read_run(out),
        lambda: open_run(out / "run", None, resume=False, overwrite=False).close(),
        lambda: small_model(False).save(out / "run" / "checkpoint.safetensors"),
        lambda: write_report(out / "run"),
        lambda: nerf.Model.load(out),
        lambda: load_signal(out),
        lambda: load(out, quiet=True),
        lambda: load_path(out),
        *(lambda path=path: read_mesh(path) for path in sorted(folder.glob("*.???")) if path.name != "points.ply"),
    ]
    said = None
    for task in tasks:
        try:
            task()
        except UserError as error:
            said = error
    if said is not None:
        raise said


KINDS: dict[str, Kind] = {
    "blender": Kind(lambda f: small_scenes.write_blender(f, n=6), scene, ("*.json", "*.json", "train/*.png")),
    "transforms": Kind(
        write_depths, scene, ("transforms.json", "transforms.json", "depths/*.npy", "masks/*.png", "points.ply")
    ),
    "colmap": Kind(write_colmap, scene, ("sparse/0/*.txt",)),
    "colmap-binary": Kind(lambda f: (write_colmap(f), small_scenes.to_binary(f)), scene, ("sparse/0/*.bin",)),
    "llff": Kind(small_scenes.write_llff, scene, ("poses_bounds.npy",)),
    "neus": Kind(lambda f: small_scenes.write_neus(f, n=N), scene, ("cameras_sphere.npz", "mask/*.png")),
    "metashape": Kind(other_tools.write_metashape, scene, ("cameras.xml",)),
    "realitycapture": Kind(other_tools.write_csv, scene, ("cameras.csv",)),
    "opensfm": Kind(other_tools.write_opensfm, scene, ("reconstruction.json",)),
    "polycam": Kind(other_tools.write_polycam, scene, ("keyframes/corrected_cameras/*.json", "keyframes/depth/*")),
    "record3d": Kind(write_record3d, scene, ("metadata", "depth/*.exr")),
    "masks": Kind(write_masked, lambda f: load(f, masks=f / "masks", quiet=True), ("masks/*.png",)),
    "images": Kind(write_pictures, read_each(read_picture), ("*",)),
    "photos": Kind(write_photos_of, read_photos_of, ("*",)),
    "sounds": Kind(write_sounds, read_each(read_audio), ("*.wav", "*.wav", "*.wav", "*.flac")),
    "videos": Kind(write_films, read_each(read_video), ("*",)),
    "films": Kind(write_films, read_each(read_film), ("*",)),
    "arrays": Kind(write_arrays, read_arrays, ("*",)),
    "meshes": Kind(write_meshes, read_each(read_meshes), ("*",)),
    "models": Kind(write_models, read_each(read_model), ("*",)),
    "signals": Kind(write_signals, read_each(read_signal), ("*",)),
    "packs": Kind(write_packs, read_each(read_signal), ("*",)),
    "paths": Kind(write_paths, read_each(load_path), ("*",)),
    "runs": Kind(write_run_folder, read_run_folder, ("run/run.json", "run/*.json", "run/eval/*.json", "run/mesh.glb")),
    "records": Kind(write_record, read_record_folder, ("out/nerf.json", "out/eval/nerf.json")),
    "captures": Kind(write_capture, read_capture, ("out/capture/state.json", "out/nerf.json")),
    "names": Kind(write_names, read_names, damage=damage_names),
}
ALONE = (
    "images",
    "sounds",
    "videos",
    "films",
    "arrays",
    "meshes",
    "models",
    "signals",
    "packs",
    "paths",
)  # one file each
