"""OUT/report.html: one page that shows and measures a run, made from the files of the run alone.

Pictures and the training curve are inside the page; the video and the mesh are linked by name and lie beside it.
"""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerf import __version__
from nerf.errors import note
from nerf.io.files import write_file
from nerf.io.pictures import data_uri, resized
from nerf.meshing.sides import SIDES
from nerf.training.runs import Run, read_run
from nerf.views.curve import curve_points, curve_svg

N_VIEWS = 4  # side-by-side pictures in the page: from the best to the worst
SHEET_LONGEST = 1500  # pixels of an embedded side-by-side picture


def write_report(out: Path, notes: list[str] | None = None) -> Path:
    """Write out/report.html from what is in `out`: run.json, training.json, eval/, video.mp4, mesh.glb, if there.

    notes: the loader's sentences on what it chose. Returns the page's path. Raises UserError when the disk is full.
    """
    run = read_run(out) or Run(data="")
    training, evaluation = _json(out / "training.json"), _json(out / "eval" / "eval.json")
    title = Path(run.data).name or out.resolve().name
    parts = [
        _header(title, run, training, evaluation),
        _video(out),
        _views(out, evaluation),
        _curve(training),
        _mesh(out),
        _protocol(run, training, evaluation),
        _list("What the loader chose", notes or []),
        _files(out),
    ]
    body = "\n".join(part for part in parts if part)
    page = _PAGE.format(title=_e(title), style=_STYLE, body=body, version=_e(__version__))
    path = out / "report.html"
    write_file(path, page)
    return path


def _json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none or it is damaged: the rest is still worth a report."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        note(f"report: {path} is left out ({error})")
        return {}
    return content if isinstance(content, dict) else {}


# ---- the sections


