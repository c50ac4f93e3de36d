"""What a GPU's training steps are made of: their clock, their launches, what is written before it is read."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from nerf.kernels import FieldView, cuda, cuda_args, nvrtc
from nerf.training.loop import Trainer
from nerf.training.stepping import GPU_GROWTH

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from benchmarks import cuda_checks as checks


@pytest.mark.parametrize("milliseconds", [(2.5, 0.0), (0.77, 0.13)])  # launches alone; some of it with the batch
def test_minutes_of_a_gpu_are_filled(milliseconds: tuple[float, float], emulated: None) -> None:
    config = replace(tiny.train_config(field=tiny.FIELD), steps=None, minutes=0.1)
    trainer = Trainer(tiny.sphere_scene(3, 8), config)
    assert trainer.growth == GPU_GROWTH
    totals = []
    while trainer.total_steps is None or trainer.step < trainer.total_steps:
        factor = config.schedule.batch_factor(trainer.step)
        trainer.seconds += (milliseconds[0] + milliseconds[1] * factor) / 1e3
        trainer.step += 1
        if trainer.step % 50 == 0:
            trainer.curve.append({"step": trainer.step, "seconds": trainer.seconds})
        trainer.keep_time()
        totals += [trainer.total_steps] if trainer.total_steps else []
    assert trainer.seconds == pytest.approx(6.0, rel=0.01)
    assert totals[0] == pytest.approx(totals[-1], rel=0.3)  # so that the schedules of before were nearly right


def test_operands_are_written_whole(emulated: None) -> None:
    """Also those that no product reads: blocks copy all of them, and tools that look for unwritten memory would see."""
    params, config = checks.make_field(width=32, n_features=16)
    net = cuda.Net(FieldView(params, config, params.table.half()), cuda.pointers())
    before = net.operands.clone()
    net.operands.fill_(0xFF)
    args = cuda_args.PackArgs(field=net.desc, forward=net.forward, backward=net.backward)
    net.program("cuda_field.cu").launch("pack_weights", args, cuda.blocks_of(net.n_weights // 4), cuda.THREADS)
    assert torch.equal(net.operands, before) and not bool(net.operands.view(torch.float16).isnan().any())


@pytest.mark.skipif(nvrtc.nvrtc_version() is None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc")
def test_a_slot_is_asked_for_before_the_colour_network() -> None:
    code = nvrtc.compile_source("cuda_render.cu", 91, {"NERF_STAGE_WEIGHTS": 1})[0].decode()
    body = code[code.index(".entry render_forward") :]
    slots = [m.start() for m in re.finditer(r"atom\.global\.add\.u32", body)]
    products = [m.start() for m in re.finditer(r"mma\.sync", body)]
    assert len(products) == 76 and sum(at > slots[-1] for at in products) == 52  # those of the three colour layers
