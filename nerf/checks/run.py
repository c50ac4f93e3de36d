"""The check itself: cameras by themselves, then photos against cameras, lenses and masks, within a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from nerf.checks import pictures
from nerf.checks.conventions import GAIN, judge, readings
from nerf.checks.drawing import draw_pair
from nerf.checks.lenses import LensReading, best_lens, outside
from nerf.checks.looking import look_at_all
from nerf.checks.looks import SMALLEST, Look, Request
from nerf.checks.matches import Matched, Matcher, Memory
from nerf.checks.photos import MAIN, Graph, graph_of, other_order, turned, wrong_photos
from nerf.checks.residuals import FITS, Batch, of_cameras
from nerf.checks.silhouettes import mask_findings
from nerf.checks.verdict import Finding, Verdict, some
from nerf.datasets.posed import Posed
from nerf.datasets.readings import can_be_turned, read_as
from nerf.geometry.cameras import Cameras
from nerf.io.interrupts import take_signals_back

SECONDS, SECONDS_A_PHOTO = (
    10.0,
    0.05,
)  # the time that is taken at most: that, and so much for each photo beyond a hundred
LONGEST, LEAST_LONGEST = (
    640,
    404,
)  # pixels on the longer side of the pictures that are compared: so many of few photos ...
PIXELS_IN_TIME = 404**2 * 100  # ... and of many as many as two cores look at in that time
MOST = 400  # photos that are looked at; of more, every so-many-th
FEWEST_PAIRS = 6  # that show enough of the same
LOOSE = 0.0018  # of the longer side, median distance from the epipolar lines: poses good to a few pixels only ...
BESIDE = 0.012  # ... and up to which that is what they are
MIRRORED = (
    "no option mirrors them, for whether photos or poses are meant otherwise does not show: give the photos as they "
    "were taken, and poses of a right-handed world"
)
NO_PYCOLMAP = 'comparing photos needs the package pycolmap: pip install "nerf-reconstruct[capture]"'


def check_posed(
    posed: Posed,
    seconds: float | None = None,
    looks: list[Look | str | None] | None = None,
    picture: bool = False,
    memory: Memory | None = None,
    spent: float = 0.0,
) -> Verdict:
    """Ask the photos whether they fit what is given with them.

    seconds: the most time to take (None: 10 for up to a hundred photos, of which `spent` have gone by). looks: what is
    seen in the photos, where that is known already; memory: what was matched of them. picture: draw the pair that fits
    least. Raises nothing for what it finds.

    >>> from nerf.datasets import load_posed
    >>> verdict = check_posed(load_posed("data/sample"))
    >>> verdict.state in ("fits", "not judged"), verdict.is_wrong
    (True, False)
    """
    started = time.perf_counter()
    n_all = len(posed.frames)
    every = -(-n_all // MOST)
    rows = list(range(0, n_all, every))
    limit = seconds or SECONDS + SECONDS_A_PHOTO * max(0, len(rows) - 100) - spent
    names = [posed.frames[i].name for i in rows]
    verdict = Verdict("not judged", n_photos=n_all)
    verdict.findings = _of_cameras(posed.cameras, [f.name for f in posed.frames])
    asked = requests_of(posed, rows)
    widths, heights = torch.tensor([request.size for request in asked]).T.contiguous()
    cameras = posed.cameras.subset(rows).resized(widths, heights)
    largest = int(torch.maximum(widths, heights).max())
    has_features = asked[0].features
    looks = look_at_all(asked, started + 0.65 * limit) if looks is None else [looks[i] for i in rows]
    there = [k for k, look in enumerate(looks) if isinstance(look, Look)]
    seen = [look for look in looks if isinstance(look, Look)]
    names, cameras = [names[k] for k in there], cameras.subset(there)
    used = [posed.pictures[rows[k]] for k in there]
    verdict.n_looked_at = len(seen)
    poses_fit = False
    if len(seen) < 3:
        verdict.why = "fewer than three photos could be read" if has_features or seen else NO_PYCOLMAP
    elif not has_features:
        verdict.why = NO_PYCOLMAP if largest >= SMALLEST else f"the photos are only {largest} pixels large"
    else:
        import pycolmap  # noqa: F401  (here, in the main thread, where its handler of SIGTERM can be undone)

        take_signals_back()
        with _one_thread():
            matcher = Matcher(seen, cameras, started + 0.85 * limit, memory or Memory())
            full = float(posed.pictures[0].width) / float(widths[0])
            poses_fit, worst = _by_features(verdict, matcher, cameras, seen, names, full)
        if worst is not None and picture:
            verdict.picture = draw_pair(cameras, worst, (asked[there[worst.a]], asked[there[worst.b]]))
            verdict.picture_says = (
                f"{names[worst.a]} and {names[worst.b]}, the pair that fits least: matches and lines in green fit, "
                "those in red do not"
            )
    if seen:
        wrong = {name for finding in verdict.findings if finding.is_wrong for name in finding.photos}
        trusted = [k for k, name in enumerate(names) if name not in wrong] if poses_fit or not has_features else []
        verdict.findings += mask_findings(seen, used, cameras, names, trusted)
        border = pictures.black_borders(seen)
        verdict.findings += [border] if border is not None else []
    for finding in verdict.findings:  # what fits was tried on cameras that are read in another way already
        if finding.cameras_are and posed.cameras_are:
            finding.cameras_are = f"{posed.cameras_are}+{finding.cameras_are}"
    if verdict.is_wrong:
        verdict.state = "contradicts"
    verdict.seconds = time.perf_counter() - started
    return verdict


@contextmanager
def _one_thread() -> Iterator[None]:
    """Operations in one thread each: pools of threads over pairs are what uses the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def requests_of(posed: Posed, rows: list[int] | None = None) -> list[Request]:
    """What is asked of the photos of these rows (None: of all), reduced to the size at which they are compared."""
    rows = list(range(len(posed.frames))) if rows is None else rows
    longest = min(LONGEST, max(LEAST_LONGEST, round((PIXELS_IN_TIME / max(1, len(rows))) ** 0.5)))
    asked = []
    for i in rows:
        picture, frame = posed.pictures[i], posed.frames[i]
        scale = min(1.0, longest / max(picture.width, picture.height))
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        asked.append(Request(picture, size, frame.pixels, frame.mask, frame.matte))
    large = max(max(request.size) for request in asked) >= SMALLEST
    for request in asked:
        request.features = large and find_spec("pycolmap") is not None
    return asked


