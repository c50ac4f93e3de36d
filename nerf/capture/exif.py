"""What a photo's EXIF says about its camera: who made it, and a first guess of its focal length in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

FULL_FRAME_DIAGONAL = math.hypot(36, 24)  # millimetres; the 35 mm equivalent compares diagonals (CIPA DCG-001)
_MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}  # EXIF FocalPlaneResolutionUnit


@dataclass(frozen=True)
class Exif:
    """The few tags that matter; empty strings and None where a file does not say."""

    orientation: int = 1
    make: str = ""
    model: str = ""
    lens: str = ""
    focal_mm: float | None = None
    focal_35mm: float | None = None
    pixels_per_mm: float | None = None  # on the sensor, for a picture that is stated_width wide
    stated_width: int | None = None
    gps: tuple[float, float] | None = None  # latitude and longitude, degrees
    altitude: float | None = None  # metres above the sea

    def camera(self) -> tuple[object, ...]:
        """Photos that agree in this (and in size) were taken with the same intrinsics, as far as a file can tell."""
        return self.orientation, self.make, self.model, self.lens, self.focal_mm, self.focal_35mm

    def focal_pixels(self, width: int, height: int) -> float | None:
        """Focal length in pixels of the picture as stored, or None where nothing (credible) is stated."""
        longest, guess = max(width, height), None
        if self.focal_35mm:
            guess = self.focal_35mm / FULL_FRAME_DIAGONAL * math.hypot(width, height)
        elif self.focal_mm and self.pixels_per_mm:
            guess = self.focal_mm * self.pixels_per_mm * longest / max(self.stated_width or longest, 1)
        return guess if guess is not None and 0.2 * longest < guess < 20 * longest else None


def read_exif(image: Any) -> Exif:
    """The tags of an opened PIL image; damaged EXIF counts as none."""
    try:
        top = image.getexif()
        inner, place = top.get_ifd(0x8769), top.get_ifd(0x8825)
    except Exception:  # Pillow raises many things for damaged EXIF, and the picture itself may be fine
        return Exif()
    orientation = top.get(0x0112, 1)
    resolution, unit = _number(inner.get(0xA20E)), _MILLIMETRES.get(inner.get(0xA210, 2))
    stated = max(_number(inner.get(0xA002)) or 0, _number(inner.get(0xA003)) or 0)
    return Exif(
        orientation=orientation if orientation in range(1, 9) else 1,
        make=_text(top.get(0x010F)),
        model=_text(top.get(0x0110)),
        lens=_text(inner.get(0xA434)),
        focal_mm=_number(inner.get(0x920A)),
        focal_35mm=_number(inner.get(0xA405)),
        pixels_per_mm=resolution / unit if resolution and unit else None,
        stated_width=int(stated) or None,
        gps=_gps(place),
        altitude=_altitude(place),
    )


def _gps(tags: Any) -> tuple[float, float] | None:
    """(latitude, longitude) in degrees, or None where they are not stated, or are the (0, 0) of no reception."""
    found = []
    for number, letters, limit in ((2, "NS", 90), (4, "EW", 180)):
        try:
            d, m, s = (float(v) for v in tags[number])
            letter = _text(tags[number - 1]).upper()[:1]
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None
        degrees = (d + m / 60 + s / 3600) * (-1 if letter == letters[1] else 1)
        if not (letter and letter in letters and abs(degrees) <= limit):  # NaN too
            return None
        found.append(degrees)
    return None if found == [0, 0] else (found[0], found[1])


def _altitude(tags: Any) -> float | None:
    try:
        metres, below = float(tags[6]), tags.get(5) in (1, b"\x01")
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (-metres if below else metres) if math.isfinite(metres) else None


def _text(value: Any) -> str:
    return str(value).strip("\0 ") if value is not None else ""


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return round(number, 3) if math.isfinite(number) and number > 0 else None
