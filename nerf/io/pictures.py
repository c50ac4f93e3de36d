"""Numbers to pictures ([h, w, 3] uint8 in sRGB): colour maps, labels, panels side by side, PNG and JPEG files."""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nerf.geometry.light import encode
from nerf.io.files import atomic_write

INK = (28, 28, 33)


def to_display(colors: np.ndarray, linear: bool) -> np.ndarray:
    """[..., 3] floats -> uint8 sRGB; linear light goes through the sRGB curve (IEC 61966-2-1), the rest is kept."""
    colors = np.clip(np.nan_to_num(np.asarray(colors, dtype=np.float32)), 0, 1)
    if linear:
        colors = encode(colors)
    return (colors * 255 + 0.5).astype(np.uint8)


@functools.cache
def colour_map(name: str) -> np.ndarray:
    """[256, 3] uint8: "error" from black over violet and red to pale yellow, "depth" from that over green to dark blue;
    paths through OKLCH (Ottosson 2020) of constantly changing lightness, the chroma cut back to what sRGB can show."""
    t = np.linspace(0, 1, 256)
    if name == "error":
        lightness, hue, chroma = 0.08 + 0.89 * t, 285 + 180 * t, 0.21 * np.sin(np.pi * np.clip(t, 0.02, 0.93)) ** 0.6
    elif name == "depth":
        lightness, hue, chroma = 0.96 - 0.80 * t, 100 + 180 * t, 0.17 * np.sin(np.pi * (0.06 + 0.9 * t)) ** 0.7
    else:
        raise ValueError(f'colour_map: expected "error" or "depth", got {name!r}')
    colors = np.zeros((256, 3))
    for i in range(256):  # the largest chroma up to the wanted one that lies inside sRGB
        for c in np.linspace(chroma[i], 0, 60):
            colors[i] = _oklch_to_linear(lightness[i], c, np.deg2rad(hue[i]))
            if colors[i].min() >= -1e-4 and colors[i].max() <= 1 + 1e-4:
                break
    return to_display(colors[None], linear=True)[0]


def _oklch_to_linear(lightness: float, chroma: float, hue: float) -> np.ndarray:
    """OKLCH -> linear sRGB; the two matrices are those of Ottosson's definition of Oklab."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    to_lms = ([0.3963377774, 0.2158037573], [-0.1055613458, -0.0638541728], [-0.0894841775, -1.2914855480])
    lms = np.array([lightness + x * a + y * b for x, y in to_lms]) ** 3
    red, green = [4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965]
    return np.array([red, green, [-0.0041960863, -0.7034186147, 1.7076147010]]) @ lms


def apply_colour_map(values: np.ndarray, low: float, high: float, name: str) -> np.ndarray:
    """[h, w] floats -> [h, w, 3] uint8: low takes the map's first colour, high its last, beyond is clamped."""
    from_low = np.nan_to_num(np.asarray(values, dtype=np.float32)) - low
    position = np.clip(from_low / (high - low if high > low else 1.0), 0, 1)
    return colour_map(name)[(position * 255 + 0.5).astype(np.uint8)]


def error_map(rendered: np.ndarray, truth: np.ndarray, high: float) -> np.ndarray:
    """Mean absolute difference over the channels, 0 to `high`, in the "error" colours; [h, w, 3] floats in."""
    difference = np.abs(np.clip(rendered, 0, 1) - np.clip(truth, 0, 1)).mean(axis=-1)
    return apply_colour_map(difference, 0.0, high, "error")


def resized(picture: np.ndarray, longest: int) -> np.ndarray:
    """The picture with its longest side at most `longest` pixels (never enlarged)."""
    h, w = picture.shape[:2]
    if max(h, w) <= longest:
        return picture
    width, height = (max(1, round(side * longest / max(h, w))) for side in (w, h))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def panels(pictures: list[np.ndarray], labels: list[str], legend: tuple[str, str, str] | None = None) -> np.ndarray:
    """Pictures side by side with a caption above each, on white: [h, w, 3]; legend: (name of a colour map, text at its
    low end, at its high end), drawn under the last picture."""
    labels = ["".join(c if c.isprintable() else "?" for c in text) for text in labels]  # names of files may hold more
    height = max(p.shape[0] for p in pictures)
    size = int(np.clip(height // 22, 11, 30))
    font = ImageFont.load_default(size=size)  # a caption may be wider than a thumbnail, which is then given the room
    widths = [max(p.shape[1], int(font.getlength(text)) + size) for p, text in zip(pictures, labels, strict=True)]
    gap, head = max(4, size // 2), int(size * 1.9)
    foot = int(size * 2.0) if legend else gap
    width = sum(widths) + gap * (len(widths) + 1)
    canvas = Image.new("RGB", (width, head + height + foot), "white")
    draw = ImageDraw.Draw(canvas)
    left = gap
    for picture, text, room in zip(pictures, labels, widths, strict=True):
        draw.text((left + 1, head / 2), text, fill=INK, font=font, anchor="lm")
        canvas.paste(Image.fromarray(picture), (left, head))
        left += room + gap
    if legend:
        name, low, high = legend
        left = width - gap - widths[-1]
        text_low, text_high = int(font.getlength(low)) + size // 2, int(font.getlength(high)) + size // 2
        bar = widths[-1] - text_low - text_high
        middle = head + height + foot / 2
        draw.text((left, middle), low, fill=INK, font=font, anchor="lm")
        draw.text((width - gap, middle), high, fill=INK, font=font, anchor="rm")
        if bar > 8:
            ramp = colour_map(name)[np.linspace(0, 255, bar).astype(int)]
            strip = np.broadcast_to(ramp[None], (max(4, size // 2), bar, 3))
            canvas.paste(Image.fromarray(np.ascontiguousarray(strip)), (left + text_low, int(middle - size // 4)))
    return np.asarray(canvas)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write through a temporary file beside it, so that a picture is either whole or not there."""
    with atomic_write(path) as temporary:
        # not by the name, in which imageio looks for protocols and archives
        data = imageio.imwrite("<bytes>", picture, plugin="pillow", extension=".png", compress_level=4)
        temporary.write_bytes(data)


def data_uri(picture: np.ndarray, quality: int = 88) -> str:
    """The picture as a JPEG inside a data: address, for a page that is one file."""
    # not "optimize", for which Pillow sets aside a byte a pixel and fails where noise takes more
    options: dict[str, Any] = {"quality": quality, "subsampling": 0}
    data = imageio.imwrite("<bytes>", picture, plugin="pillow", extension=".jpg", **options)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
