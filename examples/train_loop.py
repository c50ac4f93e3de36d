"""The training loop written out from public parts: what `nerf.train(..., loss=nerf.SceneLoss())` does to photos with
alpha, to the bit (with no loss named, native code takes the same steps with other pixels).

Left out are what other scenes need (unbounded space, masks, depths), corrections of poses and exposures, stopping and
going on. Lengths are scene units; colours are those of the files.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

import nerf

SAMPLE = str(Path(__file__).resolve().parent.parent / "data" / "sample")


def train(scene: nerf.Scene, steps: int, seed: int = 0) -> nerf.Model:
    """A model of the scene's training images after so many steps of Adam."""
    images = scene.splits["train"]
    schedule, n_rays = nerf.Schedule(), 1024

    # 1. what is learnt, and where rays look for it
    field = nerf.RadianceField(nerf.default_field(scene), seed=seed)
    occupancy = nerf.OccupancyGrid(initial_density=math.exp(field.options.density_bias))
    occupancy.restrict(nerf.visible_cells(scene, images))
    marching = nerf.default_marching(scene)
    optimiser = nerf.FieldOptimiser(field)
    sampler, random = nerf.PixelSampler(scene, images), torch.Generator()
    compare = nerf.SceneLoss(scene.linear, scene.exposure)

    for step in range(steps):
        progress = step / steps
        random.manual_seed(seed * 1_000_003 + step)

        # 2. every few steps: which cells are empty, and where the error is large
        if step % schedule.occupancy_every == 0:
            budget, everywhere = 1 << (18 if step < 256 else 17), step in schedule.occupancy_everywhere
            occupancy.update(field.density, marching.step_size, random, budget, everywhere)
        if schedule.updates_importance(step):
            sampler.update_importance(schedule.importance)

        # 3. pixels, over random backgrounds so that what is transparent looks so on any
        batch = sampler.draw(n_rays, random)
        batch.background = torch.rand(n_rays, 3, generator=random)
        batch.surface = 0.6 * schedule.surface_fade(progress)

        # 4. their rays; view dependence is disabled at first
        rays_o, rays_d = scene.cameras.rays(batch.image_ids, batch.rows, batch.cols, scene.scene_from_world)
        viewdirs = None
        if schedule.is_diffuse(step, steps):
            viewdirs = torch.nn.functional.normalize(torch.randn(n_rays, 3, generator=random), dim=1)

        # 5. what they see
        rendered = nerf.render_rays(
            *(field, occupancy, marching, rays_o, rays_d),
            jitter=nerf.ray_jitter(seed, step, n_rays),
            step_scale=schedule.step_scale_at(step, progress),
            viewdirs=viewdirs,
            grad_accumulator=optimiser.grad_accumulator,
        )

        # 6. the loss, back, and Adam
        compare(rendered, batch).backward()
        optimiser.step(schedule.learning_rate_at(progress), step)

        # 7. remember where the error is, and do the same work in the next step
        errors = compare.errors(rendered, batch)
        sampler.record(batch, errors)
        wanted = (3 << 13) * schedule.batch_factor(step)
        n_rays = nerf.next_n_rays(n_rays, wanted, int(rendered.kept) + int(rendered.evaluated) / 3, most=1 << 16)
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}: PSNR {-10 * math.log10(float(errors.mean())):.2f} dB of a batch")

    white = torch.ones(3)
    return nerf.Model(field, occupancy, marching, scene.scene_from_world, scene.cameras.subset(images), white)


def main(argv: Sequence[str] | None = None) -> nerf.Model:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", nargs="?", default=SAMPLE)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--downscale", type=int, default=8)
    args = parser.parse_args(argv)
    scene = nerf.load(args.scene, downscale=args.downscale, quiet=True)
    model = train(scene, args.steps)
    view = model.render_image(scene.cameras, int(scene.splits["test"][0]))
    print(f"rendered a held-out view of {view.color.shape[1]}x{view.color.shape[0]} pixels")
    return model


if __name__ == "__main__":
    main()
