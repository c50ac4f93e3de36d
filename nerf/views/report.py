"""OUT/report.html: one page that shows and measures a run, made from the files of the run alone; pictures and the
training curve are inside it, the video and the mesh are linked by name and lie beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from nerf import __version__
from nerf.errors import MISFITS, brief, note, printable
from nerf.io.files import page_bytes, write_file
from nerf.io.json_text import parse_json
from nerf.io.opening import opened
from nerf.io.pictures import data_uri, resized
from nerf.meshing.sides import SIDES
from nerf.training.runs import Run, read_run
from nerf.views.curve import curve_svg, curves

N_VIEWS = 4  # side-by-side pictures in the page: from the best to the worst
MUCH = 3.0  # dB by which held-out photos may be worse
SHEET_LONGEST = 1500  # pixels of an embedded side-by-side picture


def write_report(
    out: Path, notes: list[str] | None = None, failures: list[str] | None = None, seen: list[str] | None = None
) -> Path:
    """Write out/report.html from what is in `out`: run.json, training.json, eval/, video.mp4, mesh.glb, if there.

    notes: the loader's sentences on what it chose; failures: a sentence for each step that failed; seen: what stands
    out of the views that were measured. Returns the page's path. Raises UserError when the disk is full.
    """
    run = read_run(out) or Run(data="")
    training, evaluation = _json(out / "training.json"), _json(out / "eval" / "eval.json")
    title = Path(run.data).name or out.resolve().name
    parts = [
        _section(_header, title, run, training, evaluation),
        _list("What failed, and so is not here", failures or []),
        _video(out),
        _section(_views, out, evaluation),
        _section(_survey, out, seen or []),
        _section(_poses, out / "dataset"),
        _section(_check, out),
        _section(_curve, training),
        _section(_mesh, out),
        _section(_protocol, run, training, evaluation),
        _list("What the loader chose", notes or []),
        _files(out),
    ]
    body = "\n".join(part for part in parts if part)
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    for name, text in {"TITLE": _e(title), "VERSION": _e(__version__), "BODY": body}.items():
        page = page.replace(f"@{name}@", text, 1)
    path = out / "report.html"
    write_file(path, page_bytes(page))
    return path


def _e(text: object) -> str:
    """Plain text for a page, with nothing in it that a browser would obey."""
    return escape(printable(text))


def _section(make: Callable[..., str], *about: Any) -> str:
    """What `make` says of the files of a run; nothing, and a note, where they hold something else than this program
    writes: the rest is still worth a report."""
    try:
        return make(*about)
    except (*MISFITS, OSError, SyntaxError) as error:  # Pillow's are the last two
        note(f"report: the part {make.__name__.strip('_')} is left out, for its files are damaged ({brief(error)})")
        return ""


def _json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none or it is damaged: the rest is still worth a report."""
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        note(f"report: {path} is left out ({brief(error)})")
        return {}
    return content if isinstance(content, dict) else {}