def _of_cameras(cameras: Cameras, names: list[str]) -> list[Finding]:
    """What the cameras say without any photo."""
    findings = []
    n, centres = len(cameras), cameras.centres
    distance = (centres - centres.median(dim=0).values).norm(dim=1)
    if n >= 3 and float(distance.max()) <= 1e-9 * max(1.0, float(centres.abs().max())):
        text = (
            "all cameras stand at one point, so nothing can be told about distances (are positions missing, or "
            "matrices transposed?)"
        )
        findings.append(
            Finding("one-point", text, [], "find the poses anew with nerf poses, or export them again", True)
        )
    elif n >= 5:
        usual = float(distance.quantile(0.8))
        far = (distance > 50 * max(usual, 1e-12)).nonzero()[:, 0].tolist()
        if far and len(far) <= 0.1 * n + 1:
            own = [names[i] for i in far]
            times = float(distance[far].max()) / max(usual, 1e-12)
            text = f"{len(far)} cameras stand up to {times:.3g} times as far away as the others ({some(own)})"
            findings.append(Finding("outlier", text, own, "leave these photos out", True))
    bad = outside(cameras)
    if bad:
        i = bad[0]
        text = (
            f"the principal point of {len(bad)} cameras lies outside their picture ({names[i]}: "
            f"{float(cameras.cx[i]):.0f}, {float(cameras.cy[i]):.0f} in {int(cameras.widths[i])}x"
            f"{int(cameras.heights[i])}): "
            "the intrinsics are for pictures of another size"
        )
        findings.append(
            Finding("principal-point", text, [names[k] for k in bad], "state the size that they are for (w, h)", True)
        )
    return findings


def _by_features(
    verdict: Verdict, matcher: Matcher, cameras: Cameras, looks: list[Look], names: list[str], full: float
) -> tuple[bool, Matched | None]:
    """Add what matches say; (whether the poses fit, the pair that does least). full: pixels of a photo for each
    of a reduced one."""
    matched = matcher.match(matcher.choose())
    strong = [p for p in matched if p.is_strong]
    if len(strong) < FEWEST_PAIRS:
        verdict.why = (
            f"only {len(strong)} pairs of photos show enough of the same (too little texture, or too far apart)"
        )
        return False, None
    graph = graph_of(cameras, strong)
    main = graph.main()
    verdict.n_pairs = len(strong)
    worst = strong[int((graph.found.shares - 1e-6 * graph.found.medians.nan_to_num(1e3)).argmin())]
    verdict.not_judged = [name for k, name in enumerate(names) if k not in graph.judged]
    longest = float(torch.maximum(cameras.widths, cameras.heights).double().median())
    off = float(graph.found.medians.nanmedian())
    verdict.pixels = off * full
    if any(f.kind == "one-point" for f in verdict.findings):
        verdict.state = "contradicts"
        return False, None
    holds = len(main) >= max(3, MAIN * len(graph.judged)) and float((graph.found.shares >= FITS).double().mean()) >= 0.4
    moves = pictures.moving(cameras, matcher, matched, otherwise=holds)
    if holds:
        verdict.state = "fits"
        found = _other_lens(cameras, graph, main, off, longest, full)
        if found is not None:
            moves = None
        else:
            verdict.findings += wrong_photos(cameras, matcher, graph, main, names)
            found = _few_pixels(off * full) if off >= LOOSE * longest else None
    else:
        verdict.state = "contradicts"
        found = None if moves else _what_would_fit(cameras, matcher, graph, names, off, longest, full)
        if found is not None and found.kind in ("contradiction", "pixels"):
            moves = pictures.moving(cameras, matcher, matched, otherwise=True)
            found = found if moves is None else None
    verdict.findings += [finding for finding in (found, moves) if finding is not None]
    verdict.findings += pictures.of_light(cameras, looks, strong, names)
    return holds and off < LOOSE * longest, worst


