"""The manifest of a place that is trained in cells: who learns from what, how far each is, and the model of all.

OUT/blocks.json holds the division and the state of each cell, OUT/cells/<k> an ordinary run each. Jobs that train
different cells write to one manifest, one after another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nerf.datasets.dividing import Division, Plot
from nerf.datasets.options import PART_FILE
from nerf.datasets.parts import Part, checked_photos
from nerf.errors import MISFITS, UserError
from nerf.geometry.cameras import Cameras
from nerf.geometry.cells import Cell
from nerf.geometry.space import Similarity
from nerf.io.files import write_file
from nerf.io.folders import BLOCKS_FILE
from nerf.io.json_text import parse_json
from nerf.io.locks import alone
from nerf.rendering.blocks import Block, BlockedModel
from nerf.rendering.model import Model
from nerf.training.exposure import apply_exposure

CELLS = "cells"
STATES = ("waiting", "training", "trained", "failed")


@dataclass(frozen=True)
class State:
    """How far a cell is; steps, minutes: what it was trained for; why: of one that failed."""

    state: Literal["waiting", "training", "trained", "failed"] = "waiting"
    steps: int | None = None
    minutes: float | None = None
    why: str | None = None


@dataclass
class Manifest:
    """blocks.json of a folder. light: what is learnt of the photos' light, the same in each cell."""

    folder: Path
    division: Division
    light: dict[str, bool] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.states = self.states or [State() for _ in self.division.plots]

    def cell(self, k: int) -> Path:
        """The folder of a cell's run."""
        return self.folder / CELLS / str(k)

    def part(self, k: int) -> Part:
        """What a cell is trained on."""
        plot = self.division.plots[k]
        return Part(plot.photos, plot.frame(self.division.scene_from_world))

    def whole(self) -> Part:
        """All photos with their splits, in the place's frame."""
        return Part(self.division.photos, self.division.scene_from_world)

    def check_part(self, k: int) -> Part | None:
        """What the cell's run was trained on; None where it was not. UserError where it is a cell of another place."""
        file = self.cell(k) / PART_FILE
        if not file.is_file():
            return None
        part = Part.read(file)
        if not part.in_frame_of(self.part(k)):
            raise UserError(
                f"{file.parent} is no cell of {self.folder / BLOCKS_FILE}, which is the manifest of another run: put "
                "that of this run back, or train all anew with --overwrite"
            )
        return part

    def write(self) -> None:
        cells = [
            {**plot.cell.to_dict(), "box": plot.box.to_dict(), "photos": plot.photos, **asdict(state)}
            for plot, state in zip(self.division.plots, self.states, strict=True)
        ]
        content = {"format": "nerf-blocks", "version": 1, "light": self.light, "photos": self.division.photos}
        content |= {"scene_from_world": self.division.scene_from_world.to_dict(), "cells": cells}
        write_file(self.folder / BLOCKS_FILE, json.dumps(content, indent=1) + "\n")

    def set_state(self, k: int, state: State) -> None:
        """Write how far a cell is; what other jobs have written of theirs stays."""
        with alone(self.folder):
            now = Manifest.read(self.folder)
            now.states[k] = state
            now.write()
        self.states = now.states

    @staticmethod
    def read(folder: Path) -> Manifest:
        """UserError where there is none, or it is damaged."""
        file = folder / BLOCKS_FILE
        try:
            content = parse_json(file.read_bytes())
            if content["format"] != "nerf-blocks" or content["version"] != 1 or not content["cells"]:
                raise ValueError("it is of another format")
            light = {str(name): bool(on) for name, on in content["light"].items()}
            plots = [_plot(c) for c in content["cells"]]
            place = Similarity.from_dict(content["scene_from_world"])
            states = [State(*(c[name] for name in ("state", "steps", "minutes", "why"))) for c in content["cells"]]
            if any(state.state not in STATES for state in states):
                raise ValueError("a cell's state is unknown")
            return Manifest(folder, Division(place, plots, checked_photos(content["photos"])), light, states)
        except (OSError, UserError, *MISFITS) as error:
            raise UserError(
                f"{file}: cannot be understood; it was not written by this program, or it is damaged: train again with "
                "--overwrite"
            ) from error

    def brought_up_to(self, division: Division) -> Manifest:
        """With the photos that see the cells now; cells whose photos are others are to be trained again."""
        pairs = zip(self.division.plots, division.plots, self.states, strict=True)
        states = [state if old.photos == new.photos else State() for old, new, state in pairs]
        return replace(self, division=division, states=states)


