"""Benchmarks: print a table and write JSON with machine, commit, versions, protocol and seconds.

    python scripts/bench.py train data/sample --minutes 1       quality, seconds, memory, samples/s, seconds per view
    python scripts/bench.py speed data/sample                   samples/s while training: threads, table sizes
    python scripts/bench.py kernels                             ns a sample and core of every kernel
    python scripts/bench.py extract RUN --resolution 512        seconds and peak memory of extraction
    python scripts/bench.py scaling data/sample                 threads, number of images, resolution
    python scripts/bench.py ablation data/sample importance=0 width=32,n_levels=16     what each override gives
    python scripts/bench.py foundation --data DIR               every number that the CPU foundation is held to
    python scripts/bench.py mesh --data DIR                     every number that meshes and textures are held to
    python scripts/bench.py capture --data DIR                  every number that finding poses is held to
    python scripts/bench.py scenes --data DIR                   every number that real scenes are held to
    python scripts/bench.py signals --data DIR                  every number that images, sounds and shapes are held to
    python scripts/bench.py many                                every number that thousands of photos are held to
    python scripts/bench.py viewer                              every number that the viewer is held to
    python scripts/bench.py street --data DIR                   one field against cells, on the street of make_street.py

Each row runs in a process of its own, so that peak memory and threads are its own, and is written once it is done.
A row that the output file holds already, measured on the same sources of nerf, is not run again; an older one moves to
"earlier". This process imports neither torch nor numpy: its memory would count in its children's.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import capture, foundation, many, meshes, scenes, signals, street, viewer
from benchmarks.targets import against_targets, value_of

import nerf
from nerf.errors import UserError

BACKENDS = ("auto", "cpu", "cuda", "reference")
HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "bench"  # checkpoints of the rows that others go on with
SUITES = {"foundation": foundation, "mesh": meshes, "capture": capture, "scenes": scenes, "signals": signals}
SUITES |= {"viewer": viewer, "many": many, "street": street}
WITHOUT_DATA = ("viewer", "many")


class Row(NamedTuple):
    name: str
    job: str  # a function of benchmarks.jobs, or micro
    options: dict[str, Any]
    threads: int | None = None
    backend: str = "auto"


# path into a result: title, divisor, digits
SHOWN: dict[str, tuple[str, float, int]] = {
    "protocol.n_train_views": ("images", 1, 0),
    "photos": ("photos", 1, 0),
    "n_photos": ("photos", 1, 0),
    "n_placed": ("placed", 1, 0),
    "pairs_compared": ("compared", 1, 0),
    "pairs_matched": ("matched", 1, 0),
    "rotation_median": ("rotation deg", 1, 4),
    "position_median_percent": ("position %", 1, 4),
    "before.rotation_median": ("degrees before", 1, 3),
    "after.rotation_median": ("after", 1, 3),
    "psnr": ("PSNR dB", 1, 2),
    "gaussian.psnr_of_unknown": ("Gaussian dB", 1, 2),
    "least_lead": ("hash leads by dB", 1, 2),
    "siren.level": ("SIREN error -dB", 1, 2),
    "hash.level": ("hash error -dB", 1, 2),
    "hash.iou": ("IoU", 1, 4),
    "siren.iou": ("SIREN IoU", 1, 4),
    "hash.iou_near": ("near", 1, 4),
    "hash.chamfer_percent": ("Chamfer %", 1, 4),
    "seams.2.at_borders": ("at 2 cells' borders dB", 1, 2),
    "seams.2.elsewhere": ("elsewhere", 1, 2),
    "seams.4.at_borders": ("at 4's", 1, 2),
    "seams.4.elsewhere": ("elsewhere", 1, 2),
    "seams.8.at_borders": ("at 8's", 1, 2),
    "seams.8.elsewhere": ("elsewhere", 1, 2),
    "mesh.5cm.f": ("F 5 cm", 1, 3),
    "mesh.10cm.f": ("F 10 cm", 1, 3),
    "processor_seconds": ("processor s", 1, 0),
    "psnr_held_out": ("held out dB", 1, 2),
    "sart.psnr": ("SART dB", 1, 2),
    "sart_tv.psnr": ("SART+TV dB", 1, 2),
    "lead_over_jpeg": ("over JPEG dB", 1, 2),
    "lead_over_cubic": ("over cubic dB", 1, 2),
    "psnr_aligned": ("aligned dB", 1, 2),
    "ssim": ("SSIM", 1, 4),
    "steps": ("steps", 1, 0),
    "seconds": ("s", 1, 1),
    "seconds_of.all": ("all s", 1, 1),
    "rays_per_second": ("k rays/s", 1e3, 0),
    "evaluated_per_second": ("M eval/s", 1e6, 2),
    "trained_per_second": ("M train/s", 1e6, 2),
    "seconds_per_view": ("view s", 1, 2),
    "triangles": ("triangles", 1, 0),
    "peak_bytes": ("peak GB", 1e9, 2),
    "first.seconds_to_load": ("convert s", 1, 1),
    "again.seconds_to_load": ("load again s", 1, 1),
    "first.seconds_to_first_step": ("first step s", 1, 1),
    "first.peak_bytes": ("cgroup GB", 1e9, 2),
    "first_picture": ("first picture s", 1, 3),
    "after_a_move": ("after a move s", 1, 3),
    "longer_percent.nobody": ("nobody %", 1, 1),
    "longer_percent.moving": ("moving %", 1, 1),
    "longer_percent.resting": ("resting %", 1, 1),
    "start_bytes": ("GB at first", 1e9, 3),
    "end_bytes": ("GB at last", 1e9, 3),
    "bytes_an_hour": ("GB an hour", 1e9, 2),
}
for stage in many.STAGES:
    words = stage.replace("_", " ")
    SHOWN |= {f"{stage}.cpu_seconds": (f"{words} cpu s", 1, 1), f"{stage}.peak_bytes": (f"{words} GB", 1e9, 2)}
KERNELS = ("hashgrid_forward", "hashgrid_backward", "field_forward", "render_forward", "render_backward", "adam")
SHOWN |= {f"ns.{name}": (name.replace("_", " "), 1, 1) for name in KERNELS}


def main() -> int:
    args = arguments()
    if args.command == "job":  # this process is a child
        return job(json.loads(args.row), Path(args.result))
    try:
        return bench(args)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbench: stopped; the rows that are done are kept, the same command goes on", file=sys.stderr)
        return 130


def arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    suites = " ".join(SUITES)
    with_data = " ".join(name for name in SUITES if name not in WITHOUT_DATA)
    listed: dict[str, Any] = {"type": numbers, "metavar": "N,N"}
    options: tuple[tuple[str, str, dict[str, Any]], ...] = (  # name, commands that take it, the rest
        ("scene", "train speed scaling ablation", {"type": Path}),
        ("model", "extract", {"type": Path, "help": "checkpoint, or the run folder that holds it"}),
        ("overrides", "ablation", {"nargs": "+", "metavar": "K=V[,K=V]", "help": "rows, of TrainConfig, FieldOptions"}),
        ("--data", with_data, {"type": Path, "required": True, "help": "folder with lego, fox, ..."}),
        ("--rows", suites, {"metavar": "ROW,ROW", "help": "only these; a wrong name lists them"}),
        ("--out", "", {"type": Path, "help": "JSON to go on with (default: scripts/results/NAME-DATE.json)"}),
        ("--backend", "train speed kernels extract scaling ablation", {"choices": BACKENDS, "default": "auto"}),
        ("--threads", f"train extract ablation {suites}", {"type": int, "help": "default: torch's"}),
        ("--threads", "speed kernels scaling", listed | {"default": "1,2"}),
        ("--minutes", "train scaling ablation", {"type": float, "default": 1.0, "help": "of training, default 1"}),
        ("--minutes", "capture scenes", {"type": float, "help": "of training, instead of the rows' own"}),
        ("--views", "train scaling ablation", {"type": int, "help": "measure only so many test views"}),
        ("--downscale", "train ablation", {"type": int, "default": 1, "help": "of training images only"}),
        ("--run", "train", {"type": Path, "help": "folder to keep the checkpoint in"}),
        ("--tables", "speed", listed | {"default": "15,16,17,18,19", "help": "log2 of table sizes"}),
        ("--warm-up", "speed", {"type": int, "default": 512, "help": "steps before the clock starts"}),
        ("--steps", "speed", {"type": int, "default": 256, "help": "steps that are timed"}),
        ("--resolution", "extract", {"type": int, "default": 512}),
        ("--threshold", "extract", {"type": float, "help": "density of the surface, as for nerf mesh"}),
        ("--samples", "kernels", {"type": int, "default": 1 << 18}),
        ("--every", "scaling", listed | {"default": "2,4", "help": "train on every so-many-th image"}),
        ("--downscales", "scaling", listed | {"default": "2,4", "help": "of the training images"}),
    )  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in ("train", "speed", "kernels", "extract", "scaling", "ablation", *SUITES):
        p = commands.add_parser(command)
        for name, takers, rest in options:
            if not takers or command in takers.split():
                p.add_argument(name, **rest)
    child = commands.add_parser("job")
    child.add_argument("row")
    child.add_argument("result")
    return parser.parse_args()


def rows_of(args: argparse.Namespace) -> list[Row]:
    """What a command measures, in order."""
    command, threads = args.command, args.threads
    if command in SUITES:
        return suite_rows(args)
    backend = args.backend
    if command == "kernels":
        return [Row(f"{n} threads", "micro", {"samples": args.samples}, n, backend) for n in threads]
    if command == "extract":
        options = {"model": str(args.model.resolve()), "resolution": args.resolution, "threshold": args.threshold}
        return [Row(args.model.name, "extract", options, threads, backend)]
    options = {"scene": str(args.scene.resolve())}
    if command == "speed":
        options |= {"warm_up": args.warm_up, "steps": args.steps}
        pairs = [(n, size) for n in threads for size in args.tables]
        return [Row(f"{n} threads 2^{k}", "speed", options | {"log2_hashmap_size": k}, n, backend) for n, k in pairs]
    if args.minutes <= 0:
        raise UserError(f"--minutes must be above 0, got {args.minutes:g}")
    options |= {"minutes": args.minutes, "views": args.views}
    if command == "scaling":
        rows = [Row(f"threads {n}", "train", options, n, backend) for n in threads]
        for kind, values in (("every", args.every), ("downscale", args.downscales)):
            rows += [Row(f"{kind} {n}", "train", options | {kind: n}, max(threads), backend) for n in values]
        return rows
    options["downscale"] = args.downscale
    if command == "ablation":
        variants = {"default": []} | {name: name.split(",") for name in args.overrides}
        return [Row(k, "train", options | {"overrides": v}, threads, backend) for k, v in variants.items()]
    options["run"] = args.run and str(args.run.resolve())
    return [Row(f"{args.scene.name}-{args.minutes:g}min", "train", options, threads, backend)]


def suite_rows(args: argparse.Namespace) -> list[Row]:
    """Those of a suite that were asked for; places in its options become paths."""
    suite = SUITES[args.command]
    wanted = args.rows.split(",") if args.rows else list(suite.ROWS)
    unknown = ", ".join(name for name in wanted if name not in suite.ROWS)
    if unknown:
        raise UserError(f"--rows: there is no {unknown}; there are {', '.join(suite.ROWS)}")
    data = getattr(args, "data", HERE.parent / "data").resolve()
    folders = {"data": data, "runs": RUNS, "project": HERE.parent}
    rows = []
    for name, (job, options, backend) in suite.ROWS.items():
        options = {k: v.format(**folders) if isinstance(v, str) else v for k, v in options.items()}
        options |= {"run": str(RUNS / name)} if job == "train" else {}
        if "minutes" in options and getattr(args, "minutes", None) is not None:
            options["minutes"] = args.minutes
        rows.append(Row(name, job, options, args.threads, backend))
    return [row for row in rows if row.name in wanted]


def bench(args: argparse.Namespace) -> int:
    """Run the rows that are missing, writing each one; print what there is."""
    rows = rows_of(args)
    about = [args.command] + ([args.scene.name] if hasattr(args, "scene") else [])
    out = args.out or HERE / "results" / f"{'-'.join(about)}-{datetime.date.today()}.json"
    book = read(out, args.command)
    if args.command == "ablation":
        run(Row("check", "check", {"variants": [row.options["overrides"] for row in rows]}))
    failed = 0
    for row in rows:
        old = next((r for r in book["rows"] if r["row"] == row.name), None)
        same = old and all(old[k] == v for k, v in identity(row).items())
        if same and args.command != "extract":  # another checkpoint may have the same name
            print(f"bench: {row.name} is in {out.name} already", file=sys.stderr)
            continue
        print(f"bench: {row.name} ...", file=sys.stderr, flush=True)
        try:
            done = run(row)
        except UserError as error:  # the next row may do better
            print(f"bench: {row.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        if old:
            book["earlier"].append(old)
            book["rows"].remove(old)
        book["rows"].append(done)
        write(out, book)
        print(table([done]), file=sys.stderr, flush=True)
    names = [row.name for row in rows]
    listed = sorted((r for r in book["rows"] if r["row"] in names), key=lambda r: names.index(r["row"]))
    for kind in dict.fromkeys(r["job"] for r in listed):
        print(table([r for r in listed if r["job"] == kind], args.command == "ablation"), end="\n\n")
    for machine in dict.fromkeys(machine_line(r["machine"]) for r in listed):
        print(machine, end="\n\n")
    if args.command in SUITES:
        print(aligned(against_targets(book["rows"], SUITES[args.command].TARGETS)), end="\n\n")
    print(out)
    return 1 if failed else 0


def run(row: Row) -> dict[str, Any]:
    """One row in a fresh process -> what is written of it."""
    about = {"row": row.name, "job": row.job, **identity(row)}
    about["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    environment = {**os.environ, "NERF_BACKEND": row.backend}
    if row.threads is not None:
        environment["OMP_NUM_THREADS"] = str(row.threads)
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, str(HERE / "bench.py"), "job", json.dumps(row._asdict()), str(result)]
        status = subprocess.run(command, env=environment).returncode
        if not result.exists():
            raise UserError(f"its process ended with status {status}")
        content = json.loads(result.read_text())
    if "error" in content:
        raise UserError(content["error"])
    return about | content


def job(row: dict[str, Any], result: Path) -> int:
    """The child's side of `run`."""
    content: dict[str, Any]
    try:
        from benchmarks import (
            captures,
            jobs,
            large,
            many_jobs,
            micro,
            scene_jobs,
            shape_jobs,
            signal_jobs,
            street_jobs,
            viewer_jobs,
        )

        if row["threads"] is not None:
            jobs.torch.set_num_threads(row["threads"])
        around = jobs.surroundings()
        kinds = jobs, micro, captures, large, many_jobs, scene_jobs, signal_jobs, shape_jobs, street_jobs, viewer_jobs
        module = next(m for m in kinds if hasattr(m, row["job"]))
        function = getattr(module, row["job"])
        content = {"machine": around, "result": function(**row["options"])}
    except UserError as error:
        content = {"error": str(error)}
    result.write_text(json.dumps(content))
    return 2 if "error" in content else 0


