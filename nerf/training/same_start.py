"""Whether ranks that train together have the same: data, options, versions, machines, and field."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nerf import __version__, kernels
from nerf.datasets import PixelStore, Scene
from nerf.errors import UserError

if TYPE_CHECKING:
    from nerf.training.distributed import Ranks
    from nerf.training.loop import Trainer

SAMPLED = 1 << 16  # pixels of a store that are compared


def versions() -> dict[str, object]:
    """What makes numbers differ in their last bits, by the words that name it: ranks must have the same."""
    here = kernels.describe()
    kind = here["gpu"] if kernels.on_gpu() else here["variant"]
    python = ".".join(map(str, sys.version_info[:2]))
    return {
        "version of nerf": __version__,
        "version of Python": python,
        "version of torch": torch.__version__,
        "backend": f"{kernels.backend()} on {kind}",
    }


def data_of(scene: Scene) -> dict[str, object]:
    """What of a scene ranks must have alike: names, splits, cameras, and pixels, of which some are compared."""
    cameras = scene.cameras.tensors()
    stores = [s for name in ("pixels", "masks", "depths") if isinstance(s := getattr(scene, name), PixelStore)]
    some = [store.memory[:: max(1, len(store.memory) // SAMPLED)] for store in stores]
    splits = sorted((name, *ids.tolist()) for name, ids in scene.splits.items())
    return {
        "list of photos": f"{len(scene.names)} photos, {_digest(repr((scene.names, splits)).encode())}",
        "set of cameras": _digest(*(cameras[name] for name in sorted(cameras))),
        "content of photos": _digest(*(np.ascontiguousarray(part).tobytes() for part in some)),
    }


def check_data(ranks: Ranks, scene: Scene) -> None:
    """UserError, on all ranks, where they cannot train this scene together, or one has loaded another."""
    if ranks.size > 1:
        with ranks.together():
            check_can_share(scene)
        ranks.check_same(versions() | data_of(scene))


def check_can_share(scene: Scene) -> None:
    """UserError for what several ranks cannot train yet."""
    if scene.pixels.tile:
        raise UserError(
            f"{scene.path}: its photos fill a file of tiles, which several ranks cannot share yet: reduce them by "
            "--longest or --downscale, or train in one process, without torchrun"
        )
    if kernels.backend() == "tinycudann":
        raise UserError("the backend tinycudann is not there for several ranks yet: leave --backend out")


def check_same_start(trainer: Trainer) -> None:
    """UserError, on all ranks, where one would begin a training from something else than rank 0."""
    check_data(trainer.ranks, trainer.scene)
    if trainer.ranks.size > 1:
        options = {f"setting {name}": value for name, value in trainer.config.settings().items()}
        trainer.ranks.check_same(options | {"step to begin at": trainer.step})
        check_same_field(trainer)


def check_same_field(trainer: Trainer) -> None:
    """UserError, on all ranks, where one has come to another field than rank 0."""
    if trainer.ranks.size > 1:
        trainer.ranks.check_same({f"field at step {trainer.step}": _digest(*trainer.parameters)})


def _digest(*parts: Tensor | bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.detach().cpu().contiguous().numpy().tobytes()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:12]
