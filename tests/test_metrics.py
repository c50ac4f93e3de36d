"""Picture metrics against closed forms and against scikit-image."""

from __future__ import annotations

import math

import pytest
import torch

from nerf.rendering.metrics import colour_correct, psnr, ssim


def picture(h: int = 40, w: int = 53, seed: int = 0) -> torch.Tensor:
    """Smooth structure plus noise: SSIM of pure noise would test little."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.linspace(0, 3, h), torch.linspace(0, 4, w), indexing="ij")
    smooth = torch.stack([rows.sin() ** 2, columns.cos() ** 2, (rows * columns).sin() ** 2], dim=-1)
    return (0.8 * smooth + 0.2 * torch.rand(h, w, 3, generator=generator)).float()


def test_psnr_closed_forms() -> None:
    truth = torch.full((4, 5, 3), 0.5)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-5)  # MSE 0.01
    assert psnr(truth, truth) == math.inf
    # Both sides are clipped first: 1.5 counts as 1, so the error is 0.5.
    half = torch.full((2, 2, 3), 0.5)
    assert psnr(half + 1, half) == pytest.approx(-10 * math.log10(0.25), abs=1e-9)


def test_psnr_mask_counts_only_its_pixels() -> None:
    truth = torch.zeros(2, 2, 3)
    rendered = truth.clone()
    rendered[0, 0] = 0.1
    rendered[1, 1] = 1.0
    mask = torch.tensor([[True, False], [False, False]])
    assert psnr(rendered, truth, mask) == pytest.approx(20.0, abs=1e-5)
    assert math.isnan(psnr(rendered, truth, torch.zeros(2, 2, dtype=torch.bool)))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="must agree"):
        psnr(torch.zeros(2, 2, 3), torch.zeros(2, 3, 3))
    with pytest.raises(ValueError, match="11x11"):
        ssim(torch.zeros(10, 20, 3), torch.zeros(10, 20, 3))
    with pytest.raises(ValueError, match="degree"):
        colour_correct(torch.zeros(2, 2, 3), torch.zeros(2, 2, 3), degree=3)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_ssim_agrees_with_scikit_image(noise: float) -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    truth = picture().double()
    rendered = (truth + noise * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    theirs = structural_similarity(
        rendered.numpy(),
        truth.numpy(),
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    # Both in float64: only the order of sums differs.
    assert ssim(rendered, truth) == pytest.approx(theirs, abs=1e-9)


def test_ssim_of_equal_and_of_masked_pictures() -> None:
    truth = picture()
    assert ssim(truth, truth) == pytest.approx(1.0, abs=1e-12)
    rendered = truth.clone()
    rendered[:, 30:] = 0
    mask = torch.zeros(truth.shape[:2], dtype=torch.bool)
    mask[:, :20] = True  # windows reach 5 pixels further, still left of column 30
    assert ssim(rendered, truth, mask) == pytest.approx(1.0, abs=1e-12)
    assert ssim(rendered, truth) < 0.9


def test_colour_correction_undoes_a_quadratic_change() -> None:
    rendered = 0.2 + 0.5 * picture()
    truth = 0.05 + 0.7 * rendered + 0.2 * rendered**2
    assert psnr(rendered, truth) < 30
    # The ridge of 1e-9 per pixel leaves a trace of the change; 90 dB is far beyond anything that is ever reported.
    assert psnr(colour_correct(rendered, truth), truth) > 90
    affine_truth = 0.1 + 0.6 * rendered[..., [1, 0, 2]]
    assert psnr(colour_correct(rendered, affine_truth, degree=1), affine_truth) > 90


@pytest.mark.parametrize("seed", range(4))
def test_colour_correction_never_makes_it_worse(seed: int) -> None:
    rendered, truth = picture(seed=seed), picture(seed=seed + 10).roll(7, 1)
    assert psnr(colour_correct(rendered, truth), truth) >= psnr(rendered, truth) - 1e-9


def test_colour_correction_of_flat_pictures_is_finite() -> None:
    white = torch.ones(12, 12, 3)
    assert torch.equal(colour_correct(white, white), white)
    assert colour_correct(torch.zeros(12, 12, 3), white).isfinite().all()


def test_colour_correction_cannot_repair_structure() -> None:
    truth = picture()
    assert psnr(colour_correct(truth.flip(0), truth), truth) < 25