def identity(row: Row) -> dict[str, Any]:
    """What makes two measurements of a row the same: options, without the folders of one machine, and nerf's sources.

    The sources' hash says more than the commit, which does not know of changes and moves with every other file.
    """
    paths = ("scene", "model", "truth", "mesh", "source", "out", "file", "scored_by")
    options = {k: Path(v).name if k in paths and v else v for k, v in row.options.items() if k != "run"}
    folder, digest = Path(nerf.__file__).parent, hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".h", ".cpp", ".cu")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return {"options": options, "asked": [row.threads, row.backend], "sources": digest.hexdigest()[:12]}


def read(out: Path, command: str) -> dict[str, Any]:
    if not out.exists():
        return {"benchmark": command, "rows": [], "earlier": []}
    try:
        book = json.loads(out.read_text())
        if book["benchmark"] == command:
            return book
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{out} is no result of bench.py {command}: choose another file with --out")


def write(out: Path, book: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(json.dumps(book, indent=1) + "\n")
    temporary.replace(out)


# ---- tables


def table(rows: list[dict[str, Any]], against_first: bool = False) -> str:
    """Rows of one job as text; against_first adds what each PSNR is above the first row's."""
    columns = [path for path in SHOWN if value_of(rows[0]["result"], path) is not None]
    lines = [["row", "threads", *(SHOWN[path][0] for path in columns)] + (["against first"] if against_first else [])]
    for row in rows:
        values = [(value_of(row["result"], path), *SHOWN[path][1:]) for path in columns]
        cells = ["-" if v is None else f"{v / scale:.{digits}f}" for v, scale, digits in values]
        lines.append([row["row"], str(row["machine"]["threads"]), *cells])
        if against_first:
            lines[-1].append(f"{row['result']['psnr'] - rows[0]['result']['psnr']:+.2f} dB")
    return aligned(lines)


def machine_line(m: dict[str, Any]) -> str:
    library = m["kernels"]["variant"] if m["backend"] == "cpu" else "kernels"
    versions = f"Python {m['python']}, torch {m['torch']}, commit {m.get('commit')}"
    return f"{m['cpu']}, {m['cores']} cores, {m['backend']} {library}, {m['system']}, {versions}"


def aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pairs = [list(zip(line, widths, strict=True)) for line in lines]
    return "\n".join("  ".join([p[0][0].ljust(p[0][1]), *(c.rjust(w) for c, w in p[1:])]).rstrip() for p in pairs)


if __name__ == "__main__":
    sys.exit(main())