def _other_lens(
    cameras: Cameras, graph: Graph, main: set[int], off: float, longest: float, full: float
) -> Finding | None:
    """Whether photos that fit, but not well, do so much better with another lens."""
    if off < 0.65 * LOOSE * longest:
        return None
    within = [p for p in graph.pairs if p.a in main and p.b in main]
    lens = best_lens(cameras, Batch.of(within or graph.pairs))
    if lens.kind == "given" or lens.pixels > 0.4 * off or (lens.kind == "focal" and abs(lens.factor - 1) < 0.05):
        return None
    return _of_lens(lens, lens.pixels * full)


def _few_pixels(pixels: float) -> Finding:
    return Finding(
        "pixels",
        f"the poses are good to {pixels:.1f} pixels only",
        fix="--refine-poses corrects them while training",
        numbers={"pixels": round(pixels, 2)},
    )


def _of_lens(lens: LensReading, pixels: float) -> Finding:
    kind, words, factor = lens.kind, lens.words, lens.factor
    numbers = {"factor": round(factor, 4), "pixels": round(pixels, 2)}
    if kind == "focal" or (kind == "principal-point" and not words):
        words = f"the focal length is wrong: {factor:.3f} times the given one fits to {pixels:.1f} px"
        if kind == "principal-point":
            words += ", with the principal point in the middle"
    elif kind == "size":
        words = (
            f"the intrinsics are for pictures of another size: {factor:.3g} times their focal lengths and principal "
            f"point fit to {pixels:.1f} px"
        )
    fix = (
        "state the size that the intrinsics are for (w, h)"
        if kind == "size"
        else "correct the lens in the file of poses"
    )
    return Finding(kind, words, [], fix, True, numbers, lens.terms)


def _what_would_fit(
    cameras: Cameras, matcher: Matcher, graph: Graph, names: list[str], off: float, longest: float, full: float
) -> Finding:
    """The set as a whole does not fit: what would."""
    batch = Batch.of(graph.pairs)
    given = float(graph.found.mean)
    reading = judge(readings(cameras), cameras, batch)
    lens = best_lens(cameras, batch)
    ways = {f"turned={a}": a for a in (90, 180, 270) if can_be_turned(cameras)}
    shares = {way: float(of_cameras(read_as(cameras, way), batch).mean) for way in ways}
    shares[""] = float(of_cameras(cameras, turned(cameras, batch, 4)).mean)
    way = max(shares, key=shares.__getitem__)
    mean = shares[way]
    if mean >= given + GAIN and mean >= max(0.7, reading.mean - 0.02, lens.mean - 0.05):
        how = f"turned by {ways[way]} degrees (EXIF orientation taken twice, or not at all)" if way else "mirrored"
        kind, fix = "turned" if way else "mirrored", "give the photos as they were taken"
        return Finding(kind, f"all photos are {how}", [], fix if way else MIRRORED, True, {"share": mean}, way)
    if reading.ok >= 0.55 and reading.mean >= given + GAIN and reading.mean >= lens.mean - 0.05:
        text = f"the poses fit when they are understood as {reading.words}"
        fix, terms = "export them in the convention of the format", reading.terms
        if reading.kind == "mirrored":
            fix, terms = MIRRORED, ""
        return Finding(reading.kind, text, [], fix, True, {"share": round(reading.mean, 3)}, terms)
    fits_well = lens.pixels < 0.8 * LOOSE * longest
    if lens.kind != "given" and fits_well and lens.ok >= 0.55 and lens.mean >= given + 0.15:
        return _of_lens(lens, lens.pixels * full)
    order = other_order(cameras, matcher, graph.pairs, names) if given < 0.5 else None
    if order is not None:
        return order
    if LOOSE * longest < off < BESIDE * longest and given > 0.15:
        return _few_pixels(off * full)
    text = (
        f"the pictures contradict the cameras ({100 * given:.0f} % of the matches fit), and no other convention, "
        "lens or order explains them"
    )
    return Finding("contradiction", text, [], "find the poses anew with nerf poses", True, {"share": round(given, 3)})
