"""Places between cameras: where a scene will be looked at from, and no photo was taken."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 4  # of each camera, between which and it places lie
SPREAD = 0.25  # of the gap between two cameras: how far places lie off the line between them
_CHUNK = 1024  # cameras whose neighbours are looked for at once


class Viewpoints:
    """Places around the lines from each camera to its nearest ones, which `nearest` [c,n] are.

    >>> import torch
    >>> viewpoints = Viewpoints(torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]))
    >>> viewpoints.draw(100, torch.Generator()).shape
    torch.Size([100, 3])
    """

    def __init__(self, centres: Tensor) -> None:
        """centres: [c,3] of the cameras, scene frame."""
        self.centres = centres.float()
        n = min(NEIGHBOURS + 1, len(centres))  # the first is the camera itself, or one in the same place
        chunks = self.centres.split(_CHUNK)
        self.nearest = torch.cat([torch.cdist(some, self.centres).topk(n, largest=False).indices for some in chunks])

    def draw(self, n: int, random: torch.Generator) -> Tensor:
        """n places [n,3], scene frame; on the device of the cameras."""
        device, (n_cameras, n_near) = self.centres.device, self.nearest.shape
        camera = torch.randint(n_cameras, (n,), generator=random, device=device)
        other = torch.randint(n_near, (n,), generator=random, device=device)
        gap = self.centres[self.nearest[camera, other]] - self.centres[camera]
        share = torch.rand(n, 1, generator=random, device=device)
        aside = torch.randn(n, 3, generator=random, device=device) * (SPREAD / 3**0.5)
        return self.centres[camera] + share * gap + aside * gap.norm(dim=1, keepdim=True)
