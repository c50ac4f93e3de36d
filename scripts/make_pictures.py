"""Make the pictures of README.md and docs/ from the bundled scene: docs/pictures/strip.jpg and mesh.jpg.

    python scripts/make_pictures.py                      trains for two minutes into runs/pictures, then draws
    python scripts/make_pictures.py --run runs/robot     draws a model of data/sample that is there

data/sample was made by scripts/make_sample.py and has this project's licence.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import nerf
from nerf.geometry.aim import common_up
from nerf.io.pictures import apply_colour_map, to_display
from nerf.meshing.finish import texture_mesh
from nerf.meshing.preview import render_mesh
from nerf.meshing.sides import render_six_sides

ROOT = Path(__file__).resolve().parent.parent
SIZE = 440  # pixels of a view, before its empty border is cut away
GAP, LABEL = 24, 34  # pixels between panels, and of the line below them
TEXTURE, FACES = 2048, 100_000
QUALITY = 90


def strip(panels: dict[str, np.ndarray]) -> Image.Image:
    """Pictures [h,w,3] uint8 of one size side by side on white, the name of each centred below it."""
    h, w = next(iter(panels.values())).shape[:2]
    sheet = Image.new("RGB", (len(panels) * (w + GAP) - GAP, h + LABEL), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=19)
    for i, (name, picture) in enumerate(panels.items()):
        left = i * (w + GAP)
        sheet.paste(Image.fromarray(picture), (left, 0))
        draw.text((left + w / 2, h + LABEL / 2 + 1), name, fill=(60, 60, 60), font=font, anchor="mm")
    return sheet


def cut(panels: dict[str, np.ndarray], opacity: np.ndarray, margin: int = 14) -> dict[str, np.ndarray]:
    """All pictures cut to where something is, and so many pixels around it."""
    rows, cols = (np.flatnonzero((opacity > 0.02).any(axis=axis)) for axis in (1, 0))
    window = tuple(slice(max(0, at[0] - margin), at[-1] + margin + 1) for at in (rows, cols))
    return {name: np.ascontiguousarray(picture[window]) for name, picture in panels.items()}


def coloured_depth(depth: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """[h,w,3] uint8: near is pale, far is dark, white where nothing is; faded in by the opacity."""
    low, high = np.percentile(depth[opacity > 0.9], (1, 99))
    share = opacity[..., None].clip(0, 1)
    colours = apply_colour_map(depth, low - 0.15 * (high - low), high + 0.15 * (high - low), "depth")
    return (colours * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a model of data/sample (default: train one)")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training")
    parser.add_argument("--view", type=int, default=7, help="which of the held-out views")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures", help="folder to write to")
    args = parser.parse_args()

    scene = nerf.load(ROOT / "data/sample")
    if args.run is None:
        model = nerf.train(scene, nerf.TrainConfig(minutes=args.minutes), out=ROOT / "runs/pictures", overwrite=True)
    else:
        model = nerf.Model.load(args.run / "checkpoint.safetensors")
    i = int(scene.splits["test"][args.view])
    file = Image.open(scene.path / "test" / f"{Path(scene.names[i]).stem}.png").convert("RGBA")
    photo = Image.alpha_composite(Image.new("RGBA", file.size, "white"), file).convert("RGB")
    cameras = scene.cameras.subset([i]).resized(SIZE, SIZE)
    view = model.render_image(cameras, 0)
    mesh = texture_mesh(model, scene, nerf.extract_mesh(model), TEXTURE, FACES)

    front = cameras.c2w[0, :, 2].double()  # from the subject to the camera: the side that the strip shows

    args.out.mkdir(parents=True, exist_ok=True)
    panels = {
        "photo, held out": np.asarray(photo.resize((SIZE, SIZE), Image.Resampling.LANCZOS)),
        "new view": to_display(view.color, linear=False),
        "depth": coloured_depth(view.depth, view.opacity),
        "textured mesh": to_display(render_mesh(mesh, cameras, 0, supersample=3).color, linear=False),
    }
    strip(cut(panels, view.opacity)).save(args.out / "strip.jpg", quality=QUALITY, optimize=True)
    sides = render_six_sides(mesh, front, common_up(model.cameras)[0], size=270)
    strip(sides).save(args.out / "mesh.jpg", quality=QUALITY, optimize=True)
    for name in ("strip.jpg", "mesh.jpg"):
        print(args.out / name, (args.out / name).stat().st_size, "bytes")


if __name__ == "__main__":
    main()
