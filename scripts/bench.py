"""Benchmarks: print a table and write JSON with machine, commit, versions, protocol and seconds.

    python scripts/bench.py train data/sample --minutes 1       quality, seconds, memory, samples/s, seconds per view
    python scripts/bench.py speed data/sample                   samples/s while training: threads, table sizes
    python scripts/bench.py kernels                             ns a sample and core of every kernel
    python scripts/bench.py mesh RUN --resolution 512           seconds and peak memory of extraction
    python scripts/bench.py scaling data/sample                 threads, number of images, resolution
    python scripts/bench.py ablation data/sample focus=0 width=32,n_levels=16     what each override gives
    python scripts/bench.py foundation --data DIR               every number that the CPU foundation is held to

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

import nerf
from nerf.errors import UserError

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent / "runs" / "bench"  # checkpoints of the foundation's rows, for the mesh


class Row(NamedTuple):
    name: str
    job: str  # a function of benchmarks.jobs, or micro
    options: dict[str, Any]
    threads: int | None = None
    backend: str = "auto"


class Target(NamedTuple):
    what: str
    row: str
    key: str  # of the row's result
    scale: float
    reach: float
    aim: float | None
    unit: str
    known: str


MORE_IS_BETTER = ("dB", "M/s")
TARGETS = (
    Target("lego 800x800, 25 views, 60 s", "lego-1min", "psnr", 1, 28.5, 30, "dB", "best peer 15.8, probe 26.6"),
    Target("the same, 5 min", "lego-5min", "psnr", 1, 32, 33.5, "dB", "best peer 20.5, probe 30.1"),
    Target("the same, 20 min", "lego-20min", "psnr", 1, 34, 35.5, "dB", ""),
    Target("samples evaluated, steady state", "speed", "evaluated_per_second", 1e6, 2, 4, "M/s", "1.4 marched"),
    Target("samples trained, steady state", "speed", "trained_per_second", 1e6, 0.8, 1.5, "M/s", "0.37"),
    Target("lego, reference kernels, 5 min", "lego-reference", "psnr", 1, 22, None, "dB", "fast-ngp 19.6"),
    Target("one 800x800 lego view", "lego-5min", "seconds_per_view", 1, 1.5, 0.5, "s", "OpenSplat 0.7, fast-ngp 200"),
    Target("fox 1080x1920, 10 min", "fox", "psnr", 1, 25, 26, "dB", ""),
    Target("fern 504x378, 5 min", "fern", "psnr", 1, 24.5, 25.5, "dB", "NeRF's paper 25.2 at 1008x756"),
    Target("peak memory, lego 5 min, all", "lego-5min", "peak_bytes", 1e9, 1.2, 0.8, "GB", "OpenSplat 4.9"),
    Target("512^3 mesh of lego", "mesh", "seconds", 1, 15, 6, "s", ""),
    Target("its peak memory", "mesh", "peak_bytes", 1e9, 1, None, "GB", ""),
)

# path into a result: title, divisor, digits
SHOWN: dict[str, tuple[str, float, int]] = {
    "protocol.n_train_views": ("images", 1, 0),
    "psnr": ("PSNR dB", 1, 2),
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
}
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

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("job").add_argument("row")
    commands.choices["job"].add_argument("result")
    parsers = {
        name: commands.add_parser(name, help=f"see above: {name}")
        for name in ("train", "speed", "kernels", "mesh", "scaling", "ablation", "foundation")
    }
    for name, p in parsers.items():
        p.add_argument("--out", type=Path, help="JSON to write or go on with (default: scripts/results/NAME-DATE.json)")
        p.add_argument("--rows", help="only these rows, separated by commas")
        p.add_argument("--backend", choices=("auto", "cpu", "reference"), default="auto")
        if name in ("train", "mesh", "ablation", "foundation"):
            p.add_argument("--threads", type=int, help="default: torch's")
        if name in ("train", "speed", "scaling", "ablation"):
            p.add_argument("scene", type=Path)
        if name in ("train", "scaling", "ablation"):
            p.add_argument("--minutes", type=float, default=1.0, help="of training, for each row (default 1)")
            p.add_argument("--views", type=int, help="measure only so many test views (default: all)")
        if name in ("train", "ablation"):
            p.add_argument(
                "--downscale", type=int, default=1, help="of the training images; views are measured in full"
            )
        if name in ("speed", "foundation"):
            p.add_argument("--warm-up", type=int, default=512, help="steps before the clock starts")
            p.add_argument("--steps", type=int, default=256, help="steps that are timed")
    parsers["train"].add_argument("--run", type=Path, help="folder to keep the checkpoint in")
    parsers["speed"].add_argument("--tables", type=numbers, default="15,16,17,18,19", help="log2 of table sizes")
    parsers["mesh"].add_argument("model", type=Path, help="checkpoint, or the run folder that holds it")
    parsers["mesh"].add_argument("--resolution", type=int, default=512)
    parsers["kernels"].add_argument("--samples", type=int, default=1 << 18)
    for name in ("speed", "kernels", "scaling"):
        parsers[name].add_argument("--threads", type=numbers, default="1,2", help="numbers of threads")
    parsers["scaling"].add_argument("--every", type=numbers, default="2,4", help="train on every so-many-th image")
    parsers["scaling"].add_argument("--downscales", type=numbers, default="2,4", help="of the training images")
    parsers["ablation"].add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE[,KEY=VALUE]",
        help="fields of TrainConfig or FieldOptions; each argument is a row",
    )
    parsers["foundation"].add_argument(
        "--data", type=Path, required=True, help="the folder that holds lego, fox and fern"
    )
    return parser.parse_args()


def rows_of(args: argparse.Namespace) -> list[Row]:
    """What a command measures, in order."""
    if args.command == "mesh":
        return [
            Row(
                args.model.name,
                "mesh",
                {"model": str(args.model.resolve()), "resolution": args.resolution},
                args.threads,
            )
        ]
    if args.command == "kernels":
        return [Row(f"{n} threads", "micro", {"samples": args.samples}, n, args.backend) for n in args.threads]
    if args.command == "foundation":
        return foundation(args)
    scene = str(args.scene.resolve())
    if args.command == "speed":
        return [
            Row(
                f"{n} threads, 2^{size}",
                "speed",
                {"scene": scene, "log2_hashmap_size": size, "warm_up": args.warm_up, "steps": args.steps},
                n,
                args.backend,
            )
            for n in args.threads
            for size in args.tables
        ]
    options = {"scene": scene, "minutes": args.minutes, "views": args.views}
    if args.command == "scaling":
        threads = args.threads
        rows = [Row(f"threads {n}", "train", options, n, args.backend) for n in threads]
        for kind, listed in (("every", args.every), ("downscale", args.downscales)):
            rows += [Row(f"{kind} {n}", "train", options | {kind: n}, max(threads), args.backend) for n in listed]
        return rows
    options["downscale"] = args.downscale
    if args.command == "ablation":
        return [
            Row(
                name or "default",
                "train",
                options | {"overrides": name.split(",") if name else []},
                args.threads,
                args.backend,
            )
            for name in ("", *args.overrides)
        ]
    options["run"] = str(args.run.resolve()) if args.run else None
    return [Row(f"{args.scene.name}-{args.minutes:g}min", "train", options, args.threads, args.backend)]


def foundation(args: argparse.Namespace) -> list[Row]:
    data = args.data.resolve()

    def trained(name: str, scene: str, minutes: float, backend: str = args.backend) -> Row:
        return Row(
            name,
            "train",
            {"scene": str(data / scene), "minutes": minutes, "run": str(RUNS / name)},
            args.threads,
            backend,
        )

    steady = {"scene": str(data / "lego"), "warm_up": args.warm_up, "steps": args.steps}
    return [
        trained("lego-1min", "lego", 1),
        trained("lego-5min", "lego", 5),
        trained("lego-20min", "lego", 20),
        Row("speed", "speed", steady, args.threads, args.backend),
        trained("lego-reference", "lego", 5, "reference"),
        trained("fox", "fox", 10),
        trained("fern", "fern", 5),
        Row("mesh", "mesh", {"model": str(RUNS / "lego-5min"), "resolution": 512}, args.threads, args.backend),
    ]


def bench(args: argparse.Namespace) -> int:
    """Run the rows that are missing, writing each one; print what there is."""
    rows = rows_of(args)
    if args.rows is not None:
        wanted = [name.strip() for name in args.rows.split(",")]
        unknown = set(wanted) - {row.name for row in rows}
        if unknown:
            raise UserError(
                f"--rows: there is no {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in rows)}"
            )
        rows = [row for row in rows if row.name in wanted]
    about = [args.command] + ([args.scene.name] if hasattr(args, "scene") else [])
    out = args.out or HERE / "results" / f"{'-'.join(about)}-{datetime.date.today()}.json"
    book = read(out, args.command)
    if args.command == "ablation":
        run(Row("check", "check", {"variants": [row.options["overrides"] for row in rows]}))
    failed = 0
    for row in rows:
        old = next((r for r in book["rows"] if r["row"] == row.name), None)
        if (
            old
            and args.command != "mesh"
            and (old["code"], old["options"], old["asked"]) == (code(), shown(row.options), [row.threads, row.backend])
        ):
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
    if args.command == "foundation":
        print(against_targets(book["rows"]), end="\n\n")
    print(out)
    return 1 if failed else 0


def run(row: Row) -> dict[str, Any]:
    """One row in a fresh process -> what is written of it."""
    environment = {**os.environ, "NERF_BACKEND": row.backend}
    if row.threads is not None:
        environment["OMP_NUM_THREADS"] = str(row.threads)
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, str(HERE / "bench.py"), "job", json.dumps(row._asdict()), str(result)]
        status = subprocess.run(command, env=environment).returncode
        content = (
            json.loads(result.read_text()) if result.exists() else {"error": f"its process ended with status {status}"}
        )
    if "error" in content:
        raise UserError(content["error"])
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    asked = {"options": shown(row.options), "asked": [row.threads, row.backend]}
    return {"row": row.name, "job": row.job, **asked, "code": code(), "date": when, **content}


def job(row: dict[str, Any], result: Path) -> int:
    """The child's side of `run`."""
    content: dict[str, Any]
    try:
        from benchmarks import jobs, micro

        if row["threads"] is not None:
            jobs.torch.set_num_threads(row["threads"])
        around = jobs.surroundings()
        function = micro.micro if row["job"] == "micro" else getattr(jobs, row["job"])
        content = {"machine": around, "result": function(**row["options"])}
    except UserError as error:
        content = {"error": str(error)}
    result.write_text(json.dumps(content))
    return 2 if "error" in content else 0


