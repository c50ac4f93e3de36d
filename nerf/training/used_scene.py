"""The scene as a training uses it: where the field is, and without photos that are not to be learnt from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from nerf.datasets import Scene
from nerf.errors import UserError


def on_device(scene: Scene, device: torch.device) -> Scene:
    """The scene with its pixels and cameras where the field is."""
    names = ("pixels", "cameras", "scene_from_world", "masks", "silhouettes", "depths")
    held = {name: part for name in names if (part := getattr(scene, name)) is not None}
    return replace(scene, **{name: part.to(device) for name, part in held.items()})


def check_left_out(names: Collection[str], known: Collection[str], path: object, said_by: object) -> None:
    """UserError where a photo that is to be left out is none of the scene at `path`."""
    if unknown := sorted(set(names) - set(known)):
        raise UserError(
            f"{said_by}: {unknown[0]!r} is to be left out of training, and is no photo of {path}: correct or remove "
            "the name"
        )


def without(scene: Scene, names: Collection[str], said_by: object = "left_out") -> Scene:
    """The scene with photos of these names moved from its train split to "val"; those of other splits stay there.

    said_by: what names them, for the UserError where one is no photo of the scene or none to learn from is left.

    >>> scene = nerf.load("data/sample", downscale=8)
    >>> len(without(scene, scene.names[:2]).splits["train"]) - len(scene.splits["train"])
    -2
    """
    check_left_out(names, scene.names, scene.path, said_by)
    train = scene.splits["train"]
    out = torch.tensor([scene.names[i] in names for i in train.tolist()], dtype=torch.bool, device=train.device)
    if bool(out.all()):
        raise UserError(f"{said_by}: every photo is to be left out of training: keep at least one")
    val = scene.splits.get("val", train[:0]).to(train.device)
    return replace(scene, splits=scene.splits | {"train": train[~out], "val": torch.cat([val, train[out]])})
