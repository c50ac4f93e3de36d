"""What the check keeps of one photo: features, their colours, a thumbnail, its silhouette or mask. Needs no torch, so
that the processes which do this start at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from nerf.io.images import Picture, convert, read_header, read_pixels

N_FEATURES = 1200  # at most, those of the largest scale
ENLARGED_UP_TO = 400  # pixels on the longer side: small pictures are enlarged twice, for they have few features else
PEAK = 0.004  # contrast of a feature, of full range
SMALLEST = 100  # pixels on the longer side; below that there is nothing to recognise
THUMBNAIL = 128  # pixels on the longer side

_sift: dict[int, Any] = {}


@dataclass
class Look:
    """One photo, reduced. Places are in pixels of the reduced picture; the middle of its first pixel is (0.5, 0.5)."""

    points: np.ndarray  # [n,2] float32
    descriptors: np.ndarray  # [n,128] uint8, SIFT
    colours: np.ndarray  # [n,3] uint8, mean of the 5x5 pixels about each
    thumbnail: np.ndarray  # [h,w,3] uint8
    alpha: np.ndarray  # [h,w] uint8 of the thumbnail's size; [0,0] where there is none
    mask: np.ndarray  # the same, 255 where pixels are used
    mask_size: np.ndarray  # (width, height) of the mask's file; empty where there is none
    used: np.ndarray  # [n] bool, whether the feature lies where alpha and mask say that there is something to see


@dataclass
class Request:
    """What is needed to look at a photo."""

    picture: Picture
    size: tuple[int, int]  # (width, height) of the reduced picture
    pixels: np.ndarray | None = None  # where the photo is no file
    mask: Path | np.ndarray | None = None
    matte: Path | None = None
    features: bool = True

    def to_json(self) -> dict[str, Any]:
        p = self.picture
        about = [str(p.path.absolute()), p.width, p.height, p.n_channels, str(p.dtype), p.orientation]
        files = [str(f.absolute()) if isinstance(f, Path) else None for f in (self.mask, self.matte)]
        return {"picture": about, "size": self.size, "files": files, "features": self.features}

    @staticmethod
    def from_json(said: dict[str, Any]) -> Request:
        path, width, height, n_channels, dtype, orientation = said["picture"]
        picture = Picture(Path(path), width, height, n_channels, np.dtype(dtype), orientation)
        mask, matte = (None if f is None else Path(f) for f in said["files"])
        return Request(picture, tuple(said["size"]), mask=mask, matte=matte, features=said["features"])

    @property
    def is_of_files(self) -> bool:
        return self.pixels is None and not isinstance(self.mask, np.ndarray)


def reduced(request: Request) -> tuple[np.ndarray, np.ndarray | None]:
    """([h,w,3] uint8 of the request's size, alpha [H,W] or None where there is none), decoded no larger than needed."""
    from PIL import Image

    picture, (w, h) = request.picture, request.size
    if request.pixels is None:
        reduction = next((k for k in (8, 4, 2) if picture.width // k >= w and picture.height // k >= h), 1)
        pixels = read_pixels(picture, reduction)
    else:
        pixels = request.pixels
    shown = as_bytes(pixels)
    rgb = Image.fromarray(np.ascontiguousarray(shown[..., :3]))
    rgb = rgb.resize((w, h), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.asarray(rgb), shown[..., 3] if shown.shape[2] == 4 else None


def look_at_photo(request: Request) -> Look:
    """Decode the photo, reduced as far as the decoder can, and look at it."""
    from PIL import Image, ImageFilter

    w, h = request.size
    pixels, alpha = reduced(request)
    rgb = Image.fromarray(pixels)
    if request.matte is not None:
        alpha = read_mask(request.matte)[0]
    mask, mask_size = (None, ()) if request.mask is None else read_mask(request.mask)
    points, descriptors = np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8)
    if request.features and max(w, h) >= SMALLEST:
        points, descriptors = features(np.asarray(rgb.convert("L")))
    x, y = (np.clip(points[:, k].astype(int), 0, size - 1) for k, size in ((0, w), (1, h)))
    colours = np.asarray(rgb.filter(ImageFilter.BoxBlur(2)))[y, x]
    used = np.ones(len(points), bool)
    for shape in (alpha, mask):
        if shape is not None:
            used &= shape[y * shape.shape[0] // h, x * shape.shape[1] // w] > 127
    small = thumbnail_size((w, h))
    return Look(
        points,
        descriptors,
        colours,
        np.asarray(rgb.resize(small, Image.Resampling.BOX)),
        _small(alpha, small),
        _small(mask, small),
        np.asarray(mask_size, np.int64),
        used,
    )


def thumbnail_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a thumbnail."""
    scale = min(1.0, THUMBNAIL / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """[h,w,4] or [h,w,3] uint8 as it would be shown."""
    n = 4 if pixels.shape[2] in (2, 4) else 3
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype.kind == "f":  # linear light of any brightness
        values = np.nan_to_num(pixels.astype(np.float32), posinf=0, neginf=0)
        colour = values[..., :-1] if n == 4 else values
        top = max(float(np.percentile(colour, 99)), 1e-12)
        colour = np.clip(colour / top, 0, 1) ** (1 / 2.2)
        values = np.concatenate([colour, np.clip(values[..., -1:], 0, 1)], axis=2) if n == 4 else colour
        pixels = (values * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(convert(pixels, n, np.dtype(np.uint8)))


def read_mask(given: Path | np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """([h,w] uint8, (width, height)) of a mask or matte as it is."""
    if isinstance(given, np.ndarray):
        mask = (given > 0).astype(np.uint8) * 255
    else:
        mask = convert(read_pixels(read_header(given)), 3, np.dtype(np.uint8)).max(axis=2)
    return mask, (mask.shape[1], mask.shape[0])


def _small(shape: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    if shape is None:
        return np.zeros((0, 0), np.uint8)
    return np.asarray(Image.fromarray(np.ascontiguousarray(shape)).resize(size, Image.Resampling.BOX))


def features(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places [n,2], descriptors [n,128]) of SIFT features of [h,w] uint8, in order of falling scale; of a feature with
    two orientations both."""
    import pycolmap

    octave = -1 if max(grey.shape) <= ENLARGED_UP_TO else 0
    if octave not in _sift:
        pycolmap.logging.minloglevel = 1
        options = pycolmap.FeatureExtractionOptions()
        options.num_threads, options.use_gpu = 1, False
        options.sift.first_octave = octave
        options.sift.max_num_features = N_FEATURES
        options.sift.peak_threshold = PEAK
        _sift[octave] = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
    keypoints, descriptors = _sift[octave].extract_from_uint8_array(np.ascontiguousarray(grey))
    points = np.asarray(pycolmap.keypoints_to_matrix(keypoints), np.float32).reshape(-1, 4)
    rows = np.asarray(descriptors.data, np.uint8).reshape(-1, 128)
    order = np.argsort(-points[:, 2], kind="stable")[:N_FEATURES]
    return np.ascontiguousarray(points[order, :2]), rows[order]


NAMES = [f.name for f in fields(Look)]