def code() -> str:
    """Which sources of nerf are measured: a hash of them, which unlike the commit also knows of changes."""
    folder = Path(nerf.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".h", ".cpp", ".cu")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def shown(options: dict[str, Any]) -> dict[str, Any]:
    """Options without the folders of one machine."""
    return {k: Path(v).name if k in ("scene", "model") else v for k, v in options.items() if k != "run"}


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


def against_targets(rows: list[dict[str, Any]]) -> str:
    results = {row["row"]: row["result"] for row in rows}
    lines = [["what", "measured", "reach", "aim", "", "known"]]
    for t in TARGETS:
        value = results[t.row][t.key] / t.scale if t.row in results else None
        sign = 1 if t.unit in MORE_IS_BETTER else -1
        verdict = "not run"
        if value is not None:
            reached, aimed = sign * (value - t.reach) >= 0, t.aim is not None and sign * (value - t.aim) >= 0
            verdict = "aim" if aimed else "reached" if reached else "missed"
        goals = [f"{goal:g} {t.unit}" if goal is not None else "" for goal in (t.reach, t.aim)]
        lines.append([t.what, "-" if value is None else f"{value:.2f} {t.unit}", *goals, verdict, t.known])
    return aligned(lines)


def value_of(result: dict[str, Any], path: str) -> Any:
    value: Any = result
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pairs = [list(zip(line, widths, strict=True)) for line in lines]
    return "\n".join("  ".join([p[0][0].ljust(p[0][1]), *(c.rjust(w) for c, w in p[1:])]).rstrip() for p in pairs)


if __name__ == "__main__":
    sys.exit(main())
