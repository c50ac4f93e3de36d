"""What the pictures themselves show: exposure that moves, things that move, black borders."""

from __future__ import annotations

import numpy as np
import torch

from nerf.checks.looks import Look
from nerf.checks.matches import FEWEST, Matched, Matcher
from nerf.checks.residuals import Batch, Rays, fits_each
from nerf.checks.verdict import Finding
from nerf.datasets.borders import DARK, black_border
from nerf.geometry.cameras import Cameras
from nerf.geometry.epipolar import pixel_rays, triangulate

STOPS = 0.7  # between the 5th and the 95th of a hundred photos, from which on exposure is said to differ
STEP, CERTAIN = 0.1, 4.0  # stops, and standard errors: a pair's difference in brightness that is none by chance
TINT = 0.3  # stops between channels, likewise
CORNER = 0.5  # stops by which corners are darker than the middle, from which on that is said
FLASH = 0.6  # stops for each doubling of the distance, from which on a flash is said to be seen; 2 without other light
_PARALLAX = 0.03  # radians between two rays that say how far away they meet
BEYOND = 1.5  # times what features of one pair scatter, pairs have to differ: shiny things do so by themselves
SURE = 0.2  # of the pairs that have to differ so
AGREE = 0.35  # of that: how far pairs may be from one gain a photo
PAIRS = 60  # that are asked whether things move
NEARLY_ALL = 0.6  # of a pair's matches, and of the pairs
STILL = 0.003  # of the longer side: a match that moved less stands still


def of_light(cameras: Cameras, looks: list[Look], pairs: list[Matched], names: list[str]) -> list[Finding]:
    """Whether matched features are brighter or of another colour in one photo than in the other, in many pairs, by more
    than surfaces change with the direction they are seen from, or darker towards the corners."""
    light = [(look.colours.astype(np.float64) / 255) ** 2.2 for look in looks]
    clear = [(look.colours.min(axis=1) > 12) & (look.colours.max(axis=1) < 243) for look in looks]
    corners = [_from_middle(cameras, k, look) for k, look in enumerate(looks)]
    rows, ratios, scatters, slopes, flashes, sure = [], [], [], [], [], 0
    for pair in pairs:
        keep = pair.inliers & clear[pair.a][pair.rows_a] & clear[pair.b][pair.rows_b]
        if (n := int(keep.sum())) >= 12:
            of_a, of_b = pair.rows_a[keep], pair.rows_b[keep]
            each = np.log2(light[pair.b][of_b] / light[pair.a][of_a])
            ratio = np.median(each, axis=0)
            grey = each.mean(axis=1) - np.median(each.mean(axis=1))
            scatter = 1.5 * float(np.median(np.abs(grey)))
            sure += abs(ratio.mean()) > max(STEP, CERTAIN * scatter / n**0.5)
            rows.append((pair.a, pair.b))
            ratios.append(ratio)
            scatters.append(scatter)
            outwards, farther = corners[pair.b][of_b] - corners[pair.a][of_a], _farther(cameras, pair, keep)
            slopes.append(_moments(outwards[:, None], grey, 3 * scatter))
            both = np.stack([outwards, farther], axis=1)[known := np.isfinite(farther)]
            flashes.append(_moments(both, grey[known], 3 * scatter))
    if len(rows) < 6:
        return []
    a, b = np.array(rows).T
    differ, usual = np.array(ratios), max(float(np.median(scatters)), STEP / 2)
    system = np.zeros((len(rows), len(looks)))
    system[np.arange(len(rows)), a], system[np.arange(len(rows)), b] = -1, 1
    weak = 0.03 * np.eye(len(looks))  # groups of photos without a pair between them keep their mean at nought
    wanted = np.concatenate([differ, np.zeros((len(looks), 3))])
    gains = np.linalg.lstsq(np.concatenate([system, weak]), wanted, rcond=None)[0]
    there = np.unique(np.concatenate([a, b]))
    grey = gains.mean(axis=1)
    spread, tint = float(_spread(grey[there])), float(_spread(gains[there] - grey[there, None]).max())
    off = float(np.median(np.abs(system @ grey - differ.mean(axis=1))))
    moves = spread >= STOPS and off <= AGREE * spread and sure >= SURE * len(rows)
    moves &= _rms(differ.mean(axis=1)) > BEYOND * usual
    tinted = tint >= TINT and _rms(differ - differ.mean(axis=1, keepdims=True)) >= TINT / 3
    (corner,), (error,) = _slopes(slopes, usual)  # stops
    together, errors = _slopes(flashes, usual)
    flash = float(together[1])  # stops for each doubling of the distance
    flashed = flash < -FLASH and abs(flash) > CERTAIN * errors[1]
    if flashed:  # what is farther away often lies nearer to the corners
        corner, error = together[0], errors[0]
    dark = bool(corner < -CORNER and abs(corner) > CERTAIN * error)
    numbers = {
        "stops": round(spread, 3),
        "off": round(off, 3),
        "tint": round(tint, 3),
        "corner": round(float(corner), 3),
        "flash": round(flash, 3),
    }
    findings = []
    if moves or tinted:
        darkest, brightest = (names[int(there[k])] for k in (grey[there].argmin(), grey[there].argmax()))
        which = f", from the darkest ({darkest}) to the brightest ({brightest})"
        said = [f"exposure differs by {spread:.1f} stops{which}"] if moves else []
        said += [f"white balance differs by {tint:.1f} stops"] if tinted else []
        text = f"the photos' {' and their '.join(said)}"
        findings.append(Finding("exposure", text, [], "training learns a gain for each photo", False, numbers))
    if dark:
        text = f"the pictures' corners are {-corner:.1f} stops darker than their middle"
        findings.append(Finding("vignetting", text, [], "training learns that of the lens", False, numbers))
    if flashed:
        text = f"what is twice as far away is {-flash:.1f} stops darker, as a flash on the camera lights it"
        findings.append(Finding("flash", text, [], "training learns how its light falls off", False, numbers))
    return findings


