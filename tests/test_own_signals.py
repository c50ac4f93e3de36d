"""A signal, a network and equations of somebody else's, on the public interface: examples/ and what they rely on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import nerf
from nerf.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import equations
import own_signal


def test_a_network_and_a_signal_of_ones_own() -> None:
    assert own_signal.main() < 0.01  # 1 where nothing is learnt


def test_the_wave_equation_is_solved() -> None:
    assert equations.main() < 0.25  # 1 where nothing is learnt


def test_a_network_of_ones_own_is_saved_and_continued(tmp_path: Path) -> None:
    def fit(out: Path | None, steps: int, resume: bool = False) -> nerf.Fitted:
        torch.manual_seed(0)
        config = nerf.FitConfig(steps=20, batch=64, stop_mse=None)
        problem = own_signal.Flow()
        if steps < 20:
            problem = Interrupted(steps)
        return nerf.fit(problem, own_signal.Products(), config, out, resume)

    whole = fit(None, 20)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, 7)
    fit(tmp_path, 20, resume=True)
    again = nerf.Fitted.load(tmp_path, network=own_signal.Products())
    for a, b in zip(whole.field.parameters(), again.field.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UserError, match="network="):
        nerf.Fitted.load(tmp_path)
    with pytest.raises(UserError, match="there is no such field"):
        nerf.SignalField(nerf.FieldChoice("own"), 2, 2)


class Interrupted(own_signal.Flow):
    """Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def loss(self, field: nerf.SignalField, batch: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().loss(field, batch, random)


def test_a_module_with_other_outputs_is_no_field_for_the_signal() -> None:
    with pytest.raises((UserError, RuntimeError)):
        nerf.fit(own_signal.Flow(), nn.Linear(3, 2), nerf.FitConfig(steps=1, batch=8))


def test_helmholtz_is_solved() -> None:
    side = 32
    problem = equations.Helmholtz(wavenumber=3.0, sources=((0.4, 0.5, 1.0),), spread=0.15, border_weight=3.0)
    choice = nerf.FieldChoice("siren", width=48, depth=2, first_omega_0=8.0, omega_0=8.0)
    fitted = nerf.fit(problem, choice, nerf.FitConfig(steps=400, batch=256, learning_rate=5e-3))
    # the same equation by five-point differences
    x = torch.arange(1, side, dtype=torch.float64) / side
    n, h2 = side - 1, 1.0 / side**2
    line = torch.diag(torch.full((n,), -2.0)) + torch.diag(torch.ones(n - 1), 1) + torch.diag(torch.ones(n - 1), -1)
    eye = torch.eye(n, dtype=torch.float64)
    matrix = (torch.kron(line.double(), eye) + torch.kron(eye, line.double())) / h2
    u = torch.stack(torch.meshgrid(x, x, indexing="ij"), dim=-1).reshape(-1, 2)
    exact = torch.linalg.solve(matrix + problem.wavenumber**2 * torch.eye(n * n).double(), -problem.source(u))
    found = fitted.field.evaluate(u.float()).double()
    assert float((found - exact).norm() / exact.norm()) < 0.15
