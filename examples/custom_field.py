"""A radiance field of one's own: planes and lines instead of a hash grid, trained by the same loop, beside ours."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, softplus

import nerf


class VectorMatrixField(nn.Module):
    """Features of a point: products of a plane's and a line's, for each axis (TensoRF: Chen et al. 2022, eq. 3).

    Density (1/scene length) is from their sum, colour from a small network of them and the direction.
    """

    def __init__(self, n_features: int = 16, resolution: int = 128, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.planes = nn.Parameter(0.3 * torch.randn(3, n_features, resolution, resolution))
        self.lines = nn.Parameter(0.3 * torch.randn(3, n_features, resolution, 1))
        self.geometry = nn.Linear(3 * n_features, 1)
        self.color = nn.Sequential(nn.Linear(3 * n_features + 3, 64), nn.ReLU(), nn.Linear(64, 3))

    def features(self, x: Tensor) -> Tensor:
        """[s, 3 n_features] at scene positions x [s,3] in [-1,1]^3."""
        across = torch.stack([x[:, [0, 1]], x[:, [0, 2]], x[:, [1, 2]]])[:, :, None]  # [3,s,1,2]
        along = torch.stack([x[:, [2]], x[:, [1]], x[:, [0]]])[:, :, None]
        along = torch.cat([torch.zeros_like(along), along], dim=3)
        both = [grid_sample(t, at, align_corners=True) for t, at in ((self.planes, across), (self.lines, along))]
        return (both[0] * both[1])[..., 0].flatten(0, 1).T

    def density(self, x: Tensor) -> Tensor:
        return 10.0 * softplus(self.geometry(self.features(x))[:, 0])

    def forward(self, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        sigmas = 10.0 * softplus(self.geometry(features)[:, 0])
        return sigmas, self.color(torch.cat([features, d], dim=1)).sigmoid()


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """PSNR of the held-out views (dB) of this field and of ours, after the same number of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", nargs="?", default="data/sample")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--downscale", type=int, default=4)
    args = parser.parse_args(argv)
    scene, config = nerf.load(args.scene, downscale=args.downscale, quiet=True), nerf.TrainConfig(steps=args.steps)
    psnr = {}
    for name, field in (("planes and lines", VectorMatrixField()), ("hash grid", None)):
        with tempfile.TemporaryDirectory() as out:
            nerf.train(scene, config, out, field=field)
            model = nerf.Model.load(out, field=None if field is None else VectorMatrixField())
        psnr[name] = nerf.evaluate(model, scene, max_views=4, show_progress=False)["psnr"]
        print(f"{name}: {psnr[name]:.2f} dB on held-out views after {args.steps} steps")
    return psnr


if __name__ == "__main__":
    main()
