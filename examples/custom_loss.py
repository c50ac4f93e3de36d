"""A loss of one's own: absolute differences of colours, and rays whose light stops in one place (distortion loss)."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import nerf

SAMPLE = str(Path(__file__).resolve().parent.parent / "data" / "sample")


def loss(rendered: nerf.RenderedRays, batch: nerf.PixelBatch) -> Tensor:
    """Charbonnier's loss of the colours [n,3], and the distortion loss of Mip-NeRF 360 (Barron et al. 2022, eq. 15)."""
    difference = rendered.over(batch.background) - batch.targets
    colors = (difference.square() + 1e-6).sqrt().mean()
    return colors + 0.01 * rendered.distortions.mean()


def main(argv: Sequence[str] | None = None) -> float:
    """PSNR of the held-out views (dB)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", nargs="?", default=SAMPLE)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--downscale", type=int, default=8)
    args = parser.parse_args(argv)
    scene = nerf.load(args.scene, downscale=args.downscale, quiet=True)
    with tempfile.TemporaryDirectory() as out:
        model = nerf.train(scene, nerf.TrainConfig(steps=args.steps), out, loss=loss)
    psnr = nerf.evaluate(model, scene, max_views=3, show_progress=False).psnr
    print(f"{psnr:.2f} dB on held-out views after {args.steps} steps")
    return psnr


if __name__ == "__main__":
    main()
