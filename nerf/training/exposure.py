"""The light of photos, learnt beside the field: exposure and white balance, a gain for each photo and channel;
vignetting, a fall-off towards the corners for each camera; and how a flash on the camera falls off with distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nerf.geometry.cameras import Cameras
from nerf.training.optimiser import SmallAdam

TOE, GAMMA = 0.055, 2.4  # of the sRGB curve
SATURATED = 0.998  # values from here on may have been brighter than the file can say
OPAQUE = 0.99  # from here on a pixel shows the scene alone, and votes on its photo's gain
_FARTHEST = 4.0  # times the reference distance, from where on light falls off no further
HEADROOM = 1.25  # brightest colour of the field: what is white in a dark photo is brighter in the others' exposure


def apply_exposure(colors: Tensor, logs: Tensor, linear: bool, opacities: Tensor | float = 1.0) -> Tensor:
    """Colours [n,3] as a photo with log gains [n,3] of its light shows them; opacities [n,1] where they are composited.

    Light times g is, as sRGB values c beyond the curve's short straight part, a (c + 0.055) - 0.055 with
    a = g^(1/2.4): linear in c, so it may be applied after compositing. Differentiable.
    """
    if linear:
        return colors * logs.exp()
    a = (logs / GAMMA).exp()
    return a * colors + TOE * (a - 1.0) * opacities


def apply_exposure_over(colors: Tensor, logs: Tensor, opacities: Tensor, background: Tensor) -> Tensor:
    """Colours [...,3] that were composited over background [3] (sRGB values), as a photo with log gains [...,3] shows
    them: what lies in front is brighter, the background is not. opacities [...,1]. Differentiable."""
    behind = (1.0 - opacities) * background
    return apply_exposure(colors - behind, logs, linear=False, opacities=opacities) + behind


def remove_exposure(colors: Tensor, logs: Tensor, linear: bool) -> Tensor:
    """The inverse of `apply_exposure` for opaque colours: a photo's colours in the exposure common to all."""
    if linear:
        return colors / logs.exp()
    return (colors + TOE) / (logs / GAMMA).exp() - TOE


