"""The torch reference of compositing, rendering and the optimiser, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import F32, F64, composite, pack, rand, random_samples, rng, small_field, unit_vectors
from march_definition import march_at_once
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from nerf.kernels import reference
from nerf.kernels.records import AdamState, AdamStep, FieldConfig, FieldParams, FieldView, MarchSettings, Rays, Samples


def naive_composite(
    samples: Samples, sigmas: Tensor, rgbs: Tensor, stop_threshold: float = 0.0
) -> dict[str, list[float] | list[list[float]]]:
    """Front to back, sample by sample, in Python floats; the distortion as its double sum."""
    keys = ("foregrounds", "opacities", "depths", "second_moments", "distortions", "median_depths")
    out: dict[str, list] = {key: [] for key in keys} | {"weights": [], "trans": []}
    for first, count in samples.packed_info.tolist():
        ids = range(first, first + count)
        trans, median, ws, ms = 1.0, 0.0, [], []
        for i in ids:
            dt = (samples.t_ends[i] - samples.t_starts[i]).item()
            mid = (samples.t_ends[i] + samples.t_starts[i]).item() / 2
            alpha = 1 - math.exp(-sigmas[i].item() * dt)
            w = trans * alpha if trans >= stop_threshold else 0.0
            out["trans"].append(trans)
            out["weights"].append(w)
            if median == 0 and sum(ws) + w >= 0.5:
                median = samples.t_starts[i].item() + math.log(2 * trans) / sigmas[i].item()
            ws.append(w)
            ms.append(mid)
            trans *= 1 - alpha
        out["foregrounds"].append([sum(w * rgbs[i, c].item() for w, i in zip(ws, ids, strict=True)) for c in range(3)])
        out["opacities"].append(sum(ws))
        out["depths"].append(sum(w * m for w, m in zip(ws, ms, strict=True)))
        moments = (w * sum(rgbs[i, c].item() ** 2 for c in range(3)) for w, i in zip(ws, ids, strict=True))
        out["second_moments"].append(sum(moments))
        pairs = sum(a * b * abs(m - n) for a, m in zip(ws, ms, strict=True) for b, n in zip(ws, ms, strict=True))
        own = sum(w * w * (samples.t_ends[i] - samples.t_starts[i]).item() for w, i in zip(ws, ids, strict=True))
        out["distortions"].append(pairs + own / 3)
        out["median_depths"].append(median)
    return out


COUNTS = [3, 0, 1, 17, 0, 0, 8, 2]


@pytest.mark.parametrize("stop_threshold", [0.0, 0.3])
def test_composite_equals_naive(stop_threshold: float) -> None:
    samples, sigmas, rgbs = random_samples(COUNTS)
    out = composite(samples, sigmas, rgbs, len(COUNTS), stop_threshold)
    expected = naive_composite(samples, sigmas, rgbs, stop_threshold)
    assert out.keys() == expected.keys()
    for key, value in out.items():
        torch.testing.assert_close(value, torch.tensor(expected[key], dtype=torch.float64), **F64, msg=key)
    assert (out["median_depths"] > 0).any() and (out["median_depths"] == 0).any()
    assert stop_threshold == 0 or (out["weights"] == 0).any()


@pytest.mark.parametrize("stop_threshold", [0.0, 0.3])
def test_composite_gradients(stop_threshold: float) -> None:
    samples, sigmas, rgbs = random_samples([3, 0, 1, 6])
    leaves = (sigmas.requires_grad_(), rgbs.requires_grad_())
    keys = ("foregrounds", "opacities", "depths", "second_moments", "distortions", "weights")

    def outputs(sigmas: Tensor, rgbs: Tensor) -> tuple[Tensor, ...]:
        out = composite(samples, sigmas, rgbs, 4, stop_threshold)
        assert not out["median_depths"].requires_grad
        return tuple(out[key] for key in keys)

    assert gradcheck(outputs, leaves)
    assert gradgradcheck(outputs, leaves)


def test_slab_has_closed_form_opacity() -> None:
    # Density s over length L, cut into equal pieces: 1 - exp(-sL), mean depth of an exponential cut off at L.
    s, length, start, n = 1.7, 1.25, 1.0, 1000
    samples = pack([n], torch.full((n,), length / n, dtype=torch.float64), start=start)
    out = composite(samples, torch.full((n,), s, dtype=torch.float64), torch.ones(n, 3).double(), 1)
    opacity = 1 - math.exp(-s * length)
    assert out["opacities"].item() == pytest.approx(opacity, rel=1e-12)  # exact for any cut, but for rounding
    assert out["foregrounds"].tolist()[0] == pytest.approx([opacity] * 3, rel=1e-12)
    depth = start * opacity + (1 - (1 + s * length) * math.exp(-s * length)) / s
    # Each piece puts its weight in its middle: an error of order dt^2 relative, (1.25/1000)^2 = 1.6e-6.
    assert out["depths"].item() == pytest.approx(depth, rel=2e-6)
    # Half the light is gone where s*t = ln 2; known to one piece.
    assert out["median_depths"].item() == pytest.approx(start + math.log(2) / s, abs=length / n)
    # A wall of uniform weights (two surfaces far apart, half each) has distortion 2 * 1/2 * 1/2 * distance.
    wall = pack([2], torch.tensor([1e-9, 1e-9], dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64))
    sigmas = torch.tensor([math.log(2) * 1e9, 1e12], dtype=torch.float64)
    # t is near 4, so that dt = 1e-9 is known to 4*1e-16/1e-9 = 1e-6.
    assert composite(wall, sigmas, torch.ones(2, 3).double(), 1)["distortions"].item() == pytest.approx(1.5, rel=1e-5)


def test_splitting_an_interval_changes_nothing() -> None:
    samples, sigmas, rgbs = random_samples(COUNTS)
    # Cut each sample at a random place; both parts keep its density and colour.
    cut = samples.t_starts + rand(len(sigmas), seed=9) * (samples.t_ends - samples.t_starts)
    halves = Samples(
        torch.stack([samples.t_starts, cut], 1).flatten(),
        torch.stack([cut, samples.t_ends], 1).flatten(),
        samples.ray_indices.repeat_interleave(2),
        samples.packed_info * 2,
    )
    out = composite(samples, sigmas, rgbs, len(COUNTS))
    split = composite(halves, sigmas.repeat_interleave(2), rgbs.repeat_interleave(2, 0), len(COUNTS))
    for key in ("foregrounds", "opacities", "second_moments"):
        torch.testing.assert_close(split[key], out[key], **F64)
    torch.testing.assert_close(split["weights"].view(-1, 2).sum(1), out["weights"], **F64)


def test_occluded_samples_change_nothing() -> None:
    samples, sigmas, rgbs = random_samples([6, 6])
    sigmas[2] = 1e4  # optical depth > 500: exp of it is 0 even in float64's last digits
    sigmas.requires_grad_()
    keys = ("foregrounds", "opacities", "depths", "second_moments", "distortions", "median_depths")
    before = composite(samples, sigmas, rgbs, 2)
    grads = torch.autograd.grad(sum(before[key].sum() for key in keys), sigmas)[0]
    assert (grads[3:6].abs() < 1e-100).all()
    with torch.no_grad():
        sigmas[3:6] *= 7
    rgbs[3:6] = 0.5
    after = composite(samples, sigmas, rgbs, 2)
    for key in keys:
        torch.testing.assert_close(after[key], before[key], **F64)


def test_stopped_samples_have_no_gradient() -> None:
    samples, sigmas, rgbs = random_samples([8])
    leaves = (sigmas.requires_grad_(), rgbs.requires_grad_())
    out = composite(samples, sigmas, rgbs, 1, stop_threshold=0.5)
    hidden = out["trans"] < 0.5
    assert 0 < hidden.sum() < 8
    assert (out["weights"][hidden] == 0).all()
    total = sum(out[key].sum() for key in ("foregrounds", "opacities", "depths", "second_moments", "distortions"))
    for grad in torch.autograd.grad(total, leaves):
        assert (grad[hidden] == 0).all() and (grad[~hidden] != 0).any()


def test_composite_of_nothing() -> None:
    samples, sigmas, rgbs = random_samples([0, 0])
    out = composite(samples, sigmas, rgbs, 2)
    for key, value in out.items():
        assert value.shape[0] == (0 if key in ("weights", "trans") else 2)
        assert (value == 0).all()


def test_composite_of_many_in_float32() -> None:
    # 10^5 samples, one ray with 1000 of them and a few with none, huge densities among them: float32 follows float64.
    g = np.random.default_rng(0)
    counts = [1000, 0, *g.integers(0, 60, 3300).tolist()]
    s = sum(counts)
    assert s > 90_000
    ray = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    firsts = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
    place = torch.arange(s) - firsts[ray]
    starts = (2 + place * 0.005).float()
    samples = Samples(starts, starts + 0.005, ray, torch.stack([firsts, torch.tensor(counts)], 1))
    sigmas = (10 ** (6 * rand(s) - 3)).float()
    rgbs = rand(s, 3, seed=1).float()
    out = composite(samples, sigmas, rgbs, len(counts))
    exact = composite(samples, sigmas.double(), rgbs.double(), len(counts))
    for key in out:
        if key != "median_depths":
            torch.testing.assert_close(out[key].double(), exact[key], **F32)
    # Where the opacity passes 1/2 within rounding the median may be a neighbour's.
    assert ((out["median_depths"] - exact["median_depths"]).abs() > 1e-5).float().mean() < 1e-3


def test_a_bad_ray_spoils_no_other() -> None:
    samples, sigmas, rgbs = random_samples([4, 4, 4])
    good = composite(samples, sigmas, rgbs, 3)["foregrounds"]
    sigmas[5] = math.nan
    out = composite(samples, sigmas, rgbs, 3)["foregrounds"]
    assert out[1].isnan().all()
    assert torch.equal(out[[0, 2]], good[[0, 2]])


def test_non_contiguous_inputs() -> None:
    samples, sigmas, rgbs = random_samples([4, 4])
    wide = torch.stack([sigmas, sigmas], dim=1)[:, 0]
    turned = rgbs.t().contiguous().t()
    assert not wide.is_contiguous() and not turned.is_contiguous()
    expected = composite(samples, sigmas, rgbs, 2)
    for key, value in composite(samples, wide, turned, 2).items():
        assert torch.equal(value, expected[key])


def render_rays(o, d, v, near, far, jitter, occupied, params, config, **settings) -> dict:  # type: ignore[no-untyped-def]
    view = FieldView(params, config)
    return reference.render_rays(Rays(o, d, v, near, far, jitter), occupied, view, MarchSettings(**settings))._asdict()


def scene_rays(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    origins = unit_vectors(n) * 3
    directions = torch.nn.functional.normalize((rand(n, 3, seed=1) - 0.5) - origins, dim=1)
    t_near, t_far = reference.ray_box(origins, directions, 1.0)
    return origins, directions, t_near, t_far


def test_render_of_a_constant_density() -> None:
    # An all-zero table gives h = 0: density exp(bias) everywhere in the box, colour a function of direction alone.
    params, config = small_field()
    params.table.zero_()
    n, step = 5, 0.01
    origins, directions, t_near, t_far = scene_rays(n)
    occupied = torch.ones(1, 8, 8, 8, dtype=torch.bool)
    out = render_rays(
        origins, directions, directions, t_near, t_far, torch.zeros(n), occupied, params, config, step_size=step
    )
    counts = torch.ceil((t_far - t_near) / step - 0.5)  # middles before the exit
    opacity = 1 - torch.exp(-math.exp(-0.5) * step * counts)
    # t comes in float32: lengths of 0.01 at t = 4 are known to 2.4e-7/0.01.
    torch.testing.assert_close(out["opacities"], opacity, rtol=1e-4, atol=0)
    h = torch.zeros(n, 16, dtype=torch.float64)
    rgb = torch.sigmoid(reference.mlp(torch.cat([reference.sh_encode(directions, 4), h], 1), params.color_weights))
    torch.testing.assert_close(out["foregrounds"], opacity[:, None] * rgb, rtol=1e-4, atol=0)


@pytest.mark.parametrize("contracted", [False, True])
def test_render_gradients(contracted: bool) -> None:
    params, config = small_field(contracted)
    n = 3
    origins, directions, t_near, t_far = scene_rays(n)
    # Every cell is occupied and the ends lie inside the box, so that no finite step changes which samples there are.
    occupied = torch.ones(1, 8, 8, 8, dtype=torch.bool)
    leaves = [origins, directions, directions.clone(), params.table, *params.density_weights, *params.color_weights]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    keys = ("foregrounds", "opacities", "depths", "second_moments", "distortions")

    def render(o: Tensor, d: Tensor, v: Tensor, table: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        moving = FieldParams(table, list(weights[:2]), list(weights[2:]))
        out = render_rays(
            o, d, v, t_near + 0.1, t_far - 0.1, torch.full((n,), 0.3), occupied, moving, config, step_size=0.31
        )
        return tuple(out[key] for key in keys)

    assert all(value.requires_grad for value in render(*leaves))
    assert gradcheck(render, leaves, fast_mode=True)


def test_render_stops_as_composite_does() -> None:
    params, config = small_field()
    n, threshold = 20, 0.2
    origins, directions, t_near, t_far = scene_rays(n)
    occupied = torch.rand(1, 8, 8, 8, generator=rng()) < 0.7
    params.table.requires_grad_()
    config = FieldConfig(config.layout, False, density_bias=2.0)
    kwargs = {"step_size": 0.05}
    args = (origins, directions, directions, t_near, t_far, torch.zeros(n), occupied, params, config)
    out = render_rays(*args, **kwargs, stop_threshold=threshold)
    single = (x.float() for x in (origins, directions, t_near, t_far))
    samples = march_at_once(*single, torch.zeros(n), occupied, 0.05)
    mids = (samples.t_starts.double() + samples.t_ends.double()) / 2
    positions = origins[samples.ray_indices] + mids[:, None] * directions[samples.ray_indices]
    fields = reference.radiance_field(positions, directions[samples.ray_indices], params, config)
    expected = composite(samples, *fields, n, threshold)
    assert 0 < (expected["weights"] == 0).sum() < len(mids)
    for key in expected:
        torch.testing.assert_close(out[key], expected[key], **F64)
    grads = [torch.autograd.grad(o["foregrounds"].square().sum(), params.table)[0] for o in (out, expected)]
    torch.testing.assert_close(grads[0], grads[1], **F64)
    assert out["evaluated"] == len(mids)
    assert out["kept"] == (expected["weights"] > 0).sum()

    # Thin samples taken out are as samples without density; half of them are thinner than the median.
    sigmas, rgbs = (value.detach() for value in fields)
    alphas = 1 - torch.exp(-sigmas * (samples.t_ends.double() - samples.t_starts.double()))
    thin = alphas.median().item() + 1e-9
    out = render_rays(*args, **kwargs, stop_threshold=threshold, alpha_threshold=thin)
    expected = composite(samples, torch.where(alphas < thin, 0.0, sigmas), rgbs, n, threshold)
    for key in expected:
        torch.testing.assert_close(out[key], expected[key], **F64)
    assert out["kept"] < len(mids) / 2


def test_render_without_samples() -> None:
    params, config = small_field(dtype=torch.float32)
    params.table.requires_grad_()
    empty = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    for n in (0, 4):
        origins, directions, t_near, t_far = (x.float() for x in scene_rays(n))
        out = render_rays(
            origins,
            directions,
            directions,
            t_near,
            t_far,
            torch.zeros(n),
            empty,
            params,
            config,
            step_size=0.01,
            stop_threshold=1e-4,
        )
        assert out["foregrounds"].shape == (n, 3) and (out["foregrounds"] == 0).all() and (out["opacities"] == 0).all()
        out["foregrounds"].sum().backward()  # no samples, no gradient, no error


@pytest.mark.parametrize("skip", [False, True])
def test_adam_equals_torch(skip: bool) -> None:
    g = rng()
    start = torch.randn(6, 4, generator=g, dtype=torch.float64)
    param, state = start.clone(), AdamState.of(start, (0.9, 0.99), 1e-15)
    twin = torch.nn.Parameter(start.clone())
    optimiser = torch.optim.Adam([twin], lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
    for step in range(1, 11):
        grad = torch.randn(6, 4, generator=g, dtype=torch.float64)  # no row is all zero: skipping changes nothing
        grad[2, 1:] = 0.0
        twin.grad = grad.clone()
        optimiser.step()
        reference.adam_step(param, grad, state, AdamStep(1e-2, step, skip))
    torch.testing.assert_close(param, twin.detach(), **F64)


def test_adam_leaves_zero_rows_alone() -> None:
    param, m, v = (rand(5, 2, seed=s) for s in range(3))
    before = [x.clone() for x in (param, m, v)]
    grad = torch.zeros(5, 2, dtype=torch.float64)
    grad[1, 1] = 2.0
    reference.adam_step(param, grad, AdamState(m, v, (0.9, 0.99), 1e-15), AdamStep(0.1, 3, skip_zero_rows=True))
    for now, was in zip((param, m, v), before, strict=True):
        assert torch.equal(now[[0, 2, 3, 4]], was[[0, 2, 3, 4]])
        assert (now[1] != was[1]).all()
    # By hand for the touched row: step 3 corrects by 1 - 0.9^3 and 1 - 0.99^3, whatever the row has seen.
    m1 = 0.9 * before[1][1] + 0.1 * grad[1]
    v1 = 0.99 * before[2][1] + 0.01 * grad[1] ** 2
    expected = before[0][1] - 0.1 * (m1 / (1 - 0.9**3)) / ((v1 / (1 - 0.99**3)).sqrt() + 1e-15)
    torch.testing.assert_close(param[1], expected, **F64)


def test_adam_first_step_has_length_lr() -> None:
    param = torch.zeros(3, 2)
    grad, state = torch.tensor([[1e-6, -5.0]] * 3), AdamState.of(param, (0.9, 0.99), 1e-15)
    reference.adam_step(param, grad, state, AdamStep(0.01, 1))
    torch.testing.assert_close(param, torch.tensor([[-0.01, 0.01]] * 3))


def test_wrong_shapes_raise() -> None:
    params, config = small_field()
    layout = config.layout
    samples, sigmas, rgbs = random_samples([2, 2])
    x = rand(4, 3)
    state = AdamState.of(x, (0.9, 0.99), 1e-15)
    calls = {
        "positions": lambda: reference.hashgrid_encode(x[:, :2], params.table, layout),
        "table": lambda: reference.hashgrid_encode(x, params.table[1:], layout),
        "directions": lambda: reference.sh_encode(x[:, :2], 4),
        "degree": lambda: reference.sh_encode(x, 5),
        "weights": lambda: reference.mlp(x, []),
        r"weights\[1\]": lambda: reference.mlp(x, [torch.zeros(8, 3), torch.zeros(3, 7)]),
        r"directions: expected shape \[4, 3\]": lambda: reference.radiance_field(x, x[:2], params, config),
        "rays_d": lambda: reference.ray_box(x, x[:2], 1.0),
        "sigmas": lambda: composite(samples, sigmas[:2], rgbs, 2),
        "rgbs": lambda: composite(samples, sigmas, rgbs[:, :2], 2),
        "packed_info": lambda: composite(samples, sigmas, rgbs, 3),
        "grad": lambda: reference.adam_step(x, x[:2], state, AdamStep(0.1, 1)),
        "step": lambda: reference.adam_step(x, x, state, AdamStep(0.1, 0)),
        "param": lambda: reference.adam_step(
            x[0], x[0], AdamState.of(x[0], (0.9, 0.99), 1e-15), AdamStep(0.1, 1, True)
        ),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=name):
            call()
    with pytest.raises(TypeError, match="positions: expected a float dtype"):
        reference.hashgrid_encode(torch.zeros(4, 3, dtype=torch.int64), params.table, layout)
    with pytest.raises(TypeError, match="ray_index"):
        reference.ray_jitter(0, 0, torch.zeros(3))
