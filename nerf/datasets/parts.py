"""A part of a data set: which of its photos are loaded, and where their field is; a file beside a run says so."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nerf.datasets.options import LoadOptions
from nerf.datasets.parsed import ParsedScene
from nerf.errors import MISFITS, UserError
from nerf.geometry.space import Similarity
from nerf.io.files import write_file
from nerf.io.json_text import parse_json

Split = dict[str, str]  # name of a photo -> train, val or test


@dataclass(frozen=True)
class Part:
    """Some photos of a data set, each with its split, and where their field is."""

    photos: Split
    scene_from_world: Similarity

    def write(self, file: Path) -> None:
        content = {"format": "nerf-part", "version": 1, "scene_from_world": self.scene_from_world.to_dict()}
        write_file(file, json.dumps(content | {"photos": self.photos}, indent=1) + "\n")

    @staticmethod
    def read(file: Path) -> Part:
        """UserError where the file is none that `write` made."""
        try:
            content = parse_json(file.read_bytes())
            photos = checked_photos(content["photos"])
            return Part(photos, Similarity.from_dict(content["scene_from_world"]))
        except (OSError, *MISFITS) as error:
            raise UserError(
                f"{file}: is not, or no longer, what `nerf train --blocks` wrote: train it again"
            ) from error

    def in_frame_of(self, other: Part) -> bool:
        """Whether the field of the one is where that of the other is."""
        mine, others = self.scene_from_world.matrix(), other.scene_from_world.matrix()
        return torch.allclose(mine, others, rtol=1e-9, atol=1e-12)


def checked_photos(photos: Any) -> Split:
    """TypeError or ValueError unless these are names of photos, each with its split."""
    if not all(isinstance(name, str) and split in ("train", "val", "test") for name, split in photos.items()):
        raise ValueError("expected names of photos, each with train, val or test")
    return dict(photos)


def restrict(parsed: ParsedScene, part: Part, options: LoadOptions) -> LoadOptions:
    """Leave in the parsed scene what belongs to the part, before any photo is read; the options to load it with."""
    there = [frame.name in part.photos for frame in parsed.frames]
    if lost := sorted(set(part.photos) - {frame.name for frame in parsed.frames}):
        raise UserError(
            f"{parsed.path}: {lost[0]} and {len(lost) - 1} more photos are gone that the division into cells knows: "
            "`nerf train` with --resume divides those that are left"
        )
    frames = [frame for frame, is_there in zip(parsed.frames, there, strict=True) if is_there]
    parsed.frames = [replace(frame, split=part.photos[frame.name]) for frame in frames]
    if parsed.depth_bounds is not None:
        parsed.depth_bounds = parsed.depth_bounds[there]
    parsed.region, parsed.region_is_given, parsed.objects, parsed.extent = part.scene_from_world, False, False, 0.0
    held_out = any(split != "train" for split in part.photos.values())
    return replace(options, space="unbounded", holdout=None if held_out else 0)
