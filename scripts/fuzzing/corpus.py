"""Kinds of input: how a small right one is written, and how the verbs read it.

A kind's `write` fills an empty folder; `read` does with the folder what the verb does before anything is trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import small_scenes
import test_other_tools as other_tools
import trimesh

import nerf
from fuzzing.inputs import (
    N,
    go_on_fitting,
    go_on_training,
    read_arrays,
    read_each,
    read_film,
    read_meshes,
    read_model,
    read_photos_of,
    read_picture,
    read_signal,
    scene,
    small_model,
    write_arrays,
    write_colmap,
    write_depths,
    write_films,
    write_masked,
    write_meshes,
    write_models,
    write_packs,
    write_photos_of,
    write_pictures,
    write_record3d,
    write_signals,
    write_sounds,
    write_training,
)
from nerf.capture.folder import open_folder, state_of, write_photos, write_state
from nerf.capture.photos import read_photos
from nerf.datasets import load
from nerf.errors import UserError
from nerf.geometry.triangles import read_mesh
from nerf.io.files import write_file
from nerf.io.outputs import OutputFolder, check_output, read_record
from nerf.meshing import files as mesh_files
from nerf.signals.audio import read_audio
from nerf.signals.packing import load_signal
from nerf.signals.video import read_video
from nerf.training.runs import Run, open_run, read_run, scene_of_run, write_run
from nerf.views.paths import CameraPath, load_path, save_path
from nerf.views.report import write_report


@dataclass(frozen=True)
class Kind:
    """One kind of input. files: globs of what is damaged, each chosen as often as the others (None: see `damage`)."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: tuple[str, ...] = ()
    damage: Callable[[Path, Random], None] | None = None


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
    out, before = open_folder(folder / "out", folder / "photos", True, photos)
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
    """One of the names becomes another, and results are to go to a strange one."""
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
    "trainings": Kind(write_training, go_on_training, ("run/checkpoint.safetensors",)),
    "fits": Kind(write_training, go_on_fitting, ("fit/checkpoint.safetensors",)),
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
