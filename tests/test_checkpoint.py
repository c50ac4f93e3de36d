"""A checkpoint comes back as it was written, or is refused with a sentence; no crash loses a good one."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nerf.errors import UserError
from nerf.io import checkpoint


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "float64": torch.randn(3, 2, dtype=torch.float64, generator=generator),
        "float32": torch.randn(1000, generator=generator),
        "float16": torch.randn(5, 7, generator=generator).half(),
        "bfloat16": torch.randn(5, generator=generator).bfloat16(),
        "int64": torch.tensor([-(2**62), 0, 2**62]),
        "int32": torch.tensor([[1, -2]], dtype=torch.int32),
        "int16": torch.tensor([-3], dtype=torch.int16),
        "int8": torch.tensor([-3], dtype=torch.int8),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "bool": torch.tensor([[True, False], [False, True], [True, True]]),
        "scalar": torch.tensor(4.25),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(12.0).reshape(3, 4).t(),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


CONFIG = {"steps": 12, "name": 'légo "quoted"', "curve": [1.5, 2.25], "nested": {"on": True, "none": None}}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "checkpoint.safetensors"
    checkpoint.save(path, sample(), CONFIG)
    tensors, config = checkpoint.load(path)
    assert config == CONFIG
    assert tensors.keys() == sample().keys()
    for name, tensor in sample().items():
        assert same(tensors[name], tensor), name
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.safetensors"]


def test_the_library_reads_our_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, sample(), CONFIG)
    for name, tensor in load_file(path).items():
        assert same(sample()[name], tensor), name
    checkpoint.save(path, {}, {})
    assert checkpoint.load(path) == ({}, {})


def test_the_one_before_the_last_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    for step in range(4):
        checkpoint.save(path, {"x": torch.full((3,), step)}, {"step": step})
    assert checkpoint.load(path)[1]["step"] == 3
    assert checkpoint.load(checkpoint.previous_path(path))[1]["step"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.previous.safetensors", "run.safetensors"]


def test_without_hard_links_both_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "run.safetensors"
    for step in range(3):
        checkpoint.save(path, {"x": torch.full((3,), step)}, {"step": step})
    assert checkpoint.load(path)[1]["step"] == 2
    assert checkpoint.load(checkpoint.previous_path(path))[1]["step"] == 1


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    link = tmp_path / "checkpoint.safetensors"
    link.symlink_to(tmp_path / "big" / "real.safetensors")
    for step in range(2):
        checkpoint.save(link, {}, {"step": step})
    assert link.is_symlink() and checkpoint.load(link)[1]["step"] == 1


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, sample(), CONFIG)
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    draw = random.Random(0)
    places = [*range(8), *range(8, header, 7), *(draw.randrange(header, len(good)) for _ in range(100)), len(good) - 1]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
            checkpoint.load(path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, sample(), CONFIG)
    good = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, *range(200, len(good), 501), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match=r"truncated|empty|no safetensors"):
            checkpoint.load(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(UserError, match="extra bytes"):
        checkpoint.load(path)


def test_a_damaged_file_points_to_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, {"x": torch.zeros(3)}, {})
    path.with_name("copy.safetensors").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="train again"):
        checkpoint.load(path.with_name("copy.safetensors"))
    checkpoint.save(path, {"x": torch.zeros(3)}, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"use .*checkpoint\.previous\.safetensors"):
        checkpoint.load(path)
    path.unlink()
    with pytest.raises(UserError, match=r"does not exist.*checkpoint\.previous\.safetensors"):
        checkpoint.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="no checkpoint of nerf"):
        checkpoint.load(path)
    torch.save({"x": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="no safetensors file"):
        checkpoint.load(path)
    path.write_text("hello, this is a text file and no safetensors")
    with pytest.raises(UserError, match="no safetensors file"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path)


def test_an_unknown_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    monkeypatch.setattr(checkpoint, "VERSION", 7)
    checkpoint.save(path, {}, {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="format version 7, and this nerf reads version 1"):
        checkpoint.load(path)


def test_what_cannot_be_held_is_a_type_error(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(TypeError, match=r"'x' is torch.complex64"):
        checkpoint.save(path, {"x": torch.zeros(2, dtype=torch.complex64)}, {})
    with pytest.raises(TypeError):
        checkpoint.save(path, {}, {"x": object()})
    assert not path.exists()


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, {"x": torch.zeros(10)}, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # Python turns the signal into EFBIG
    try:
        with pytest.raises(UserError, match=r"cannot write the checkpoint .*the last good checkpoint is untouched"):
            checkpoint.save(path, {"x": torch.zeros(1_000_000)}, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load(path)[1]["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_full_file_system_leaves_the_old_file(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True)
    except OSError:
        pytest.skip("no mount command here")
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        path = small / "checkpoint.safetensors"
        checkpoint.save(path, {"x": torch.zeros(50_000)}, {"step": 1})
        with pytest.raises(UserError, match="No space left on device"):
            checkpoint.save(path, {"x": torch.zeros(500_000)}, {"step": 2})
        assert checkpoint.load(path)[1]["step"] == 1
        assert [p.name for p in small.iterdir()] == ["checkpoint.safetensors"]
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another output folder"):
        checkpoint.save(tmp_path / "file" / "checkpoint.safetensors", {}, {})


def test_ctrl_c_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, {}, {"step": 1})

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {}, {"step": 2})
    assert checkpoint.load(path)[1]["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


# One process imports torch once and forks the writers that get killed, so that a hundred kills take seconds.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from nerf.io import checkpoint

torch.set_num_threads(1)
path, kills = Path(sys.argv[1]), int(sys.argv[2])
draw = random.Random(5)
step = 0
checkpoint.save(path, {"x": torch.full((300_000,), 0.0)}, {"step": 0})
orphans = 0
for _ in range(kills):
    child = os.fork()
    if child == 0:
        while True:
            step += 1
            checkpoint.save(path, {"x": torch.full((300_000,), float(step))}, {"step": step})
    time.sleep(draw.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    orphans += bool(list(path.parent.glob(".*.tmp")))
    tensors, config = checkpoint.load(path)
    assert (tensors["x"] == config["step"]).all()
    assert config["step"] >= step, "a saved step was lost"
    if checkpoint.previous_path(path).exists():
        before, config_before = checkpoint.load(checkpoint.previous_path(path))
        assert (before["x"] == config_before["step"]).all()
        # equal when the kill came between the two renames
        assert config_before["step"] in (config["step"], config["step"] - 1)
    step = config["step"]
checkpoint.save(path, {}, {"step": step + 1})
print(json.dumps({"steps": step, "orphans": orphans, "files": sorted(p.name for p in path.parent.iterdir())}))
"""


def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path / "checkpoint.safetensors"), "100"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] > 20 and result["orphans"] > 20, result  # else the kills did not land where it matters
    assert result["files"] == ["checkpoint.previous.safetensors", "checkpoint.safetensors"]