def _header(title: str, run: Run, training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    about = evaluation.get("protocol", {})
    tiles = []
    if evaluation:
        kind = "held-out" if about.get("held_out") else "training"
        tiles.append(
            (_number(evaluation.get("psnr"), 2), "dB PSNR", f"mean of {evaluation.get('n_views')} {kind} views")
        )
        tiles.append((_number(evaluation.get("ssim"), 3), "SSIM", "1 is identical"))
        if evaluation.get("render_seconds_per_view"):
            size = about.get("resolution") or [""]
            tiles.append((_number(evaluation["render_seconds_per_view"], 2), "s a view", f"rendering at {size[0]}"))
    seconds, steps = _training_time(training, about)
    if seconds:
        tiles.append((_duration(seconds), "training", f"{steps:,} steps" if steps else ""))
    tile = '<div class="tile"><b>{}</b> <span>{}</span><p>{}</p></div>'
    cards = "".join(tile.format(*map(_e, words)) for words in tiles)
    sentence = _e(held_out_sentence(run, evaluation))
    return f'<header><h1>{_e(title)}</h1><p>{sentence}</p></header><div class="tiles">{cards}</div>'


def held_out_sentence(run: Run, evaluation: dict[str, Any]) -> str:
    """Whether views were held out, how many, and so what the numbers mean."""
    if run.images and run.held_out_views:
        held_out = f"{run.held_out_views} were held out and never trained on"
        return f"{run.images} images, of which {held_out}; the numbers are of these."
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
    text = (
        '<section><h2>New views</h2><video src="video.mp4" controls autoplay loop muted playsinline></video>'
        '<p class="caption">Rendered along a path that no photo was taken from (video.mp4).</p></section>'
    )
    return text if (out / "video.mp4").exists() else ""


def _views(out: Path, evaluation: dict[str, Any]) -> str:
    measured = [view for view in evaluation.get("views", []) if view.get("psnr") is not None]
    if not measured:
        return ""
    from nerf.training.evaluation import ERROR_HIGH, picture_name

    measured.sort(key=lambda view: -view["psnr"])
    n = min(N_VIEWS, len(measured))
    chosen = sorted({round(k * (len(measured) - 1) / max(1, n - 1)) for k in range(n)})
    figures = ""
    for rank in chosen:
        view = measured[rank]
        place = "best" if rank == 0 else "worst" if rank == len(measured) - 1 else f"rank {rank + 1} of {len(measured)}"
        text = f"{view['name']}: {_number(view['psnr'], 2)} dB, SSIM {_number(view.get('ssim'), 3)} ({place})"
        figures += _figure(out / "eval" / picture_name(view["index"], view["name"]), text)
    if not figures:
        return ""
    intro = (
        f"From the best to the worst of {len(measured)} views: the photo, the rendered view and the "
        f"absolute difference, black for none and pale yellow from {ERROR_HIGH:g} of full range up. All lie in eval/."
    )
    return f"<section><h2>Truth, render, error</h2><p>{_e(intro)}</p>{figures}</section>"


def _survey(out: Path, seen: list[str]) -> str:
    """What `write_survey` left: pictures, and what stands out in words."""
    captions = {
        "inside": "A view of middling quality and the worst one: colour, depth from light (near) to dark, normals",
        "above": "From above: where photos were taken, and how good views from held-out places are",
        "exposure": "How much brighter than the mean each photo is",
    }
    figures = "".join(_figure(out / "survey" / f"{name}.png", words) for name, words in captions.items())
    lines = "".join(f"<li>{_e(line)}.</li>" for line in seen)
    listed = f"<ul>{lines}</ul>" if lines else ""
    return f"<section><h2>What stands out</h2>{listed}{figures}</section>" if figures or listed else ""


def _figure(path: Path, caption: str) -> str:
    """A picture file inside the page; nothing where it is missing."""
    if not path.is_file():
        return ""
    with opened(path) as picture_file:
        picture = resized(np.asarray(picture_file.convert("RGB")), SHEET_LONGEST)
    (h, w), text = picture.shape[:2], _e(caption)
    image = f'<img src="{data_uri(picture)}" width="{w}" height="{h}" alt="{text}" loading="lazy">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _poses(dataset: Path) -> str:
    """Of photos without poses: what was found, seen from above, and which photos hang together where not all do."""
    said = _json(dataset / "poses.json").get("summary")
    if not isinstance(said, list):
        return ""
    lines = "".join(f"<li>{_e(line)}</li>" for line in said)
    figures = _figure(dataset / "coverage.png", "Where the photos were taken, from above") + _figure(
        dataset / "groups.png", "Photos that hang together, a row for each group"
    )
    return f"<section><h2>Poses</h2><ul>{lines}</ul>{figures}</section>"


def _check(out: Path) -> str:
    said = _json(out / "check.json").get("paragraph")
    if not isinstance(said, str):
        return ""
    picture = str(_json(out / "check.json").get("picture_says", ""))
    figure = _figure(out / "check.png", picture)
    return f"<section><h2>Photos against cameras</h2><p>{_e(said)}</p>{figure}</section>"


def _curve(training: dict[str, Any]) -> str:
    found = curves(training)
    if not found:
        return ""
    says = "PSNR over the time of training, of pixels of the photos that were trained on"
    if "held_out" in found:
        says += "; orange: of the held-out photos, which is what new views look like"
        gap = found["psnr"][-1][1] - found["held_out"][-1][1]
        if gap > MUCH:
            says += (
                f". That is {gap:.0f} dB less, so the photos were learnt, and not what they show: either they do not "
                "fit their poses, or few of them show each place, or light and things moved"
            )
    return f'<section><h2>Training</h2>{curve_svg(found)}<p class="caption">{says}.</p></section>'


def _mesh(out: Path) -> str:
    path = out / "mesh.glb"
    if not path.exists():
        return ""
    figures = "".join(_figure(out / "mesh_views" / f"{name}.png", name) for name in SIDES)
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
    of_run = {"data": run.data, "images": run.images, "views held out": run.held_out_views}
    rows: dict[str, Any] = of_run if run.data else {}
    about = dict(evaluation.get("protocol", {}))
    machine = about.pop("machine", training.get("machine") or {})
    rows |= {_LABELS.get(name, name.replace("_", " ")): value for name, value in about.items() if name != "data"}
    if evaluation:
        rows["mean colour-corrected PSNR"] = f"{_number(evaluation.get('psnr_colour_corrected'), 2)} dB"
    rows |= {name.replace("_", " "): value for name, value in machine.items()}
    if not rows:
        return ""
    body = "".join(f"<tr><th>{_e(name)}</th><td>{_e(_said(name, value))}</td></tr>" for name, value in rows.items())
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
    name = _e(shlex.quote(str(out)))
    commands = (
        f"nerf render {name} --path interpolate -o flight.mp4\n"
        f"nerf render {name} --modes color depth normal -o pictures\n"
        f"nerf mesh {name} -o mesh.ply\n"
    )
    table = f"<table>{rows}</table>" if rows else ""
    return f"<section><h2>Files, and what next</h2>{table}<pre>{commands}</pre></section>"


def _training_time(training: dict[str, Any], about: dict[str, Any]) -> tuple[float, int]:
    stated = about.get("training", {})
    seconds, steps = (training.get(name) or stated.get(name) or 0 for name in ("seconds", "steps"))
    known = isinstance(seconds, (int, float)) and isinstance(steps, (int, float))
    return (float(seconds), int(steps)) if known else (0.0, 0)


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
