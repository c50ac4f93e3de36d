"""Whether what a run is continued with is what it was trained on: data moves, and is changed, between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nerf.datasets import Scene
from nerf.errors import UserError, note
from nerf.io import checkpoint
from nerf.training.runs import Run, read_run


def check_same_scene(file: Path, tensors: dict[str, Tensor], config: dict[str, Any], scene: Scene) -> None:
    """UserError where a checkpoint was not trained on this scene: other images, or of other cameras."""
    ids = scene.splits["train"].cpu()
    other, more = "", ""
    now, before = scene.cameras.to(torch.device("cpu")).subset(ids).tensors(), checkpoint.part(tensors, "cameras")
    before["c2w"] = tensors.get("given_poses", before["c2w"])
    if config["training"]["names"] != [scene.names[i] for i in ids.tolist()]:
        other, more = "other images than", f"the {len(ids)} of "
    elif not all(torch.equal(before[side], now[side]) for side in ("widths", "heights")):
        other = "images of another size than those of"
    elif not all(_close(before[name], t) for name, t in now.items()):
        other = "other cameras than those of"
    if other:
        raise UserError(
            f"{file} was trained on {other} {more}{scene.path}: resume with the same data, or start again with "
            "--overwrite"
        )


def _close(a: Tensor, b: Tensor) -> bool:
    """To the rounding of another machine."""
    return a.shape == b.shape and bool((a.double() - b.double()).abs().le(1e-5 * b.double().abs().amax()).all())


def check_moved(out: Path, run: Run, scene: Scene) -> None:
    """UserError where a run is resumed with data at another place which are not those that it was trained on. Asked
    before run.json names the new place."""
    before = read_run(out)
    if before is None or before.data == run.data:
        return
    file = out / "checkpoint.safetensors"
    if file.is_file() or checkpoint.previous_path(file).is_file():
        check_same_scene(file, *checkpoint.load_last(file), scene)
        note(f"{run.data} is the scene that was in {before.data}")
