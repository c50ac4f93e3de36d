"""Several processes train one field: gloo, on a sphere rendered here, one thread each.

The processes are children that run `scripts` of the table below; each takes some seconds, most of it importing torch.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import sphere_scene
from torch import Tensor

from nerf import kernels
from nerf.cli import main
from nerf.errors import UserError
from nerf.io import checkpoint
from nerf.kernels import bindings
from nerf.training import stepping
from nerf.training.distributed import mixed, touched
from nerf.training.loop import Trainer
from nerf.training.pixel_sampler import PixelBatch, PixelSampler
from nerf.training.same_start import check_can_share

ROOT = Path(__file__).resolve().parent.parent
native = pytest.mark.skipif(bindings.load().handle is None, reason="the slow reference kernels")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="a torch without torch.distributed")

# What ranks and the one process with the doubled batch have in common. Where photos are opaque before a known
# background and no colour is asked for from random directions, a batch is its pixels and its rays' jitter.
COMMON = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from nerf.errors import UserError
from nerf.training import stepping
from nerf.training.distributed import ALONE, join
from nerf.training.loop import Trainer, train
from test_training import CONFIG
from tiny import sphere_scene
torch.set_num_threads(1)
out = Path(sys.argv[1])
"""
STEPS = 24
TOGETHER = (
    COMMON
    + """
from test_distributed import doubled_config, opaque_scene
stepping.next_n_rays = lambda n_rays, *rest: n_rays
ranks = join(60)
trainer = Trainer(opaque_scene(), doubled_config(), ranks=ranks)
accumulator, real, first = trainer.optimiser.grad_accumulator, ranks.mean_rows, []
def mean_rows(gradient):
    dense, before = gradient.clone(), ranks.bytes_sent
    if not first:
        ranks.mean_gradient(dense)
        sent, before = ranks.bytes_sent - before, ranks.bytes_sent
    real(gradient)
    if not first:
        first[:] = gradient.clone(), dense, ranks.bytes_sent - before, sent
ranks.mean_rows = mean_rows
losses = [trainer.train_step() for _ in range(int(sys.argv[2]))]
state = {f"p{i}": p for i, p in enumerate(trainer.parameters)} | trainer.optimiser.tensors()
state |= {"occupied": trainer.model.occupancy.occupied, "values": trainer.model.occupancy.values}
state |= {"cumulative": trainer.sampler.cumulative, "gradient": first[0], "dense": first[1]}
state |= trainer.exposures.tensors() | {f"poses.{k}": t for k, t in trainer.poses.tensors().items()}
torch.save({"losses": losses, "state": state, "samples": trainer.samples, "bytes": first[2:]},
           out / f"{ranks.rank}.pt")
ranks.close()
"""
)


def opaque_scene():  # type: ignore[no-untyped-def]
    """The sphere before grey, of photos without alpha: what is behind is known."""
    from tiny import make_scene

    full = sphere_scene(8, 32)
    images = [full.pixels.raw(i)[..., :3].copy() for i in range(8)]
    scene = make_scene(images, full.cameras, scene_from_world=full.scene_from_world)
    return replace(scene, background=torch.full((3,), 0.5), silhouettes=None)


def doubled_config():  # type: ignore[no-untyped-def]
    from test_training import CONFIG, SOLID

    schedule = {"diffuse_steps": 0, "diffuse_share": 0.0, "importance_after": 8, "importance_every": 8}
    learnt = {"exposure_after": 0.0, "exposure": True, "vignetting": True, "refine_poses": True, "pose_after": 8}
    field = replace(SOLID, log2_hashmap_size=15, finest_resolution=128)  # of which a step touches some rows
    return CONFIG.with_settings(field=field, **schedule, **learnt)


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    given = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | {name: str(v) for name, v in given.items()}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start(commands: list[list[str]]) -> list[subprocess.Popen[str]]:
    """The ranks of a launch, one for each of the commands after `python`."""
    port = free_port()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return [
        subprocess.Popen([sys.executable, *command], env=environment(rank, len(commands), port), **pipes)  # type: ignore[call-overload]
        for rank, command in enumerate(commands)
    ]


