"""A radiance field of one's own: planes and lines instead of a hash grid, trained by the same loop, beside ours."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

import nerf

SAMPLE = str(Path(__file__).resolve().parent.parent / "data" / "sample")


class VectorMatrixField(nn.Module):
    """Features of a point: products of a plane's and a line's, for each axis (TensoRF: Chen et al. 2022, eq. 3), at
    several resolutions. Networks of them give density (1/scene length) and, with the direction, colour.
    """

    def __init__(self, n_features: int = 4, resolutions: Sequence[int] = (16, 32, 64, 128), seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.planes = nn.ParameterList(0.1 * torch.randn(3, n_features, r, r) for r in resolutions)
        self.lines = nn.ParameterList(torch.ones(3, n_features, r, 1) for r in resolutions)
        self.geometry = nn.Sequential(nn.Linear(3 * n_features * len(resolutions), 64), nn.ReLU(), nn.Linear(64, 16))
        self.color = nn.Sequential(nn.Linear(16 + 3, 64), nn.ReLU(), nn.Linear(64, 3))

    def hidden(self, x: Tensor) -> Tensor:
        """[s,16] at scene positions x [s,3] in [-1,1]^3."""
        across = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [1, 2]]])[:, :, None]  # [3,s,1,2]
        along = torch.stack([x[:, [2]], x[:, [1]], x[:, [0]]])[:, :, None]
        along = torch.cat([torch.zeros_like(along), along], dim=3)
        products = [
            grid_sample(plane, across, align_corners=True) * grid_sample(line, along, align_corners=True)
            for plane, line in zip(self.planes, self.lines, strict=True)
        ]
        return self.geometry(torch.cat([p[..., 0].flatten(0, 1) for p in products]).T)

    def sigmas(self, hidden: Tensor) -> Tensor:
        return (hidden[:, 0] + 3.0).clamp_max(10.0).exp()  # + 3: the silhouettes' hull starts solid, as ours does

    def density(self, x: Tensor) -> Tensor:
        return self.sigmas(self.hidden(x))

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(x)
        return self.sigmas(hidden), self.color(torch.cat([hidden, d], dim=1)).sigmoid()


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """PSNR of the held-out views (dB) of this field and of ours, after the same number of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", nargs="?", default=SAMPLE)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--downscale", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1 << 13)
    args = parser.parse_args(argv)
    scene = nerf.load(args.scene, downscale=args.downscale, quiet=True)
    # small batches and a coarse occupancy grid, for a field in plain torch is slow
    config = nerf.TrainConfig(steps=args.steps, batch_samples=args.batch, occupancy_resolution=32)
    psnr = {}
    for name, field in (("planes and lines", VectorMatrixField()), ("hash grid", None)):
        with tempfile.TemporaryDirectory() as out:
            nerf.train(scene, config, out, field=field)
            model = nerf.Model.load(out, field=None if field is None else VectorMatrixField())
        psnr[name] = nerf.evaluate(model, scene, max_views=4, show_progress=False).psnr
        print(f"{name}: {psnr[name]:.2f} dB on held-out views after {args.steps} steps")
    return psnr


if __name__ == "__main__":
    main()