def _farther(cameras: Cameras, pair: Matched, keep: np.ndarray) -> np.ndarray:
    """How many times farther away matches [n] of those to keep are from the second photo than from the first, as
    logarithms to the base 2; NaN where it does not show."""
    a, b = (pixel_rays(cameras, k, torch.from_numpy(uv[keep])) for k, uv in ((pair.a, pair.uv_a), (pair.b, pair.uv_b)))
    near, far, angle = triangulate(a, b, cameras.c2w[pair.a], cameras.c2w[pair.b])
    known = (near > 0) & (far > 0) & (angle > _PARALLAX)
    return torch.where(known, (far.clamp_min(1e-12) / near.clamp_min(1e-12)).log2(), torch.nan).numpy()


def _from_middle(cameras: Cameras, k: int, look: Look) -> np.ndarray:
    """Squares of the distances [n] of features from the middle of their picture, 1 in its corners."""
    size = np.array([float(cameras.widths[k]), float(cameras.heights[k])])
    return ((2 * look.points - size) ** 2).sum(axis=1) / (size**2).sum()


def _moments(x: np.ndarray, y: np.ndarray, most: float) -> np.ndarray:
    """Sums of x x^T and of x y [k,k+1] about the means of x [n,k] and of y [n] up to `most`."""
    x = x - x.mean(axis=0) if len(x) else x
    return np.concatenate([x.T @ x, x.T @ y.clip(-most, most)[:, None]], axis=1)


def _slopes(moments: list[np.ndarray], usual: float) -> tuple[np.ndarray, np.ndarray]:
    """The slopes [k] of y by x of many pairs together, and their standard errors for a usual scatter of y."""
    total = np.sum(moments, axis=0)
    inverse = np.linalg.inv(total[:, :-1] + 1e-9 * np.eye(len(total)))
    return inverse @ total[:, -1], usual * np.sqrt(np.diag(inverse))