def ended(processes: list[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str, str]]:
    """(exit status, what it printed, what it said) of each; none may take longer than `seconds`."""
    try:
        found = [(p.communicate(timeout=seconds), p) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, *texts) for texts, p in found]


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:  # type: ignore[type-arg]
    """What two ranks have after STEPS steps."""
    out = tmp_path_factory.mktemp("two")
    for status, _, said in ended(start([["-c", TOGETHER, str(out), str(STEPS)]] * 2)):
        assert status == 0, said
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@native
def test_all_ranks_hold_the_same_to_the_bit(two: list[dict]) -> None:  # type: ignore[type-arg]
    first, second = two
    assert first["losses"] == second["losses"] and first["samples"] == second["samples"]
    assert first["state"]["cumulative"] is not None, "pixels are drawn by the error map by then"
    for name, t in first["state"].items():
        assert t.numpy().tobytes() == second["state"][name].numpy().tobytes(), name
    as_rows, as_a_whole = first["bytes"]
    assert 0 < as_rows < as_a_whole, "rows travel where that is less"
    assert torch.equal(first["state"]["gradient"], first["state"]["dense"]), "and nothing else changes"


@native
def test_two_ranks_learn_as_one_process_with_the_doubled_batch(
    two: list[dict],  # type: ignore[type-arg]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One process takes steps of batches that are made of the two ranks' pixels, one after the other, with the jitter
    of their rays. Compared are the first step's gradient, before Adam turns what rounding left of nearly nothing into
    steps of full size (tolerance: float32 sums in another order), and the losses of all steps (they differ by what
    such steps do: 1 %)."""
    config = doubled_config()
    seeds = [mixed(config.seed, rank) >> 33 for rank in range(2)]
    jitter, draw = kernels.ray_jitter, PixelSampler.draw
    at: list[int] = [0]

    def both_draw(sampler: PixelSampler, n: int, random: torch.Generator) -> PixelBatch:
        parts = []
        for rank in range(2):
            own = torch.Generator().manual_seed(mixed(config.seed, at[0], rank) >> 1)
            parts.append(draw(sampler, n // 2, own))
        a, b = (vars(part) for part in parts)
        joined = {k: torch.cat([v, b[k]]) for k, v in a.items() if isinstance(v, Tensor) and len(v) == n // 2}
        return PixelBatch(**{"used": None} | joined)

    def both_jitter(seed: int, step: int, n: int, step_at: Tensor | None = None) -> Tensor:
        return torch.cat([jitter(own, step, n // 2, step_at) for own in seeds])

    monkeypatch.setattr(PixelSampler, "draw", both_draw)
    monkeypatch.setattr(kernels, "ray_jitter", both_jitter)
    monkeypatch.setattr(stepping, "next_n_rays", lambda n_rays, *rest: n_rays)
    trainer = Trainer(opaque_scene(), config)
    trainer.n_rays *= 2
    losses, gradients = [], []
    real = trainer.optimiser.step

    def step(*arguments, **named) -> None:  # type: ignore[no-untyped-def]
        assert trainer.optimiser.grad_accumulator is not None
        if not gradients:
            gradients.append(trainer.optimiser.grad_accumulator.table.clone())
        real(*arguments, **named)

    monkeypatch.setattr(trainer.optimiser, "step", step)
    for at[0] in range(STEPS):
        losses.append(trainer.train_step())

    gradient = two[0]["state"]["gradient"]
    assert 0 < len(touched(gradient)) < len(gradient)
    difference = (gradient - gradients[0]).abs().max() / gradients[0].abs().max()
    assert difference < 1e-5, f"{difference:g} of the largest"
    assert two[0]["losses"][0] == pytest.approx(losses[0], rel=1e-6)
    assert two[0]["losses"] == pytest.approx(losses, rel=0.01)
    assert losses[-1] < 0.8 * losses[0]
    assert trainer.exposures is not None and trainer.poses is not None
    for name, values in trainer.poses.tensors().items():
        moment = name in ("m", "v")  # of gradients, which vary by more than what follows them
        atol = 0.05 * float(values.abs().max()) if moment else 2e-3
        assert torch.allclose(two[0]["state"][f"poses.{name}"].float(), values.float(), rtol=0, atol=atol), name
    assert float((trainer.poses.rotations - torch.eye(3)).abs().max()) > 4e-3
    for name, values in trainer.exposures.values.items():
        assert torch.allclose(two[0]["state"][name], values.detach(), rtol=0, atol=0.01), name
    assert two[0]["samples"]["rays"] == trainer.samples["rays"]
    assert two[0]["samples"]["trained"] == pytest.approx(trainer.samples["trained"], rel=0.01)


# --- stop and go on, and what can break ------------------------------------------------------------------------------

# arguments: folder, JSON of what this rank is told
RUN = (
    COMMON
    + """
import json
from nerf.training import loop
told = json.loads(sys.argv[2])
real = Trainer.train_step
def train_step(trainer):
    import os, signal, time
    if trainer.step in told.get("signals", {}).values():
        os.kill(os.getpid(), [getattr(signal, name) for name, at in told["signals"].items() if at == trainer.step][0])
    if trainer.step == told.get("drift"):
        trainer.parameters[0][0] += 1.0
    return real(trainer)
Trainer.train_step = train_step
ranks = ALONE
try:
    ranks = join(told.get("join", 60), told.get("wait", 60))
    scene = sphere_scene(8, told.get("size", 32))
    config = CONFIG.with_settings(**{"steps": 40, "checkpoint_seconds": 0.0} | told.get("settings", {}))
    model = train(scene, config, out, resume=told.get("resume", False), progress=True, ranks=ranks)
    print(model.meta["steps"], hash(model.field.table.detach().numpy().tobytes()))
except UserError as error:
    print("said:", error)
    sys.exit(2)
except KeyboardInterrupt as stop:
    print("stopped:", stop)
    sys.exit(3)
finally:
    ranks.close()
"""
)


def train_in(out: Path, *told: dict[str, object]) -> list[tuple[int, str, str]]:
    """What ranks do that are each told something."""
    return ended(start([["-c", RUN, str(out), json.dumps(each)] for each in told]))


@native
def test_ranks_stop_together_and_go_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    stopped = train_in(tmp_path, {}, {"signals": {"SIGTERM": 17}})
    assert [(status, text.strip()) for status, text, _ in stopped] == [(3, "stopped: SIGTERM")] * 2, stopped
    saved = checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["training"]["step"]
    assert saved == 18, "the step under way is finished"
    done = train_in(tmp_path, {"resume": True}, {"resume": True})
    assert [status for status, _, _ in done] == [0, 0], done
    assert done[0][1] == done[1][1] and done[0][1].startswith("40 "), "the same field on both"
    assert "training" in done[0][2] and "training" not in done[1][2], "one of them shows progress"
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 40
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("checkpoint.previous.safetensors", "checkpoint.safetensors", "nerf.json", "training.json")
    ]


_LATE = {"settings": {"checkpoint_seconds": 1e6}}
BAD = {
    "other data": ([{}, {"size": 24}], "rank 1 has another (set of cameras|content of photos) than rank 0"),
    "other options": ([{}, {"settings": {"seed": 3}}], r"rank 1 has another setting seed than rank 0 \(3, not 0\)"),
    "another field": ([_LATE, _LATE | {"drift": 9}], "rank 1 has another field at step 40 than rank 0"),
}


@native
@pytest.mark.parametrize("what", BAD)
def test_ranks_that_cannot_train_together_say_so_and_end(what: str, tmp_path: Path) -> None:
    told, words = BAD[what]
    began = time.monotonic()
    for status, text, said in train_in(tmp_path, *told):
        assert status == 2 and re.search(words, text) and text.count("\n") == 1, text + said
    assert time.monotonic() - began < 60
    assert not (tmp_path / "checkpoint.safetensors").exists()


@native
def test_a_rank_that_never_comes_is_waited_for_only_so_long(tmp_path: Path) -> None:
    alone = start([["-c", RUN, str(tmp_path), json.dumps({"join": 3})], ["-c", "pass"]])
    (status, text, _), _ = ended(alone, 60)
    assert status == 2 and "rank 0 waited 3 s for all of the 2 ranks to come" in text and text.count("\n") == 1, text


@native
def test_a_rank_that_is_killed_ends_the_others_with_a_sentence(tmp_path: Path) -> None:
    (status, text, _), (killed, _, _) = train_in(tmp_path, {}, {"signals": {"SIGKILL": 9}})
    assert killed == -signal.SIGKILL
    assert status == 2 and "the ranks lost each other" in text and "--resume goes on" in text, text
    assert checkpoint.load(tmp_path / "checkpoint.safetensors")[1]["training"]["step"] == 9


def test_photos_in_tiles_are_not_for_several_ranks() -> None:
    scene = opaque_scene()
    check_can_share(scene)
    with pytest.raises(UserError, match=r"a file of tiles.*--longest"):
        check_can_share(replace(scene, pixels=replace(scene.pixels, tile=64)))


def test_verbs_and_options_that_are_not_for_several_ranks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    train = ["train", str(ROOT / "data" / "sample"), "-o", str(tmp_path / "out")]
    for command, words in (
        (["eval", str(tmp_path)], "nerf eval is one process"),
        ([*train, "--view"], "--view is not"),
    ):
        assert main.run(command) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert main.run(train) == 2
    assert "expected two whole numbers" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR")
    assert main.run(train) == 2
    assert "MASTER_ADDR is not set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# nerf train as torchrun starts it, with a checkpoint every second; each process leaves its number
WORKER = """
import os, sys
from dataclasses import replace
from pathlib import Path
from nerf.cli import main
from nerf.training import loop
real = loop.train
def train(scene, config, *arguments, **named):
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    Path(sys.argv[1], f"{os.environ['RANK']}-{attempt}").write_text(str(os.getpid()))
    return real(scene, replace(config, checkpoint_seconds=1.0), *arguments, **named)
loop.train = train
main.main(sys.argv[2:])
"""


@native
@pytest.mark.slow  # 40 s each, most of it starting four times two processes
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_goes_on_from_the_last_checkpoint_when_a_worker_is_killed(victim: int, tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    out, scene = tmp_path / "out", ROOT / "data" / "sample"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    verb = ["train", str(scene), "-o", str(out), "--downscale", "8", "--steps", "60", "--check", "off"]
    command = [sys.executable, *launch, str(tmp_path / "worker.py"), str(tmp_path), *verb]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, env=env, stdout=said, stderr=said)
        try:
            patience = time.monotonic() + 120
            while not (out / "checkpoint.safetensors").exists():
                assert process.poll() is None and time.monotonic() < patience, (tmp_path / "said").read_text()
                time.sleep(0.05)
            os.kill(int((tmp_path / f"{victim}-0").read_text()), signal.SIGKILL)
            assert process.wait(180) == 0, (tmp_path / "said").read_text()
        finally:
            process.kill()
    text = (tmp_path / "said").read_text()
    going_on = re.findall(r"going on at step (\d+) of 60", text)
    assert len(going_on) == 1 and 0 < int(going_on[0]) < 60, text
    assert (tmp_path / "1-1").exists(), "both were started anew"
    assert checkpoint.load(out / "checkpoint.safetensors")[1]["training"]["step"] == 60
    assert json.loads((out / "ranks.json").read_text())["ranks"] == 2

    # The same command again is another launch: it finds a run that it did not begin, and leaves it alone.
    for name in ("1-0", "1-1"):
        (tmp_path / name).unlink()
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert again.returncode != 0 and again.stderr.count("holds another run") == 2, again.stderr
    assert not (tmp_path / "1-1").exists(), "no training was begun, also not when torchrun tried again"
