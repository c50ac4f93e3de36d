"""The cameras of a scene or of a trained model to files of other programs; `nerf export-cameras`."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nerf.datasets import Scene, load_posed
from nerf.datasets.export import PosedFiles, write_colmap, write_transforms
from nerf.datasets.posed import Posed
from nerf.errors import UserError, note
from nerf.geometry.cameras import Cameras
from nerf.io import checkpoint
from nerf.io.folders import make_folder
from nerf.io.outputs import OutputFolder, check_output, owner_of
from nerf.training.alignment import similarity_between
from nerf.training.runs import RUN_FILE, located, read_run
from nerf.training.used_scene import check_left_out

# of either kind: a reader takes the one that it finds first
COLMAP_FILES = [f"{name}.{kind}" for name in ("cameras", "images", "points3D") for kind in ("bin", "txt")]
MODEL_PLACE = Path("sparse") / "0"  # in the folder of a COLMAP data set


def export_cameras(
    source: Scene | Path | str,
    out: Path | str,
    text: bool = False,
    overwrite: bool = False,
    kind: str | None = None,
    data: Path | str | None = None,
    cameras_are: str | None = None,
    scale: float = 1.0,
    left_out: Collection[str] = (),
) -> Path:
    """Write the cameras of a scene, of a folder that `load` reads, or of a trained model; returns what was written.

    out: NAME.json for a transforms.json (with the splits, and sparse points as NAME.ply); any other name is a folder,
    which gets a COLMAP model in sparse/0 and, where the photos lie elsewhere, a link to their folder as images. Cameras
    are in the full pixels of the photos, poses in the world of the input, refined where training refined them. Reading
    the result gives the same cameras to rounding. data: of a trained model, the scene's folder where it has moved.
    cameras_are: of a folder, how its cameras are meant, as for `load`. scale: poses and points are written so many
    times as far from the origin, as `nerf mesh` writes meshes of runs whose lengths were set. left_out: of a trained
    model, names of photos that are not written.
    Raises UserError; nothing is replaced without overwrite.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp(), "cameras.json")
    >>> export_cameras("data/sample", out) == out
    True
    >>> from nerf import load
    >>> len(load(out, quiet=True).names)
    72
    """
    out = Path(out)
    is_json = out.suffix.lower() == ".json"
    place = out if is_json else out / MODEL_PLACE
    if is_json and text:
        raise UserError(f"{out}: --text is for COLMAP models, whose name is that of a folder")
    posed = (
        _of_scene(source) if isinstance(source, Scene) else _of_path(Path(source), kind, data, cameras_are, left_out)
    )
    posed = _scaled(posed, scale)
    if is_json:
        cloud = [] if posed.points is None or not len(posed.points) else [out.with_suffix(".ply")]
        make_folder(out.parent)
        read = [] if isinstance(source, Scene) else [Path(source), *_data_of(Path(source), data)]
        for file in (out, *cloud):
            check_output(file, overwrite, *(part for place in read for part in _read_from(place, file)))
        write_transforms(posed, out)
    else:
        with OutputFolder.open(place, "cameras", overwrite=overwrite, names=COLMAP_FILES) as folder:
            root, where = _image_root(posed.files, out)
            folder.clear()
            folder.claim(*COLMAP_FILES)
            write_colmap(posed, place, root, text)
        note(where)
        if any(len(posed.splits.get(s, ())) for s in ("val", "test")):
            note("COLMAP models know no split: which views are held out is not in it")
    note(f"{len(posed.files)} cameras written to {place}")
    return place


def _read_from(source: Path, file: Path) -> list[Path]:
    """Of what cameras are read from, what a file that is to be written could be; in folders of others all of it."""
    beside = source.is_dir() and file.parent.samefile(source)
    return [source, *([file] if beside and (owner_of(file) is None or file.name == "transforms.json") else [])]


def _data_of(source: Path, data: Path | str | None) -> list[Path]:
    """The folder of photos with poses that goes with a trained model, where the source is one."""
    folder = source if source.is_dir() else source.parent
    run = read_run(folder) if (folder / RUN_FILE).is_file() else None
    return [] if run is None else [Path(located(folder, run, None if data is None else Path(data)).data)]


def _of_scene(scene: Scene) -> PosedFiles:
    if not scene.files:
        raise UserError("this scene does not say where its photos lie, so its cameras cannot be exported")
    photos = scene.cameras if scene.photo_cameras is None else scene.photo_cameras
    return PosedFiles(
        photos.with_poses(scene.cameras.c2w),
        scene.files,
        scene.splits,
        points=scene.points,
        georeference=scene.georeference,
    )


def model_file(path: Path) -> Path | None:
    """The checkpoint that a path names, itself or as the folder of a run; None: it is no model."""
    file = path / "checkpoint.safetensors" if path.is_dir() else path
    return file if file.suffix == ".safetensors" and file.is_file() else None


def _scaled(posed: PosedFiles, scale: float) -> PosedFiles:
    """All lengths so many times as long, about the origin of the world."""
    if scale == 1.0:
        return posed
    c2w = posed.cameras.c2w * torch.tensor([1.0, 1.0, 1.0, scale], dtype=torch.float64)
    points = None if posed.points is None else posed.points * scale
    placed = None if posed.georeference is None else posed.georeference.scaled(scale)
    return replace(posed, cameras=posed.cameras.with_poses(c2w), points=points, georeference=placed)


def _without(posed: PosedFiles, out: Tensor) -> PosedFiles:
    """Without the photos that out [n] (bool) marks."""
    number, kept = (~out).cumsum(0) - 1, (~out).nonzero()[:, 0].tolist()
    splits = {name: number[ids[~out[ids]]] for name, ids in posed.splits.items()}
    masks = [posed.masks[i] for i in kept] if posed.masks else ()
    files = [posed.files[i] for i in kept]
    return replace(posed, cameras=posed.cameras.subset(kept), files=files, splits=splits, masks=masks)


def _of_path(
    path: Path, kind: str | None, data: Path | str | None, cameras_are: str | None, left_out: Collection[str]
) -> PosedFiles:
    if (file := model_file(path)) is not None:
        if cameras_are is not None:
            raise UserError(f"--cameras-are is for a folder of posed photos, and {path} is a model")
        return _of_model(file, None if data is None else Path(data), left_out)
    if left_out:
        raise UserError(f"left_out is of a trained model, and {path} is none")
    if data is not None:
        raise UserError(f"--data is for the photos of a trained model, and {path} is none")
    posed = load_posed(path, kind, cameras_are=cameras_are)
    return _files_of(posed, posed.cameras, posed.splits)


def _of_model(file: Path, data: Path | None, left_out: Collection[str]) -> PosedFiles:
    """The photos of a run with the cameras as training left them; those that it did not see move along."""
    run = read_run(file.parent)
    tensors, config = checkpoint.load(file)
    names = config.get("training", {}).get("names")
    if run is None or names is None:
        raise UserError(f"{file}: does not say which photos its cameras belong to ({RUN_FILE} or its training is gone)")
    run = located(file.parent, run, data)
    posed = load_posed(Path(run.data), run.kind, cameras_are=run.cameras_are, georeference=run.georeference)
    index = {f.name: i for i, f in enumerate(posed.frames)}
    check_left_out(left_out, index, run.data, "left_out, or edits.json of the run")
    lost = [n for n in names if n not in index]
    if lost:
        raise UserError(f"{run.data}: {lost[0]} and {len(lost) - 1} more photos that the model was trained on are gone")
    trained = torch.tensor([index[n] for n in names], dtype=torch.int64)
    sizes = posed.cameras.subset(trained)  # as photos: the inverse of Cameras.scaled and then of Cameras.resized
    mine = Cameras(**checkpoint.part(tensors, "cameras"))
    mine = mine.resized(sizes.widths // run.downscale, sizes.heights // run.downscale)
    together = posed.cameras.tensors()
    if "given_poses" in tensors:  # the others move along with those that training refined
        together["c2w"] = similarity_between(tensors["given_poses"], mine.c2w).apply_poses(together["c2w"])
    changed = mine.tensors() | {"widths": sizes.widths, "heights": sizes.heights}
    changed |= {name: changed[name] * run.downscale for name in ("fx", "fy", "cx", "cy")}
    for name, values in changed.items():
        together[name] = together[name].index_copy(0, trained, values.to(together[name].dtype))
    rest = torch.tensor(sorted(set(range(len(posed.frames))) - set(trained.tolist())), dtype=torch.int64)
    splits = {"train": trained, "val": rest[:0], "test": rest}
    whole = _files_of(posed, Cameras(**together), splits)
    return _without(whole, torch.tensor([name in left_out for name in index])) if left_out else whole


def _files_of(posed: Posed, cameras: Cameras, splits: dict[str, Tensor]) -> PosedFiles:
    files = [f.path for f in posed.frames]
    return PosedFiles(cameras, files, splits, _masks(posed), posed.points, posed.georeference)


def _masks(posed: Posed) -> list[Path | None]:
    masks = [f.mask if isinstance(f.mask, Path) else None for f in posed.frames]
    return masks if any(masks) else []


def _image_root(files: list[Path], out: Path) -> tuple[Path, str]:
    """(the folder that names are relative to, a note): out/images or out where the photos lie there, else a folder that
    out/images becomes a link to."""
    parents = [f.resolve().parent for f in files]
    for root in (out / "images", out):
        if all(p.is_relative_to(root.resolve()) for p in parents):
            return root, f"names of images are relative to {root}"
    root, link = Path(os.path.commonpath(parents)), out / "images"
    if not link.exists():
        try:
            link.symlink_to(root, target_is_directory=True)
            return root, f"{link} is a link to the photos in {root}"
        except OSError:
            pass  # a disk without links
    return root, f"names of images are relative to {root}: give that folder to the program that reads the model"
