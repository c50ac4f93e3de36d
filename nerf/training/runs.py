"""The folder of a run: what it was made from, which files in it are ours, and when it may be written to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerf.datasets.options import PART_FILE, LoadOptions
from nerf.errors import Range, UserError, check_numbers, note
from nerf.io.files import write_file
from nerf.io.folders import BLOCKS_FILE, is_checkpoint
from nerf.io.json_text import parse_json
from nerf.io.outputs import OthersFolder, OutputFolder

if TYPE_CHECKING:
    from nerf.datasets import Scene
    from nerf.rendering.model import Model
    from nerf.training.distributed import Ranks

RUN_FILE = "run.json"
PICTURES = ("eval/[0-9][0-9][0-9][0-9]_*.png", "eval/renders/[0-9][0-9][0-9][0-9]_*.png", "mesh_views/*.png")
_COUNT = Range(0, 1e9, whole=True)
DEFAULT_MINUTES = 5.0  # of training, where nothing says how long
HOLDOUT_FROM = 30  # images; with fewer, each one is worth more for training than for measuring

# What `train` writes into its folder beside RUN_FILE.
TRAINED = ("checkpoint.safetensors", "checkpoint.previous.safetensors", "training.json")


@dataclass
class Run(LoadOptions):
    """How a scene was loaded for a run, enough to load it again in the same way; paths are absolute."""

    data: str  # folder
    held_out_views: int = 0
    images: int = 0
    holdout_from: int = field(default=HOLDOUT_FROM, kw_only=True)


def open_run(
    out: Path, run: Run | None, resume: bool, overwrite: bool, names: Sequence[str] = (), ranks: Ranks | None = None
) -> OutputFolder:
    """The folder of a run that writes `names` too, see `OutputFolder`. One that is resumed must be of the same data,
    loaded in the same way (run None: not asked). Of several ranks, the first opens and writes it."""
    if ranks is not None and ranks.size > 1:
        with ranks.together():
            return open_run(out, run, resume, overwrite, names) if ranks.is_first else OthersFolder(out, "run")
    if resume and run is not None:
        check_same_options(out, run)
    return OutputFolder.open(out, "run", resume, overwrite, (RUN_FILE, *TRAINED, *names), _written_before(out))


def check_same_options(out: Path, run: Run) -> None:
    """UserError where the run in a folder was loaded in another way."""
    before = read_run(out)
    if before is None:
        return
    there = _moved(before, run.data)  # whether the same lies there is asked when it is loaded
    for name in run.load_options():
        if getattr(there, name) != (now := getattr(run, name)):
            raise UserError(
                f"{out} was made with {name} {getattr(before, name)}, not {now}: resume with the same, or choose "
                "another -o"
            )


def _written_before(out: Path) -> list[str]:
    """What versions without nerf.json wrote into a run's folder, where a run.json or a checkpoint says that it is
    one."""
    if not (out / RUN_FILE).is_file():
        return [*TRAINED] if is_checkpoint(out / "checkpoint.safetensors") else []
    try:
        if parse_json((out / RUN_FILE).read_bytes())["format"] != "nerf-run":
            return []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    pictures = [p.relative_to(out).as_posix() for place in PICTURES for p in out.glob(place)]
    return [RUN_FILE, *TRAINED, "video.mp4", "mesh.glb", "mesh.html", "report.html", "eval/eval.json", *pictures]


def write_run(out: Path, run: Run) -> None:
    """Write run.json; the scene was loaded by now, so the counts are known."""
    content = {"format": "nerf-run", "version": 1, **asdict(run)}
    with suppress(ValueError):  # another drive
        content["data_from_here"] = os.path.relpath(run.data, out.resolve())
    write_file(out / RUN_FILE, json.dumps(content, indent=1, default=str) + "\n")


def read_run(folder: Path) -> Run | None:
    """The run.json of a folder; None where there is none. Where the data is gone but lies where it lay as seen from the
    folder, both have moved together, and the run is of the data there."""
    path = folder / RUN_FILE
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = parse_json(path.read_bytes())
        run = Run(**{f.name: content[f.name] for f in fields(Run) if f.name in content})
        run.masks = None if run.masks is None else Path(run.masks)
        run.part = None if run.part is None else folder / PART_FILE
        run.check()
        check_numbers(vars(run), {"images": _COUNT, "held_out_views": _COUNT})
        if any(isinstance(value, (list, dict)) for value in vars(run).values()):
            raise TypeError("each value is one number or text")
        if not isinstance(run.data, str) or not isinstance(run.kind, (str, type(None))):
            raise TypeError("data and kind are text")
        if isinstance(near := content.get("data_from_here"), str) and not Path(run.data).exists():
            there = (folder.resolve() / near).resolve()
            return _moved(run, str(there)) if there.exists() else run
        return run
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: cannot be understood; it was not written by this program, or it is damaged") from None


def _moved(run: Run, data: str) -> Run:
    """The run as of data at another place; masks that were given move along where the same path leads to some."""
    masks = run.masks
    if masks is not None and data != run.data:
        there = Path(os.path.normpath(Path(data, os.path.relpath(masks, run.data))))
        masks = there if there.exists() else masks
    return replace(run, data=data, masks=masks)


def located(folder: Path, run: Run, data: Path | None = None) -> Run:
    """The run with its data where it is now: at `data` if given. UserError where it is gone."""
    if data is not None:
        if not data.exists():
            raise UserError(f"--data {data}: there is no such folder")
        run = _moved(run, str(data.resolve()))
    if not Path(run.data).exists():
        raise UserError(f"{run.data}: the scene of {folder} is no longer there; give its folder with --data")
    return run


def load_for_training(run: Run) -> Scene:
    """Load the scene of a run; fills in run.images and run.held_out_views."""
    from nerf.datasets import load

    scene = load(run.data, LoadOptions(**run.load_options()))
    run.images = len(scene.names)
    run.held_out_views = len(scene.splits.get("test", ()))
    return scene


def scene_of_run(folder: Path, meta: dict[str, Any], data: Path | None = None) -> Scene:
    """The scene that the model in a run's folder was trained on, loaded and split as it was then; from `data` when it
    has moved. meta: of the model, used where the folder holds no run.json."""
    run = read_run(folder)
    if run is None:
        if data is None and not meta.get("data"):
            raise UserError(f"{folder}: does not say what it was trained on; give the scene's folder with --data")
        run = Run(str(data if data is not None else meta["data"]), downscale=int(meta.get("downscale", 1)))
    return load_for_training(located(folder, run, data))


def model_of_run(file: Path) -> Model:
    """The model of a checkpoint, or of all cells where the file is their manifest (`nerf.io.folders.model_files`)."""
    if file.name == BLOCKS_FILE:
        from nerf.training.blocks import load_blocks

        return load_blocks(file.parent)
    from nerf.rendering.model import Model

    return Model.load(file)


def photos_of_run(folder: Path, meta: dict[str, Any], data: Path | None, without: str) -> Scene | None:
    """The scene of a run, for its photos. Where they are gone: None and a note that says what is done without them, or
    UserError if they were asked for by `data`."""
    try:
        return scene_of_run(folder, meta, data)
    except UserError as error:
        if data is not None:
            raise
        note(f"{without}: {error}")
        return None