def fitted(rendered: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """The log gains [...,3] with which rendered [...,n,3] comes nearest to truth, both sRGB values: least squares over
    the pixels that are not saturated; mask [...,n] bool, True where a pixel counts. 0 where nothing can be told."""
    usable = ((truth < SATURATED).all(dim=-1) & (rendered < SATURATED).all(dim=-1) & mask)[..., None]
    c, t = (rendered + TOE) * usable, (truth + TOE) * usable
    total = c.square().sum(dim=-2)
    a = torch.where(total > 0, (c * t).sum(dim=-2) / total.clamp_min(1e-12), 1.0)
    return GAMMA * a.clamp(0.1, 10.0).log()


def vignetting(coefficients: Tensor, powers: Tensor) -> Tensor:
    """Log gains [n,1] of the light at places in pictures: a (r^2 - mean) + b (r^4 - mean) with (a, b) [n,2] and powers
    [n,2] of `from_middle`: over a whole picture nothing is gained or lost. Differentiable."""
    return (coefficients * powers).sum(dim=1, keepdim=True)


def falloff(exponents: Tensor, distances: Tensor, reference: float | Tensor) -> Tensor:
    """Log gains [n,1] of what lies at distances [n] from a camera with a flash, 0 at the reference (and where the
    distance is 0: nothing is there): light goes with the distance to the power of -exponent [n], 2 where the flash is
    all the light there is. Differentiable in the exponents."""
    ratios = torch.where(distances > 0, distances / reference, 1.0).clamp(1 / _FARTHEST, _FARTHEST)
    return (-exponents * ratios.log())[:, None]


def from_middle(cameras: Cameras, image_ids: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """r^2 and r^4 [n,2] of pixels, less their means over the picture, with r the distance from its middle, 1 in its
    corners; 0 in panoramas."""
    w, h = cameras.widths[image_ids].double(), cameras.heights[image_ids].double()
    x, y, both = (2 * cols + 1 - w).square(), (2 * rows + 1 - h).square(), w.square() + h.square()
    r2 = (x + y) / both
    mean4 = ((w**4 + h**4) / 5 + 2 * (w * h).square() / 9) / both.square()  # that of r^2 is 1/3 in every picture
    powers = torch.stack([r2 - 1 / 3, r2.square() - mean4], dim=1)
    return torch.where(cameras.spherical[image_ids, None], 0.0, powers).float()


def _shapes(cameras: Cameras) -> Tensor:
    """What photos of one camera have in common whatever their size, [n,2] logarithms: sides and focal length."""
    short, long = torch.stack([cameras.widths, cameras.heights]).sort(dim=0).values
    return torch.stack([long / short, cameras.fx / long], dim=1).log()


def lenses(cameras: Cameras) -> Tensor:
    """Which camera took each photo, int64 [n] from 0: others are of another aspect or focal length, by a third."""
    return (_shapes(cameras) / math.log(4 / 3)).round().unique(dim=0, return_inverse=True)[1]


def _most_alike(camera: Cameras, trained: Cameras) -> int:
    """Which of the cameras that were trained on is most like a camera [1]."""
    return int((_shapes(trained) - _shapes(camera)).norm(dim=1).argmin())


def darkened_by_lens(camera: Cameras, trained: Cameras, coefficients: Tensor) -> Tensor:
    """Log gains [h,w,1] of the pictures of a camera [1] by the vignetting [n,2] of the one most like it of those [n]
    that were trained on."""
    h, w = int(camera.heights[0]), int(camera.widths[0])
    alike = _most_alike(camera, trained)
    rows, cols = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    powers = from_middle(camera, torch.zeros_like(rows), rows, cols)
    return vignetting(coefficients[alike].expand(h * w, 2), powers).reshape(h, w, 1)


def darkened_by_distance(camera: Cameras, trained: Cameras, learnt: Tensor, distances: Tensor) -> Tensor:
    """`falloff` [n,1] at distances [n], scene length, from a camera [1], by the (exponent, reference) [m,2] learnt of
    the one most like it of those [m] that were trained on."""
    exponent, reference = learnt[_most_alike(camera, trained)]
    return falloff(exponent, distances, reference)


class ExposureCorrections:
    """`gains`: logarithms [n_images,3] of the photos' light, 0 in the mean over those that are trained on; `lens`:
    coefficients [n_cameras,2] of their cameras' vignetting; `flash`: exponents [n_cameras,1] of `falloff` from the
    reference distance, a scene length."""

    def __init__(
        self,
        cameras: Cameras,
        ids: Tensor,
        gains: bool = True,
        lens: bool = True,
        flash: bool = False,
        reference: float = 1.0,
    ) -> None:
        device = cameras.c2w.device
        self.cameras, self.ids, self.lenses, self.reference = cameras, ids.to(device), lenses(cameras), reference
        n_lenses = int(self.lenses.max()) + 1
        shapes: dict[str, tuple[int, ...]] = {"logs": (len(cameras), 3)} if gains else {}
        shapes |= ({"lens": (n_lenses, 2)} if lens else {}) | ({"flash": (n_lenses, 1)} if flash else {})
        self.values = {k: torch.zeros(shape, device=device, requires_grad=True) for k, shape in shapes.items()}
        self.adam = {k: SmallAdam(shape, device) for k, shape in shapes.items()}

    def at(self, image_ids: Tensor, rows: Tensor, cols: Tensor, distances: Tensor) -> Tensor:
        """Log gains [n,3] of pixels that show something at distances [n], scene length, 0: nothing."""
        logs = torch.zeros(1, 3, device=image_ids.device)
        if "logs" in self.values:
            logs = self.values["logs"][image_ids]
        if "lens" in self.values:
            powers = from_middle(self.cameras, image_ids, rows, cols)
            logs = logs + vignetting(self.values["lens"][self.lenses[image_ids]], powers)
        if (exponents := self.flash_of(image_ids)) is not None:
            logs = logs + falloff(exponents, distances.detach(), self.reference)
        return logs

    def flash_of(self, image_ids: Tensor) -> Tensor | None:
        """The exponents [n] of the flash in photos, differentiable; None where none is learnt."""
        return self.values["flash"][self.lenses[image_ids], 0] if "flash" in self.values else None

    def step(self, rate: float, flash: bool = True) -> None:
        """One step of Adam, of the flash only if it is its time; what is common to all photos stays with the field."""
        for name, values in self.values.items():
            assert values.grad is not None
            if flash or name != "flash":
                self.adam[name].step(values.data, values.grad, rate)
            values.grad = None
        if "logs" in self.values:
            logs = self.values["logs"].data
            logs[self.ids] -= logs[self.ids].mean(dim=0)

    def gains(self) -> Tensor | None:
        """Log gains [n,3] of the photos that are trained on; None where none are learnt."""
        return self.values["logs"].detach()[self.ids].cpu() if "logs" in self.values else None

    def vignetting(self) -> Tensor | None:
        """Coefficients [n,2] of the cameras of the photos that are trained on; None where none are learnt."""
        return self.values["lens"].detach()[self.lenses[self.ids]].cpu() if "lens" in self.values else None

    def falloff(self) -> Tensor | None:
        """(exponent, reference distance) [n,2] of the photos that are trained on; None where none are learnt."""
        if (exponents := self.flash_of(self.ids)) is None:
            return None
        exponents = exponents.detach().cpu()
        return torch.stack([exponents, torch.full_like(exponents, self.reference)], dim=1)

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored to go on bit for bit."""
        state = {name: values.data for name, values in self.values.items()}
        return state | {f"{name}.{k}": t for name, adam in self.adam.items() for k, t in adam.tensors().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, values in self.values.items():
            values.data.copy_(tensors[name])
            self.adam[name].restore({k: tensors[f"{name}.{k}"] for k in ("m", "v", "n_updates")})