def _spread(values: np.ndarray) -> np.ndarray:
    """From the 5th to the 95th of a hundred [n,...]."""
    return np.percentile(values, 95, axis=0) - np.percentile(values, 5, axis=0)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def moving(cameras: Cameras, matcher: Matcher, pairs: list[Matched], otherwise: bool) -> Finding | None:
    """Whether a part of what is seen stands still while the cameras say that it moves (a turntable before a background
    that does not turn) or, if asked, moves otherwise than the rest."""
    pairs = [p for p in pairs if len(p.inliers) >= FEWEST]
    pairs = pairs[:: max(1, len(pairs) // PAIRS)]
    if not pairs:
        return None
    batch = Batch.of(pairs, inliers=False, n=128)
    good = fits_each(Rays.of(cameras, batch), cameras.c2w[batch.a], cameras.c2w[batch.b])[0].numpy()
    longest = torch.maximum(cameras.widths, cameras.heights)[batch.a].double().numpy()
    step = (batch.uv_a - batch.uv_b).norm(dim=-1).numpy() / longest[:, None]
    still = wide = apart = of = all_still = 0
    for k, pair in enumerate(pairs):
        valid = batch.valid[k].numpy()
        fits, moves, n = good[k] & valid, (step[k] > 3 * STILL) & valid, int(valid.sum())
        rests = (step[k] < STILL) & ~fits & valid
        all_still += int(rests.sum() >= max(FEWEST, NEARLY_ALL * n))
        on = int((fits & moves).sum())
        if on >= 8 and on >= 0.35 * moves.sum():  # the rest is as the cameras say, and moves
            wide += 1
            still += int(rests.sum() >= max(8, 0.1 * n))
        rest = valid & ~fits & ~rests
        if otherwise and fits.sum() >= FEWEST and n >= 2 * FEWEST:
            of += 1
            rows = Batch.spread(len(pair.inliers), batch.valid.shape[1])
            one = np.pad(pair.inliers[rows], (0, len(valid) - len(rows)))  # explained by one motion of the camera
            together = one[fits].mean() > 0.6 and one[rest].mean() > 0.6 if rest.any() else True
            if rest.sum() >= max(FEWEST, 0.12 * n) and not together:
                own = matcher.own_motion(pair.a, pair.b, batch.uv_a[k].numpy()[rest], batch.uv_b[k].numpy()[rest])
                apart += int(own.sum() >= max(FEWEST, 0.6 * rest.sum()))
    numbers = {"still": float(still), "wide": float(wide), "apart": float(apart), "of": float(of)}
    numbers |= {"all still": float(all_still)}
    if wide >= 5 and still >= max(4, 0.3 * wide):
        text = (
            f"part of what is seen stands still while the cameras move around the rest (in {still} of {wide} pairs): "
            "an object on a turntable before a background that does not turn"
        )
        return Finding("moving", text, [], "--masks with what does not turn in black", True, numbers)
    if otherwise and all_still >= max(4, NEARLY_ALL * len(pairs)):
        text = (
            f"nearly all that is recognised stands still though cameras move (in {all_still} of {len(pairs)} pairs): "
            "a background that does not turn, a frame around the picture, or one photo many times"
        )
        return Finding("moving", text, [], "--masks with what stands still in black", True, numbers)
    if of >= 6 and apart >= max(4, 0.4 * of):
        text = f"part of what is seen moves otherwise than the rest (in {apart} of {of} pairs)"
        return Finding("moving", text, [], "--masks with what moves in black", True, numbers)
    return None


def black_borders(looks: list[Look]) -> Finding | None:
    """Whether photos have black borders, as undistorting leaves them."""
    sizes: dict[tuple[int, ...], list[np.ndarray]] = {}
    for look in looks:
        if not look.alpha.size and not look.mask.size:
            sizes.setdefault(look.thumbnail.shape, []).append(look.thumbnail.max(axis=2) <= DARK)
    found = {shape: black_border(np.stack(dark)) for shape, dark in sizes.items()}
    shares = {shape: float(border.mean()) for shape, border in found.items() if border is not None}
    if not shares:
        return None
    n, worst = sum(len(sizes[shape]) for shape in shares), max(shares.values())
    text = f"{n} photos have black borders ({100 * worst:.1f} % of the picture, the same in each), which are left out"
    return Finding("black-border", text, numbers={"share": worst})
