"""Kill a command at each of its file operations, and see that the same command then finishes: python
scripts/kill_points.py [--verbs train,fit,...] [--points N] [--out FILE.json]

A command is run once to count what it opens for writing, renames, links, makes and removes in its folder. Then, for
each of these operations (or N of them, drawn evenly), a fresh process is killed by SIGKILL just before it, and the
same command is given again with --resume (or alone, where a verb has none). Lost is a case in which that fails, ends in
other results than the command that nobody killed, leaves a temporary file, or touches a file of the user's beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from nerf.cli import main as cli  # noqa: E402
from nerf.io.files import is_temporary  # noqa: E402
from nerf.io.machine import machine  # noqa: E402
from nerf.io.outputs import RECORD  # noqa: E402

OPERATIONS = ("open", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
MINE, PRECIOUS = "mine.txt", "the user's own"


class Verb:
    """A command to kill. words: with FOLDER for where it writes; again: added the second time; results: the names of
    what must be there in the end; needs: of another verb, in whose folder this one writes."""

    def __init__(self, words: str, results: str, again: str = "", needs: str = "") -> None:
        self.words, self.results, self.again, self.needs = words.split(), results.split(), again.split(), needs

    def arguments(self, scene: Path, folder: Path) -> list[str]:
        places = {"SCENE": str(scene), "FOLDER": str(folder)}
        return [w.replace("SCENE", places["SCENE"]).replace("FOLDER", places["FOLDER"]) for w in self.words]


VERBS = {
    "train": Verb("train SCENE/posed -o FOLDER --steps 12", "checkpoint.safetensors run.json", "--resume"),
    "fit": Verb(
        "fit image SCENE/picture.png -o FOLDER --steps 12 --table 10", "checkpoint.safetensors fit.json", "--resume"
    ),
    "mesh": Verb("mesh FOLDER -o FOLDER/m.glb --resolution 24 --page", "m.glb m.html", "--overwrite", "train"),
    "render": Verb("render FOLDER --frames 3", "render.mp4", "--overwrite", "train"),
    "pictures": Verb("render FOLDER -o FOLDER/views --frames 3", "views/00002.png", "--overwrite", "train"),
    "eval": Verb("eval FOLDER", "eval/eval.json", "--overwrite", "train"),
    "export": Verb("export-cameras FOLDER -o FOLDER/colmap", "colmap/sparse/0/images.bin", "--overwrite", "train"),
    "poses": Verb("poses SCENE/photos -o FOLDER", "transforms.json sparse/0/images.bin sparse_pc.ply poses.json"),
}


def write_inputs(scene: Path) -> None:
    """A posed scene, photos without poses, and a picture."""
    import captures
    import numpy as np
    import small_scenes
    from PIL import Image

    small_scenes.write_blender(scene / "posed", 8)
    captures.write_photos(scene / "photos", 5)
    rows, cols = np.mgrid[:24, :32]
    Image.fromarray(np.stack([rows * 9, cols * 7, rows + cols], axis=-1).astype(np.uint8)).save(scene / "picture.png")


def in_a_child(task: Callable[[], int]) -> tuple[int, str]:
    """(exit status, or minus the signal that ended it; what it said) of a task in a forked process."""
    with tempfile.TemporaryFile("w+") as said:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            status = 1
            try:
                status = task()
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        ended = os.waitpid(child, 0)[1]
        said.seek(0)
        return os.waitstatus_to_exitcode(ended), said.read()


def run(
    arguments: list[str], folder: Path, kill_at: int = -1, count: Path | None = None, save_seconds: float = 0.0
) -> int:
    """A command with a small model that is saved every so often; killed before file operation number `kill_at` in the
    folder, or their number written to `count`."""
    from nerf.fields.radiance import FieldOptions
    from nerf.signals import fitting
    from nerf.training import config

    small = FieldOptions(n_levels=4, n_features_per_level=4, log2_hashmap_size=8, finest_resolution=64)
    config.TrainConfig = partial(
        config.TrainConfig, checkpoint_seconds=save_seconds, occupancy_resolution=32, field=small
    )  # type: ignore[misc, assignment]
    fitting.FitConfig = partial(fitting.FitConfig, checkpoint_seconds=save_seconds)  # type: ignore[misc, assignment]
    seen = 0

    def look(event: str, values: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in OPERATIONS or not isinstance(values[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (
            values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(str(values[1] or "")) & set("wax+")
        ):
            return
        if os.fsdecode(values[0]).startswith(str(folder)):
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(look)
    status = cli.run(arguments)
    if count is not None:
        count.write_text(str(seen))
    return status


def fingerprint(folder: Path, names: list[str]) -> dict[str, Any]:
    """What must be the same, whether the command was killed or not."""
    from nerf.io import checkpoint

    found: dict[str, Any] = {}
    for name in names:
        path = folder / name
        if path.suffix == ".safetensors":
            tensors, config = checkpoint.load(path)
            kept = {key: t.numpy().tobytes() for key, t in tensors.items()}
            found[name] = {key: hashlib.sha256(data).hexdigest() for key, data in kept.items()}
            found["steps"] = (config.get("training") or config.get("fitting"))["step"]
        elif name == "transforms.json":  # COLMAP draws other samples each time, so numbers differ
            found[name] = sorted(frame["file_path"] for frame in json.loads(path.read_text())["frames"])
        elif path.suffix in (".glb", ".png", ".html") or "colmap" in path.parts:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = path.is_file() and path.stat().st_size > 0
    return found


def leftovers(folder: Path) -> list[str]:
    """What nobody wants there in the end."""
    return [str(p) for p in folder.rglob("*") if is_temporary(p) or p.name == ".nerf.lock" or ".new" in p.suffixes]


def campaign(name: str, points: int, seed: int, scene: Path, work: Path) -> dict[str, Any]:
    """Kill one verb; how many operations it has, how many were tried, and what was lost."""
    verb, started = VERBS[name], time.perf_counter()
    before = work / f"{name}-before"
    if verb.needs:
        longer = [*VERBS[verb.needs].arguments(scene, before)[:-1], "300"]  # steps: until there is a surface
        status, said = in_a_child(partial(run, longer, before, save_seconds=60.0))
        assert status == 0, said

    def fresh(folder: Path) -> list[str]:
        shutil.rmtree(folder, ignore_errors=True)
        if verb.needs:
            shutil.copytree(before, folder)
            (folder / MINE).write_text(PRECIOUS)
        return verb.arguments(scene, folder)

    folder, count = work / name, work / "count"
    status, said = in_a_child(partial(run, fresh(folder), folder, count=count))
    assert status == 0, said
    operations, expected = int(count.read_text()), fingerprint(folder, verb.results)
    tried = sorted(random.Random(seed).sample(range(operations), min(points or operations, operations)))
    lost = []
    for k in tried:
        arguments = fresh(folder)
        status, said = in_a_child(partial(run, arguments, folder, kill_at=k))
        if status != -signal.SIGKILL:
            lost.append({"operation": k, "why": f"was not killed but ended with {status}", "said": said[-800:]})
            continue
        status, said = in_a_child(partial(run, [*arguments, *verb.again], folder))
        why = f"ended with {status}" if status else ""
        if not why and fingerprint(folder, verb.results) != expected:
            why = "ended in other results"
        if not why and (left := leftovers(folder)):
            why = f"left {left[:3]}"
        if not why and not (folder / RECORD).is_file():
            why = "left a folder that is not known as ours"
        if not why and verb.needs and (folder / MINE).read_text() != PRECIOUS:
            why = "touched the user's file"
        if why:
            lost.append({"operation": k, "why": why, "said": said[-800:]})
    seconds = round(time.perf_counter() - started, 1)
    return {"verb": name, "operations": operations, "kills": len(tried), "lost": lost, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--verbs", default=",".join(VERBS), help="which, separated by commas")
    parser.add_argument("--points", type=int, default=0, help="kills of each verb (0: one at every operation)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of operations")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    import torch  # before forking: once instead of in every process

    import nerf.meshing.extract
    import nerf.signals.image
    import nerf.training.loop  # noqa: F401

    rows: list[dict[str, Any]] = []
    about = {"seed": args.seed, "points": args.points, "machine": machine(), "torch": torch.__version__}
    with tempfile.TemporaryDirectory(prefix="kill-points-") as place:
        work = Path(place)
        status, said = in_a_child(lambda: write_inputs(work / "scene") or 0)
        assert status == 0, said
        print(f"{'verb':<10}{'operations':>11}{'kills':>7}{'lost':>6}{'seconds':>9}", flush=True)
        for name in args.verbs.split(","):
            row = campaign(name, args.points, args.seed, work / "scene", work)
            rows.append(row)
            print(
                f"{name:<10}{row['operations']:>11}{row['kills']:>7}{len(row['lost']):>6}{row['seconds']:>9}",
                flush=True,
            )
            for case in row["lost"]:
                print(f"  operation {case['operation']}: {case['why']}\n    {case['said'].strip()[-500:]}", flush=True)
            if args.out:
                kills = sum(row["kills"] for row in rows)
                args.out.write_text(json.dumps(about | {"kills": kills, "rows": rows}, indent=1) + "\n")
    return 1 if any(row["lost"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