def _plot(content: dict[str, Any]) -> Plot:
    return Plot(Cell.from_dict(content), Cell.from_dict(content["box"]), checked_photos(content["photos"]))


# ---- the model


def load_blocks(folder: Path) -> BlockedModel:
    """The model of a place; UserError where a cell is not there yet, or is another's."""
    manifest = Manifest.read(folder)
    models = []
    for k, state in enumerate(manifest.states):
        if manifest.check_part(k) is None or not (manifest.cell(k) / "checkpoint.safetensors").is_file():
            why = f" (it failed: {state.why})" if state.why else ""
            raise UserError(
                f"{folder}: cell {k} of {len(manifest.states)} is not trained yet{why}: `nerf train` with --resume "
                "trains what is missing"
            )
        models.append(Model.load(manifest.cell(k)))
    place = manifest.division.scene_from_world
    gains, light = common_light([(m.names, m.log_gains) for m in models])
    shown = [_shown_with(offset, models[0].linear) for offset in light]
    blocks = [
        Block.of(plot.cell, model, place, light)
        for plot, model, light in zip(manifest.division.plots, models, shown, strict=True)
    ]
    first: dict[str, tuple[int, int]] = {}  # name -> cell and row there
    for k, model in enumerate(models):
        for row, name in enumerate(model.names):
            first.setdefault(name, (k, row))
    names = sorted(first)

    def of_photos(each: Sequence[Tensor | None]) -> Tensor | None:
        """Rows of the photos, of what every cell has."""
        found = [t for t in each if t is not None]
        return (
            torch.stack([found[k][row] for k, row in (first[name] for name in names)])
            if len(found) == len(each)
            else None
        )

    cameras = [m.cameras.to(torch.device("cpu")).tensors() for m in models]
    joined = {c: t for c in cameras[0] if (t := of_photos([each[c] for each in cameras])) is not None}
    whole = BlockedModel(blocks, place, Cameras(**joined), names)
    if gains:
        whole.log_gains = torch.stack([gains[name] for name in names])
    whole.vignetting = of_photos([m.vignetting for m in models])
    reaches = [torch.tensor([1.0, b.scale]) for b in blocks]  # exponent, and a distance
    pairs = zip(models, reaches, strict=True)
    whole.falloff = of_photos([None if m.falloff is None else m.falloff / reach for m, reach in pairs])
    return whole


def common_light(learnt: Sequence[tuple[list[str], Tensor | None]]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """What cells have learnt of their photos' exposure, names and log gains [n,3] of each, brought together: the log
    gains [3] of each photo, 0 in the mean over all, and by how much [3] the light of each cell is darker than the
    common one.

    Each cell takes the mean of its own photos for common, so that what cell k has for photo i is g_i + c_k. c makes the
    photos that several cells share agree best (least squares); cells that share none keep their own.
    """
    n = len(learnt)
    if any(logs is None for _, logs in learnt):
        return {}, [torch.zeros(3) for _ in range(n)]
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for k, (names, logs) in enumerate(learnt):
        assert logs is not None
        for name, log in zip(names, logs.double(), strict=True):
            found.setdefault(name, []).append((k, log))
    system, wanted = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, 3, dtype=torch.float64)
    for seen in found.values():
        mean = torch.stack([log for _, log in seen]).mean(dim=0)
        for k, log in seen:
            system[k, k] += 1
            wanted[k] += log - mean
            for other, _ in seen:
                system[k, other] -= 1 / len(seen)
    offsets = torch.linalg.pinv(system, hermitian=True) @ wanted
    gains = {name: torch.stack([log - offsets[k] for k, log in seen]).mean(dim=0) for name, seen in found.items()}
    middle = torch.stack(list(gains.values())).mean(dim=0)
    return {name: (gain - middle).float() for name, gain in gains.items()}, [*(offsets + middle).float()]


def _shown_with(offset: Tensor, linear: bool) -> tuple[Tensor, Tensor]:
    """Gain and lift [3], see `Block`, of colours whose light is to be brighter by a log gain [3]."""
    one, logs = torch.ones(1, 3), offset[None]
    gain = apply_exposure(one, logs, linear, opacities=0.0)[0]
    return gain, apply_exposure(0 * one, logs, linear, opacities=1.0)[0]
