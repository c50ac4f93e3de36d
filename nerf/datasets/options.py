"""LoadOptions: everything that decides how a data set is loaded, in one record."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from nerf.errors import Range, UserError, check_numbers

PART_FILE = "part.json"  # beside a run of a part of a data set, see `nerf.datasets.parts`
LOADING = {
    "downscale": Range(1, 1 << 16, whole=True),
    "longest": Range(16, 1 << 20, whole=True, optional=True),
    "holdout": Range(0, 1e9, whole=True, optional=True),
    "holdout_from": Range(0, 1e9, whole=True),
}


@dataclass(kw_only=True)
class LoadOptions:
    """How a data set is loaded; the fields are options of the command line, too.

    >>> [*LoadOptions(downscale=2, holdout=0).load_options()]
    ['downscale', 'longest', 'holdout', 'kind', 'masks', 'space', 'holdout_from', 'cameras_are', 'georeference', 'part']
    """

    downscale: int = 1
    """average blocks of so many pixels squared"""
    longest: int | None = None
    """pixels that photos have at most on their longer side (default: all, but 1600 where they would take over 2 GB)"""
    holdout: int | None = None
    """hold out every K-th image for measuring, 0: none (default: the files' split, else every 8th from 30 images up)"""
    kind: str | None = None
    """read the folder as this format, where it could be several (see `nerf.datasets.readers`)"""
    masks: Path | None = None
    """folder of masks, NAME.png for each photo: what is black there is ignored (default: those that the data names, or
    masks/ beside photos without poses)"""
    space: Literal["box", "unbounded", "ndc"] | None = None
    """box for an object, unbounded for a place, ndc for a forward-facing set (default: chosen by what is seen)"""
    holdout_from: int = 0
    """where neither `holdout` nor the files say what is held out: every 8th image of so many or more, else none"""
    cameras_are: str | None = None
    """how poses and lenses are meant, where not as they stand in the files, as `nerf check` says it: inverted,
    transposed, axes=x,-y,-z, flip=y, turned=90, scale=0.5, focal=1.2, centred, undistorted; several joined by +"""
    georeference: str | None = None
    """where the poses' world stands on the earth, if their files do not say: EPSG:25833, or EPSG:25833,X,Y,Z where its
    origin lies there, or LATITUDE,LONGITUDE,HEIGHT of a world in metres east, north, up (see docs/maps.md)"""

    part: Path | None = None
    """file that names the photos to load, of all, and says where their field is (see `nerf.datasets.parts`)"""

    def check(self, flag: str = "") -> None:
        """UserError for what can be wrong with the options by themselves; flag: what their names begin with."""
        check_numbers(vars(self), LOADING, flag)
        if self.holdout == 1:
            raise UserError(f"{flag}holdout 1 leaves no image to train on: choose 0 (none) or a number from 2 up")
        if self.space not in (None, "box", "unbounded", "ndc"):
            raise UserError(f"{flag}space is {self.space!r}, expected one of box, unbounded, ndc")
        if self.cameras_are is not None:
            from nerf.datasets.readings import check_reading

            check_reading(self.cameras_are, f"{flag}cameras-are" if flag else "cameras_are")
        if self.georeference is not None:
            from nerf.geometry.geodesy import Georeference

            Georeference.parse(self.georeference, f"{flag}georeference")

    def load_options(self) -> dict[str, Any]:
        """The options alone, of any record that holds them: two runs are of one scene where these agree."""
        return {f.name: getattr(self, f.name) for f in fields(LoadOptions)}