def _header(title: str, run: Run, training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    about = evaluation.get("protocol", {})
    tiles = []
    if evaluation:
        kind = "held-out" if about.get("held_out") else "training"
        tiles += [
            (_number(evaluation.get("psnr"), 2), "dB PSNR", f"mean of {evaluation.get('n_views')} {kind} views"),
            (_number(evaluation.get("ssim"), 3), "SSIM", "1 is identical"),
        ]
        if evaluation.get("render_seconds_per_view"):
            size = about.get("resolution") or [""]
            tiles.append((_number(evaluation["render_seconds_per_view"], 2), "s a view", f"rendering at {size[0]}"))
    seconds, steps = _training_time(training, about)
    if seconds:
        tiles.append((_duration(seconds), "training", f"{steps:,} steps" if steps else ""))
    cards = "".join(
        f'<div class="tile"><b>{_e(value)}</b> <span>{_e(unit)}</span><p>{_e(says)}</p></div>'
        for value, unit, says in tiles
    )
    sentence = _e(held_out_sentence(run, evaluation))
    return f'<header><h1>{_e(title)}</h1><p>{sentence}</p></header><div class="tiles">{cards}</div>'


def held_out_sentence(run: Run, evaluation: dict[str, Any]) -> str:
    """Whether views were held out, how many, and so what the numbers mean."""
    if run.images and run.held_out_views:
        return (
            f"{run.images} images, of which {run.held_out_views} were held out and never trained on; "
            "the numbers are of these."
        )
    if run.images:
        return (
            f"{run.images} images, all of them trained on: no view was held out, so the numbers are of views that the "
            "model has seen and say little about new ones (--holdout 8 holds every 8th out)."
        )
    if evaluation:
        held = evaluation.get("protocol", {}).get("held_out")
        return "The numbers are of held-out views." if held else "The numbers are of views that were trained on."
    return "Nothing was measured."


def _video(out: Path) -> str:
    if not (out / "video.mp4").exists():
        return ""
    return (
        '<section><h2>New views</h2><video src="video.mp4" controls autoplay loop muted playsinline></video>'
        '<p class="caption">Rendered along a path that no photo was taken from (video.mp4).</p></section>'
    )


def _views(out: Path, evaluation: dict[str, Any]) -> str:
    measured = [view for view in evaluation.get("views", []) if view.get("psnr") is not None]
    if not measured:
        return ""
    from nerf.training.evaluation import ERROR_HIGH, picture_name

    measured.sort(key=lambda view: -view["psnr"])
    n = min(N_VIEWS, len(measured))
    chosen = sorted({round(k * (len(measured) - 1) / max(1, n - 1)) for k in range(n)})
    figures = []
    for rank in chosen:
        view = measured[rank]
        path = out / "eval" / picture_name(view["index"], view["name"])
        if not path.is_file():
            continue
        with Image.open(path) as sheet:
            picture = resized(np.asarray(sheet.convert("RGB")), SHEET_LONGEST)
        place = "best" if rank == 0 else "worst" if rank == len(measured) - 1 else f"rank {rank + 1} of {len(measured)}"
        text = f"{view['name']}: {_number(view['psnr'], 2)} dB, SSIM {_number(view.get('ssim'), 3)} ({place})"
        figures.append(_figure(picture, text))
    if not figures:
        return ""
    intro = (
        f"From the best to the worst of {len(measured)} views: the photo, the rendered view and the "
        f"absolute difference, black for none and pale yellow from {ERROR_HIGH:g} of full range up. All lie in eval/."
    )
    return f"<section><h2>Truth, render, error</h2><p>{_e(intro)}</p>{''.join(figures)}</section>"


def _figure(picture: np.ndarray, caption: str) -> str:
    h, w = picture.shape[:2]
    text = _e(caption)
    return (
        f'<figure><img src="{data_uri(picture)}" width="{w}" height="{h}" alt="{text}" loading="lazy">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _curve(training: dict[str, Any]) -> str:
    points = curve_points(training)
    if len(points) < 2:
        return ""
    return (
        "<section><h2>Training</h2>"
        + curve_svg(points)
        + '<p class="caption">PSNR of the pixels being trained on, over the time of training.</p></section>'
    )


def _mesh(out: Path) -> str:
    path = out / "mesh.glb"
    if not path.exists():
        return ""
    figures = ""
    for name in SIDES:
        picture = out / "mesh_views" / f"{name}.png"
        if picture.is_file():
            with Image.open(picture) as opened:
                figures += _figure(np.asarray(opened.convert("RGB")), name)
    turned = '<a href="mesh.html">turn it in the browser</a>; ' if (out / "mesh.html").exists() else ""
    count = triangles(path)
    says = _size(path.stat().st_size) + (f", {count:,} triangles" if count else "")
    return (
        f'<section><h2>Mesh</h2><p><a href="mesh.glb">mesh.glb</a>, {says}, in the frame of the photos\' poses; '
        f'{turned}it opens in Blender, MeshLab and most viewers.</p><div class="grid">{figures}</div></section>'
    )


def triangles(glb: Path) -> int:
    """The number of triangles that a GLB file declares; 0 where it cannot be told."""
    try:
        with glb.open("rb") as file:
            header = file.read(20)
            content = json.loads(file.read(int.from_bytes(header[12:16], "little")))
        primitives = [p for mesh in content["meshes"] for p in mesh["primitives"]]
        return sum(content["accessors"][p["indices"]]["count"] // 3 for p in primitives)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


def _protocol(run: Run, training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    rows: dict[str, Any] = (
        {"data": run.data, "images": run.images, "views held out": run.held_out_views} if run.data else {}
    )
    about = dict(evaluation.get("protocol", {}))
    machine = about.pop("machine", training.get("machine") or {})
    rows |= {_LABELS.get(name, name.replace("_", " ")): value for name, value in about.items() if name != "data"}
    if evaluation:
        rows["mean colour-corrected PSNR"] = f"{_number(evaluation.get('psnr_colour_corrected'), 2)} dB"
    rows |= {name.replace("_", " "): value for name, value in machine.items()}
    if not rows:
        return ""
    cells = ((_e(name), _e(_said(name, value))) for name, value in rows.items())
    body = "".join(f"<tr><th>{name}</th><td>{says}</td></tr>" for name, says in cells)
    return f"<section><h2>Protocol</h2><p>What the numbers above stand for.</p><table>{body}</table></section>"


_LABELS = {  # of the protocol's keys, where the key alone would puzzle
    "held_out": "views kept out of training",
    "n_views": "views measured",
    "n_views_in_split": "views in the split",
    "n_train_views": "views trained on",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "psnr_colour_corrected": "colour-corrected PSNR",
}


def _list(title: str, lines: list[str]) -> str:
    items = "".join(f"<li>{_e(line)}</li>" for line in lines)
    return f"<section><h2>{_e(title)}</h2><ul>{items}</ul></section>" if lines else ""


def _files(out: Path) -> str:
    says = {
        "checkpoint.safetensors": "the model; nerf render, nerf mesh and nerf eval take it",
        "video.mp4": "the video above",
        "mesh.glb": "the mesh",
        "mesh.html": "the mesh in a page of its own, to turn in any browser",
        "eval/eval.json": "every number with its protocol",
        "training.json": "the training curve",
    }
    rows = "".join(
        f'<tr><th><a href="{name}">{name}</a></th><td>{_size((out / name).stat().st_size)}</td><td>{text}</td></tr>'
        for name, text in says.items()
        if (out / name).is_file()
    )
    name = _e(str(out))
    commands = (
        f"nerf render {name} --path interpolate -o flight.mp4\n"
        f"nerf render {name} --modes color depth normal -o pictures\n"
        f"nerf mesh {name} -o mesh.ply\n"
    )
    table = f"<table>{rows}</table>" if rows else ""
    return f"<section><h2>Files, and what next</h2>{table}<pre>{commands}</pre></section>"


# ---- words


def _e(text: str) -> str:
    return html.escape(text)


def _training_time(training: dict[str, Any], about: dict[str, Any]) -> tuple[float, int]:
    stated = about.get("training", {})
    seconds = training.get("seconds") or stated.get("seconds") or 0
    steps = training.get("steps") or stated.get("steps") or 0
    return (
        (float(seconds), int(steps))
        if isinstance(seconds, (int, float)) and isinstance(steps, (int, float))
        else (0.0, 0)
    )


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min" + (f" {rest} s" if rest and minutes < 10 else "")


def _size(n: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" or n >= 100 else f"{n:.1f} {unit}"
        n = n / 1000  # type: ignore[assignment]
    return f"{n:.1f} GB"


def _said(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith("bytes") and isinstance(value, int):
        return _size(value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_said(k, v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_said(name, v) for v in value[:6]) + (f" and {len(value) - 6} more" if len(value) > 6 else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c21; --soft: #62626b; --paper: #fbfaf8; --card: #fff; --line: #e4e2dd;
  --accent: #b5361c; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececee; --soft: #a0a0aa; --paper: #17171a; --card: #202025;
  --line: #34343b; --accent: #ff8a5c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 2.3rem; line-height: 1.15; margin: 0 0 8px; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 10px; letter-spacing: -0.01em; }
header p { color: var(--soft); max-width: 70ch; margin: 0; }
section { margin-top: 44px; }
section > p { color: var(--soft); max-width: 75ch; margin: 0 0 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin-top: 24px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.tile b { font-size: 1.9rem; font-weight: 650; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); }
.tile p { margin: 2px 0 0; color: var(--soft); font-size: 0.88rem; }
video { display: block; width: min(100%, 720px); max-height: 80vh; border-radius: 10px; background: #000; }
figure { margin: 0 0 18px; }
figure img { display: block; width: 100%; height: auto; border-radius: 10px; border: 1px solid var(--line);
  background: #fff; }
figcaption, .caption, section > p.caption { color: var(--soft); font-size: 0.88rem; margin-top: 6px; }
.grid { display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px; }
svg { display: block; width: 100%; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  font: 12px system-ui, sans-serif; }
svg text { fill: var(--soft); }
svg .rule { stroke: var(--line); }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
table { width: 100%; border-collapse: collapse; font-size: 0.93rem; }
th { text-align: left; font-weight: 500; color: var(--soft); width: 30%; }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; overflow-x: auto;
  font: 0.88rem/1.6 ui-monospace, monospace; }
ul { padding-left: 1.2em; margin: 0; color: var(--soft); }
a { color: var(--accent); }
footer { margin-top: 48px; color: var(--soft); font-size: 0.85rem; }
@media (max-width: 640px) { .grid { grid-template-columns: repeat(2, 1fr); } main { padding: 24px 16px; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - reconstruction</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
<footer>Made by nerf {version}.</footer>
</main>
</body>
</html>
"""
