"""Writing the posed data set: transforms.json, COLMAP's model and the point cloud, all in one frame."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nerf.capture.frame import world_from_model
from nerf.capture.gps import Place, fit_gps
from nerf.datasets.export import PosedFiles, write_transforms
from nerf.datasets.named import find_masks
from nerf.datasets.posed import cameras_of
from nerf.datasets.readers.colmap import lens_of, pose_of
from nerf.errors import UserError, note
from nerf.geometry.aim import common_up
from nerf.geometry.lenses import EQUIRECTANGULAR
from nerf.io.files import write_file
from nerf.io.interrupts import take_signals_back
from nerf.io.ply import Columns, ply


def write_dataset(
    folder: Path,
    factor: float = 1.0,
    distance: tuple[str, str, float] | None = None,
    places: dict[str, Place] | None = None,
) -> dict[str, Any]:
    """From capture/model to transforms.json, sparse/0 and sparse_pc.ply in the folder; returns c2w [n,3,4] and points
    [m,3] in the frame written, and colours. distance: (photo, photo, length between where the two were taken), places:
    where photos say by GPS that they were taken."""
    import pycolmap

    take_signals_back()
    model = pycolmap.Reconstruction(str(folder / "capture" / "model"))
    images = sorted((model.images[i] for i in model.reg_image_ids()), key=lambda image: str(image.name))
    names, cameras = [str(image.name) for image in images], [model.cameras[image.camera_id] for image in images]
    c2w = torch.from_numpy(np.stack([pose_of(image, name)[:3] for image, name in zip(images, names, strict=True)]))
    ids = list(model.point3D_ids())
    points = torch.from_numpy(np.array([model.points3D[i].xyz for i in ids], dtype=np.float64).reshape(-1, 3))
    colours = np.array([model.points3D[i].color for i in ids], dtype=np.uint8).reshape(-1, 3)
    metric = None if distance is None else _metric(names, c2w, distance)
    lenses = [lens_of(camera, name) for camera, name in zip(cameras, names, strict=True)]
    rays = cameras_of(c2w, lenses)
    gps = fit_gps(c2w[:, :, 3], [(places or {}).get(name) for name in names], common_up(rays)[0])
    if gps is not None:
        note(str(gps))
    enu = gps.world if gps is not None and gps.convinces else None
    spherical = torch.tensor([lens.model == EQUIRECTANGULAR for lens in lenses])
    world = world_from_model(c2w, points, factor, metric, spherical, enu)
    georeference = None if enu is None or gps is None else gps.georeference.after(world.inverse())
    c2w, points = world.apply_poses(c2w), world.apply(points)
    model.transform(pycolmap.Sim3d(world.matrix()[:3].numpy()))
    write_model(model, folder / "sparse" / "0")
    cloud = ply([Columns("float", "x y z", points.numpy()), Columns("uchar", "red green blue", colours)])
    write_file(folder / "sparse_pc.ply", cloud)  # as nerfstudio reads it
    files = [folder / "images" / name for name in names]
    masks = find_masks(folder / "masks", files)
    masked = [masks.get(file) for file in files]
    posed = PosedFiles(cameras_of(c2w, lenses), files, {}, masked, georeference=georeference)
    write_transforms(posed, folder / "transforms.json", "sparse_pc.ply")
    return {"c2w": c2w.numpy(), "points": points.numpy(), "colours": colours}


def _metric(names: list[str], c2w: torch.Tensor, distance: tuple[str, str, float]) -> float:
    """Length of the model's unit in that of the distance."""
    places = []
    for asked in distance[:2]:
        number = next((i for i, name in enumerate(names) if asked in (name, Path(name).stem)), None)
        if number is None:
            raise UserError(f"--distance: {asked} is none of the photos that were placed (the first is {names[0]})")
        places.append(c2w[number, :, 3])
    between = float((places[0] - places[1]).norm())
    if between < 1e-9:
        raise UserError(f"--distance: {distance[0]} and {distance[1]} were taken from the same place; give two others")
    return distance[2] / between


def write_model(model: Any, folder: Path) -> None:
    """A COLMAP model to a folder, in the place of what was in it; OSError where it does not fit the disk,
    of which COLMAP itself says nothing, and then the folder is as it was."""
    import pycolmap

    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    model.write_binary(str(new))
    try:
        written = pycolmap.Reconstruction(str(new))
        whole = (written.num_reg_images(), written.num_points3D()) == (model.num_reg_images(), model.num_points3D())
    except Exception:  # of a file that was cut off the library raises many things
        whole = False
    if not whole:
        shutil.rmtree(new, ignore_errors=True)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)
