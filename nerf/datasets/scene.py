"""Scene: posed images ready to train on; and the one way from what a reader found (ParsedScene) to a Scene."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerf.datasets.arrays import as_images, as_lenses, as_list, as_maps, as_masks, as_points, as_poses, as_splits
from nerf.datasets.bits import MaskBits, packed
from nerf.datasets.borders import DARK, borders_by_size
from nerf.datasets.brightness import measure, repaired, to_linear
from nerf.datasets.depths import read_depths
from nerf.datasets.keypoints import Keypoints, gather
from nerf.datasets.mattes import Alpha, judge_alpha
from nerf.datasets.options import LoadOptions
from nerf.datasets.parsed import Frame, ParsedScene
from nerf.datasets.plain import before_background, plain_background
from nerf.datasets.posed import Posed, check_frames, check_lenses
from nerf.datasets.region import choose_region, look_inwards, some_of
from nerf.datasets.resize import Sizes, area_average, choose_sizes, jpeg_reduction, shrink
from nerf.datasets.store import PixelStore, fill
from nerf.datasets.tiles import FROM, tiled
from nerf.errors import UserError
from nerf.geometry.cameras import Cameras
from nerf.geometry.geodesy import Georeference
from nerf.geometry.space import Similarity, Space, checked_similarity
from nerf.io.images import Picture, convert, read_mask, read_pixels
from nerf.io.machine import usable_cores
from nerf.io.threads import threads_within

FRAMED = 0.8  # of a picture: where an object shows on more, what is around it is a frame, as undistortion leaves one


@dataclass
class Scene:
    """Posed images with everything training needs; poses and points in the world frame of the files. Made by `load`
    from files and by `Scene.from_arrays` from memory.

    >>> from nerf import load
    >>> scene = load("data/sample", downscale=4, quiet=True)
    >>> scene.pixels.image(0).shape, sorted(scene.splits)
    (torch.Size([80, 80, 4]), ['test', 'train', 'val'])
    """

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
    background: Tensor | None = None  # [3] the one colour that is behind an object in all pictures
    silhouettes: MaskBits | None = None  # of that: 0 where a pixel belongs to the background, joined to the edges
    depths: PixelStore | None = None  # one float32 channel: z-depth in world units, 0 unknown; sizes of their own
    keypoints: Keypoints | None = None  # pixels that show a sparse point
    files: list[Path] = field(default_factory=list)  # of the images
    photo_cameras: Cameras | None = None  # in the pixels of those files, before downscale
    georeference: Georeference | None = None  # where the world stands on the earth, if that is known

    @property
    def has_silhouettes(self) -> bool:
        """Whether pictures say where there is nothing: by their alpha, or by a background of one colour."""
        return self.has_alpha or self.silhouettes is not None

    def silhouette(self, i: int) -> np.ndarray:
        """Pixels [h,w] (bool) of image i that are not known to be empty."""
        if self.silhouettes is not None:
            return self.silhouettes.image(i)[..., 0].numpy() > 0.5
        raw = self.pixels.raw(i)
        return raw[..., -1] > 0 if self.has_alpha else np.ones(raw.shape[:2], bool)

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        c2w: Any,
        intrinsics: Any,
        masks: Any = None,
        depths: Any = None,
        space: str | None = None,
        names: Sequence[str] | None = None,
        splits: Mapping[str, Any] | None = None,
        distortion: Any = None,
        points: Any = None,
        linear: bool = False,
        scene_from_world: Similarity | None = None,
    ) -> Scene:
        """A scene of n images in memory, checked and normalised as a folder is; arrays of numpy, torch or lists.

        images: [n,h,w,c], or n of [h,w,c] of any sizes; grey, grey + alpha, RGB or RGBA (straight alpha) of uint8,
        uint16 or floats within [0,1]; sRGB, or linear light of any brightness. c2w: [n,4,4] or [n,3,4], camera to
        world, OpenGL cameras (x right, y up, looking along -z). intrinsics: [fx,fy,cx,cy] or K [3,3] in pixels, for all
        images or one for each; the middle of the upper left pixel is (0.5, 0.5). distortion: OpenCV's k1, k2, k3, k4,
        p1, p2, for all or each. masks: n of [h,w] (or None), 0 where a pixel is to be ignored. depths: n of [h,w] (or
        None), z-depths in world units, 0 where unknown. points: [m,3], world. space: "box", "unbounded" or "ndc" (None:
        chosen). splits: {"train", "val", "test": indices} (None: every 8th image in order of names is for testing).
        scene_from_world: takes the object to [-1,1]^3 (None: chosen). Raises UserError: one sentence a mistake.

        >>> pose = torch.eye(4)
        >>> pose[2, 3] = 4.0  # looks at the origin from z = 4
        >>> scene = Scene.from_arrays(torch.zeros(1, 8, 8, 3), pose[None], [10, 10, 4, 4], splits={"train": [0]})
        >>> len(scene.names), scene.names[0], scene.cameras.fx.tolist()
        (1, '0000', [10.0])
        """
        pictures = as_images(images, linear)
        n = len(pictures)
        names = [f"{i:04d}" for i in range(n)] if names is None else [str(name) for name in as_list(names, "names")]
        if len(names) != n or len(set(names)) != n:
            raise UserError(f"names: expected {n} that differ, one for each image")
        poses, lenses = as_poses(c2w, n), as_lenses(intrinsics, distortion, pictures)
        columns = as_splits(splits, n), as_masks(masks, n), as_maps(depths, "depths", n), pictures
        none_held_out = splits is not None and set(columns[0]) == {"train"}
        frames = [
            Frame(name, Path(name), pose, lens, f"image {name}", split, mask, depth=depth, pixels=pixels)
            for name, pose, lens, split, mask, depth, pixels in zip(names, poses, lenses, *columns, strict=True)
        ]
        region = None if scene_from_world is None else checked_similarity(scene_from_world, "scene_from_world")
        parsed = ParsedScene("arrays", Path("arrays"), frames, [], linear=linear, region=region)
        parsed.region_is_given, parsed.points = region is not None, as_points(points)
        largest = max(16, *(max(image.shape[:2]) for image in pictures))
        options = LoadOptions(holdout=0 if none_held_out else None, space=space, longest=largest)  # type: ignore[arg-type]
        options.check()
        return assemble(parsed, options)


def assemble(parsed: ParsedScene, options: LoadOptions) -> Scene:
    """Check poses, lenses and images, decode, split, and choose the scene frame."""
    notes = parsed.notes
    posed = check_frames(parsed, options)
    pictures = _Pictures.choose(parsed, posed, options)
    pixels = pictures.store()
    brightest, exposure = measure(pixels) if pictures.linear else (1.0, 1.0)
    if pictures.linear:
        shown = "" if exposure == 1.0 else f"; pictures and meshes show it times {exposure:.3g}, EXR files keep it"
        notes.append(f"linear light, up to {brightest:.4g} where white is 1{shown}")
    names = [f.name for f in posed.frames]
    cameras = _cameras(posed, pictures, options, notes)
    check_lenses(cameras, names, notes)
    asked = options.space is not None or (parsed.objects and parsed.region is not None) or pictures.has_mattes
    pictures.alpha = judge_alpha(pixels, cameras, names, asked, notes)
    masks = pictures.masks(pixels)
    depths = read_depths([f.depth for f in posed.frames], [(p.height, p.width) for p in posed.pictures], notes)
    has_alpha = pictures.alpha.silhouettes
    keypoints = gather(posed.frames, posed.cameras, cameras, notes)
    space = "box" if parsed.region_is_given and has_alpha and options.space is None else options.space
    background, silhouettes = None, None
    if not (has_alpha or masks is not None or pixels.tile):
        background, silhouettes = _before_one_colour(pictures, pixels, cameras, options.space)
    if background is None and masks is None and not has_alpha:
        masks = pictures.inside_borders(pixels)
    asked_hull = has_alpha and not parsed.region_is_given
    region = choose_region(parsed, cameras, pixels, asked_hull, space, silhouettes)
    return Scene(
        pixels=pixels,
        cameras=cameras,
        names=names,
        splits=posed.splits,
        points=posed.points,
        **vars(region),
        has_alpha=has_alpha,
        linear=pictures.linear,
        masks=masks,
        source=parsed.source,
        path=parsed.path,
        notes=notes,
        brightest=brightest,
        exposure=exposure,
        background=background,
        silhouettes=silhouettes,
        depths=depths,
        keypoints=keypoints,
        files=[f.path for f in posed.frames if f.pixels is None],
        photo_cameras=posed.cameras,
        georeference=parsed.georeference,
    )


def _before_one_colour(
    pictures: _Pictures, pixels: PixelStore, cameras: Cameras, space: str | None
) -> tuple[Tensor | None, MaskBits | None]:
    """The colour [3] behind an object that the cameras look at, and the object's silhouettes; None where that is not
    what all pictures show."""
    if space not in (None, "box") or not look_inwards(cameras):
        return None, None
    background = plain_background(pixels, some_of(pixels, 16))
    if background is None:
        return None, None
    silhouettes = pictures.cut_out(pixels, background)
    shown = float(np.median([float(silhouettes.image(i).mean()) for i in some_of(pixels, 16)]))
    if not 0 < shown < FRAMED:
        return None, None
    colour = ", ".join(f"{v:.3g}" for v in background.tolist())
    pictures.parsed.notes.append(
        f"an object before one colour ({colour}), which is left out: --space unbounded learns it as a place"
    )
    return background, silhouettes


def _cameras(posed: Posed, pictures: _Pictures, options: LoadOptions, notes: list[str]) -> Cameras:
    """The cameras in the pixels of the pictures as they are stored."""
    cameras = posed.cameras.scaled(options.downscale)
    if pictures.sizes.longest is not None:
        heights, widths = torch.tensor(pictures.sizes.sizes).T.contiguous()
        cameras = cameras.resized(widths, heights)
        notes.append(pictures.sizes.note)
    if options.downscale > 1:
        notes.append(f"images down-scaled by {options.downscale} (area average)")
    return cameras


@dataclass
class _Pictures:
    """The pictures of a scene on their way into a store: of one type, of the sizes chosen."""

    parsed: ParsedScene
    posed: Posed
    downscale: int
    sizes: Sizes
    n_channels: int
    dtype: np.dtype
    linear: bool
    alpha: Alpha = field(default_factory=Alpha)  # known once they are decoded

    @staticmethod
    def choose(parsed: ParsedScene, posed: Posed, options: LoadOptions) -> _Pictures:
        """One type that holds every picture without loss, and their sizes."""
        pictures, matte, downscale = posed.pictures, any(f.matte for f in posed.frames), options.downscale
        if min(min(p.height, p.width) for p in pictures) < downscale:
            raise UserError(f"downscale {downscale} leaves no pixel of the smallest image: choose a smaller one")
        n_channels, dtype = _common_type(pictures, matte)
        if any((p.n_channels, p.dtype) != (n_channels, dtype) for p in pictures) and not matte:
            parsed.notes.append(f"images of different kinds were brought to {n_channels} channels of {dtype}")
        n_other = sum(not _is_linear(parsed, f) for f in posed.frames)
        if 0 < n_other < len(pictures):
            parsed.notes.append(f"{n_other} images that are no EXR were brought from sRGB to linear light")
        sizes = choose_sizes(pictures, downscale, options.longest, n_channels * dtype.itemsize)
        return _Pictures(parsed, posed, downscale, sizes, n_channels, dtype, n_other < len(pictures))

    def store(self) -> PixelStore:
        """All pictures decoded: in memory, or in tiles on disk where they would fill too much of it."""
        broken: dict[str, int] = {}  # pixels that are no numbers, by image
        kind = self.n_channels, self.dtype, lambda i: self._decode(i, broken)
        store = self._tiled("photos", *kind) if self._in_tiles else fill(self.sizes.sizes, *kind, self._threads(2))
        if broken:
            self.parsed.notes.append(
                f"{sum(broken.values())} pixels of {len(broken)} images (the first is {min(broken)}) are NaN or "
                "infinite: taken as black and as the brightest of their image"
            )
        return store

    def masks(self, pixels: PixelStore) -> PixelStore | MaskBits | None:
        """One channel, above 0.5 where a pixel is to be used; None where no picture has a mask. pixels: the store."""
        if all(f.mask is None for f in self.posed.frames) and not (self.alpha.is_mask or self.alpha.empty):
            return None

        def decode(i: int) -> np.ndarray:
            mask, used = self._decode_mask(i), self.alpha.used(pixels, i)
            return mask if used is None else np.where(used[..., None], mask, np.uint8(0))

        if not self._in_tiles:
            return packed(self.sizes.sizes, decode, self._threads(2))
        return self._tiled("masks", 1, np.dtype(np.uint8), decode)

    def inside_borders(self, pixels: PixelStore) -> PixelStore | MaskBits | None:
        """As `masks`, without the black borders of pictures; None where there are none."""
        sizes = self.sizes.sizes
        borders = borders_by_size(lambda i: pixels.image(i).numpy(), sizes, 1e-3 if self.linear else DARK / 255)
        if not borders:
            return None
        n, share = sum(size in borders for size in sizes), max(float(border.mean()) for border in borders.values())
        self.parsed.notes.append(
            f"{n} of {len(pixels)} photos have black borders ({100 * share:.1f} % of the picture), which are left out: "
            "--masks decides otherwise"
        )

        def decode(i: int) -> np.ndarray:
            left_out = borders.get(sizes[i], np.zeros(sizes[i], bool))
            return np.where(left_out, np.uint8(0), np.uint8(255))[..., None]

        if not self._in_tiles:
            return packed(self.sizes.sizes, decode, self._threads(2))
        return self._tiled("borders", 1, np.dtype(np.uint8), decode)

    def cut_out(self, pixels: PixelStore, background: Tensor) -> MaskBits:
        """What of the pictures is not background, of one colour [3]; pixels: the store."""

        def decode(i: int) -> np.ndarray:
            return before_background(pixels.image(i), background).astype(np.uint8)[..., None] * np.uint8(255)

        return packed(self.sizes.sizes, decode, self._threads(2))

    @property
    def has_mattes(self) -> bool:
        """Whether the files give silhouettes beside the pictures."""
        return any(f.matte is not None for f in self.posed.frames)

    @property
    def _in_tiles(self) -> bool:
        n_bytes = sum(h * w for h, w in self.sizes.sizes) * self.n_channels * self.dtype.itemsize
        return n_bytes > FROM and all(f.pixels is None for f in self.posed.frames)

    def _tiled(self, what: str, n_channels: int, dtype: np.dtype, decode: Callable[[int], np.ndarray]) -> PixelStore:
        place = self.parsed.path if self.parsed.path.is_dir() else self.parsed.path.parent
        settings: dict[str, Any] = {"downscale": self.downscale, "longest": self.sizes.longest}
        settings |= {"linear": self.linear, "what": what}
        if what == "masks" and (self.alpha.is_mask or self.alpha.empty):
            settings["alpha"] = [self.alpha.is_mask, *sorted(self.alpha.empty)]
        made_from: list[Any] = [[f.path, f.mask if what == "masks" else f.matte] for f in self.posed.frames]
        n_threads = self._threads(usable_cores())
        return tiled(place, made_from, settings, self.sizes.sizes, n_channels, dtype, decode, what, n_threads)

    def _threads(self, most: int) -> int:
        """So many as memory has room for pictures on their way: as the decoder holds them, as an array, reduced."""
        pixel = 4 + 4 * self.n_channels * self.dtype.itemsize
        return threads_within(max(p.width * p.height for p in self.posed.pictures) * pixel, most)

    def _decode(self, i: int, broken: dict[str, int]) -> np.ndarray:
        frame, picture = self.posed.frames[i], self.posed.pictures[i]
        plain = self.sizes.longest is not None and self.downscale == 1 and not self.linear and frame.matte is None
        reduction = jpeg_reduction(picture, self.sizes.sizes[i]) if plain else 1
        image = read_pixels(picture, reduction) if frame.pixels is None else frame.pixels
        h, w = picture.height, picture.width
        if image.shape[:2] not in ((h, w), (h // reduction, w // reduction)):
            raise UserError(
                f"{picture.path}: decoded to {image.shape[1]}x{image.shape[0]}, its header said otherwise: restore the "
                "file"
            )
        if self.linear and not _is_linear(self.parsed, frame) and image.dtype.kind == "u":
            image = to_linear(image)
        image = convert(image, self.n_channels, self.dtype)
        if self.dtype.kind == "f":
            image, n_broken = repaired(image)
            if n_broken:
                broken[frame.name] = n_broken
        if frame.matte is not None:
            image = image.copy()
            matte = _read_mask(frame.matte, image.shape[:2], frame.where)
            scale = 257 if self.dtype == np.uint16 else 1
            image[..., -1] = matte * scale if self.dtype.kind == "u" else matte / 255
        return self._reduced(image, i)

    def _decode_mask(self, i: int) -> np.ndarray:
        picture, frame = self.posed.pictures[i], self.posed.frames[i]
        full = picture.height, picture.width
        mask = np.full(full, 255, np.uint8) if frame.mask is None else _read_mask(frame.mask, full, frame.where)
        return self._reduced(mask[..., None], i)

    def _reduced(self, image: np.ndarray, i: int) -> np.ndarray:
        if self.sizes.longest is None:
            return shrink(image, self.downscale)
        (h, w), picture, k = image.shape[:2], self.posed.pictures[i], self.downscale
        if (h, w) == (picture.height, picture.width):
            image = image[: h // k * k, : w // k * k]
        return area_average(image, self.sizes.sizes[i])


def _is_linear(parsed: ParsedScene, frame: Frame) -> bool:
    """Whether a picture holds linear light, not sRGB."""
    return frame.path.suffix.lower() == ".exr" if frame.pixels is None else parsed.linear


def _common_type(pictures: list[Picture], matte: bool) -> tuple[int, np.dtype]:
    """(channels, dtype) that hold every image without loss."""
    channels = {p.n_channels for p in pictures}
    colour, alpha = bool(channels & {3, 4}), matte or bool(channels & {2, 4})
    dtype = np.result_type(*{p.dtype for p in pictures})
    return (3 if colour else 1) + alpha, np.dtype(np.float32) if dtype == np.float64 else dtype


def _read_mask(given: Path | np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """[h,w] uint8 of a grey, RGB or RGBA mask, resized by nearest pixel where its image is larger or smaller."""
    from PIL import Image

    h, w = size
    if isinstance(given, np.ndarray):
        mask, path = (given > 0).astype(np.uint8) * 255, where
    elif not given.is_file():
        raise UserError(f"{where}: its mask {given} is missing")
    else:
        mask, path = read_mask(given), str(given)
    mh, mw = mask.shape
    if abs(mh * w - mw * h) > 0.02 * h * mw:
        raise UserError(f"{path}: the mask is {mw}x{mh}, its image {w}x{h}: expected the same shape")
    return mask if (mh, mw) == size else np.asarray(Image.fromarray(mask).resize((w, h), Image.Resampling.NEAREST))
