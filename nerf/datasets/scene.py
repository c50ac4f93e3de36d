"""Scene: posed images ready to train on; and the one way from what a format's reader found (Capture) to a Scene."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf.datasets.bits import MaskBits, packed
from nerf.datasets.brightness import measure, repaired, to_linear
from nerf.datasets.depths import read_depths
from nerf.datasets.keypoints import Keypoints, gather
from nerf.datasets.parsed import Capture
from nerf.datasets.posed import check_frames, check_lenses
from nerf.datasets.region import choose_region
from nerf.datasets.resize import area_average, choose_sizes, jpeg_reduction, shrink
from nerf.datasets.store import PixelStore, fill
from nerf.datasets.tiles import FROM, tiled
from nerf.errors import UserError
from nerf.geometry.cameras import Cameras
from nerf.geometry.space import Similarity, Space
from nerf.io.images import Picture, convert, read_header, read_pixels


@dataclass
class Scene:
    """Posed images with everything training needs; poses and points in the world frame of the files."""

    pixels: PixelStore
    cameras: Cameras
    names: list[str]
    splits: dict[str, Tensor]  # "train", "val", "test" -> image indices (int64); every image is in exactly one
    points: Tensor | None  # [m,3] float64 world, sparse points
    scene_from_world: Similarity
    space: Space  # Box, Unbounded or Ndc
    near: float  # scene units along the ray; 0 for a box
    far: float
    has_alpha: bool
    linear: bool  # colours are linear light (EXR), not sRGB; what is brighter than white is above 1
    masks: PixelStore | MaskBits | None  # one channel, above 0.5 where a pixel is to be used
    source: str  # the kind of data set that was read
    path: Path
    notes: list[str]  # what was chosen and why, what was skipped
    brightest: float = 1.0  # largest colour of all pictures, at least 1
    exposure: float = 1.0  # linear light times this is shown, white at 1
    depths: PixelStore | None = None  # one float32 channel: z-depth in world units, 0 unknown; sizes of their own
    keypoints: Keypoints | None = None  # pixels that show a sparse point
    files: list[Path] = field(default_factory=list)  # of the images
    photo_cameras: Cameras | None = None  # in the pixels of those files, before downscale


def assemble(
    capture: Capture, downscale: int, holdout: int | None, space: str | None = None, longest: int | None = None
) -> Scene:
    """Check poses, lenses and images, decode, split, and choose the scene frame."""
    notes = capture.notes
    posed = check_frames(capture, holdout)
    frames, pictures = posed.frames, posed.pictures
    if min(min(p.height, p.width) for p in pictures) < downscale:
        raise UserError(f"downscale {downscale} leaves no pixel of the smallest image: choose a smaller one")

    n_channels, dtype = _common_type(pictures, any(f.matte for f in frames))
    if any((p.n_channels, p.dtype) != (n_channels, dtype) for p in pictures) and not any(f.matte for f in frames):
        notes.append(f"images of different kinds were brought to {n_channels} channels of {dtype}")
    is_exr = [p.path.suffix.lower() == ".exr" for p in pictures]
    linear = any(is_exr)
    if linear and not all(is_exr):
        notes.append(f"{is_exr.count(False)} images that are no EXR were brought from sRGB to linear light")
    chosen = choose_sizes(pictures, downscale, longest, n_channels * dtype.itemsize)
    sizes = chosen.sizes
    place = capture.path if capture.path.is_dir() else capture.path.parent
    in_tiles = sum(h * w for h, w in sizes) * n_channels * dtype.itemsize > FROM
    settings = {"downscale": downscale, "longest": chosen.longest, "linear": linear}

    def reduced(image: np.ndarray, i: int) -> np.ndarray:
        if chosen.longest is None:
            return shrink(image, downscale)
        if image.shape[:2] == (pictures[i].height, pictures[i].width):
            image = image[: image.shape[0] // downscale * downscale, : image.shape[1] // downscale * downscale]
        return area_average(image, sizes[i])

    broken: dict[str, int] = {}  # pixels that are no numbers, by image

    def decode(i: int) -> np.ndarray:
        plain = chosen.longest is not None and downscale == 1 and not linear and frames[i].matte is None
        image = _read_as_announced(pictures[i], jpeg_reduction(pictures[i], sizes[i]) if plain else 1)
        if linear and not is_exr[i] and image.dtype.kind == "u":
            image = to_linear(image)
        image = convert(image, n_channels, dtype)
        if dtype.kind == "f":
            image, n_broken = repaired(image)
            if n_broken:
                broken[frames[i].name] = n_broken
        if frames[i].matte is not None:
            image = image.copy()
            matte = _read_mask(frames[i].matte, image.shape[:2], frames[i].where)  # type: ignore[arg-type]
            image[..., -1] = matte * (257 if dtype == np.uint16 else 1) if dtype.kind == "u" else matte / 255
        return reduced(image, i)

    if in_tiles:
        made_from = [[f.path, f.matte] for f in frames]
        store = tiled(place, made_from, settings | {"what": "photos"}, sizes, n_channels, dtype, decode, "photos")
    else:
        store = fill(sizes, n_channels, dtype, decode)
    if broken:
        notes.append(
            f"{sum(broken.values())} pixels of {len(broken)} images (the first is {min(broken)}) are NaN or infinite: "
            "taken as black and as the brightest of their image"
        )
    brightest, exposure = measure(store) if linear else (1.0, 1.0)
    if linear:
        notes.append(f"linear light, up to {brightest:.4g} where white is 1" + _exposed(exposure))
    masks: PixelStore | MaskBits | None = None
    if any(f.mask for f in frames):

        def decode_mask(i: int) -> np.ndarray:
            full, path = (pictures[i].height, pictures[i].width), frames[i].mask
            mask = np.full(full, 255, np.uint8) if path is None else _read_mask(path, full, frames[i].where)
            return reduced(mask[..., None], i)

        if in_tiles:
            made_from = [[f.path, f.mask] for f in frames]
            about = settings | {"what": "masks"}
            masks = tiled(place, made_from, about, sizes, 1, np.dtype(np.uint8), decode_mask, "masks")
        else:
            masks = packed(sizes, decode_mask)

    depths = read_depths([f.depth for f in frames], [(p.height, p.width) for p in pictures], notes)

    cameras = posed.cameras.scaled(downscale)
    if chosen.longest is not None:
        heights, widths = (torch.tensor([s[k] for s in sizes], dtype=torch.int64) for k in (0, 1))
        cameras = cameras.resized(widths, heights)
        notes.append(chosen.note)
    check_lenses(cameras, [f.name for f in frames], notes)
    if downscale > 1:
        notes.append(f"images down-scaled by {downscale} (area average)")

    has_alpha = n_channels in (2, 4) and _alpha_matters(store)
    keypoints = gather(frames, posed.cameras, cameras, notes)
    region = choose_region(capture, cameras, store, has_alpha, space)
    return Scene(
        pixels=store,
        cameras=cameras,
        names=[f.name for f in frames],
        splits=posed.splits,
        points=posed.points,
        scene_from_world=region.scene_from_world,
        space=region.space,
        near=region.near,
        far=region.far,
        has_alpha=has_alpha,
        linear=linear,
        masks=masks,
        source=capture.source,
        path=capture.path,
        notes=notes,
        brightest=brightest,
        exposure=exposure,
        depths=depths,
        keypoints=keypoints,
        files=[f.path for f in frames],
        photo_cameras=posed.cameras,
    )


def _exposed(exposure: float) -> str:
    return "" if exposure == 1.0 else f"; pictures and meshes show it times {exposure:.3g}, EXR files keep it"


def _common_type(pictures: list[Picture], matte: bool) -> tuple[int, np.dtype]:
    """(channels, dtype) that hold every image without loss."""
    channels = {p.n_channels for p in pictures}
    colour, alpha = bool(channels & {3, 4}), matte or bool(channels & {2, 4})
    dtypes = {p.dtype for p in pictures}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.result_type(*[p.dtype for p in pictures])
    if dtype.kind == "f" and dtype.itemsize > 4:
        dtype = np.dtype(np.float32)
    return (3 if colour else 1) + alpha, np.dtype(dtype)


def _read_as_announced(picture: Picture, reduction: int = 1) -> np.ndarray:
    """Decoded, or reduced while it is decoded where that can be done (see `jpeg_reduction`)."""
    image = read_pixels(picture, reduction)
    size = picture.height, picture.width
    if image.shape[:2] not in (size, (size[0] // reduction, size[1] // reduction)):
        raise UserError(
            f"{picture.path}: decoded to {image.shape[1]}x{image.shape[0]}, its header said otherwise: restore the file"
        )
    return image


def _read_mask(path: Path, size: tuple[int, int], where: str) -> np.ndarray:
    """[h,w] uint8 of a grey, RGB or RGBA mask, resized by nearest pixel where its image is larger or smaller."""
    from PIL import Image

    if not path.is_file():
        raise UserError(f"{where}: its mask {path} is missing")
    picture = read_header(path)
    mask = convert(read_pixels(picture), 3, np.dtype(np.uint8)).max(axis=2)
    if mask.shape != size:
        if abs(mask.shape[0] * size[1] - mask.shape[1] * size[0]) > 0.02 * size[0] * mask.shape[1]:
            raise UserError(
                f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]}, its image {size[1]}x{size[0]}: "
                "expected the same shape"
            )
        mask = np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return mask


def _alpha_matters(store: PixelStore) -> bool:
    """Whether some image has pixels that are not opaque."""
    if store.ranges is not None:
        return bool((store.ranges[:, 0] < 0.99).any())
    top = np.iinfo(store.memory.dtype).max if store.memory.dtype.kind == "u" else 1.0
    return any(bool((store.raw(i)[..., -1] < 0.99 * top).any()) for i in range(len(store)))
