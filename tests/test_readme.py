"""The Python of the README runs as it is printed, on the bundled scene and with few steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2  # the second one fits an image
    code = blocks[0]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 12
    # the same, only shorter: few steps, a coarse mesh, fewer and smaller views
    for printed, short in (
        ("minutes=2", "steps=300"),
        ("resolution=256", "resolution=48"),
        ('nerf.load("data/sample")', 'nerf.load("data/sample", downscale=4)'),
    ):
        assert printed in code
        code = code.replace(printed, short)
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)

    checkpoint = tmp_path / "runs" / "robot" / "checkpoint.safetensors"
    assert checkpoint.is_file() and checkpoint.with_name("mesh.glb").stat().st_size > 1000
    view = names["view"]
    assert isinstance(view, dict) and set(view) >= {"color", "opacity", "depth", "normal"}


def test_the_python_that_fits_an_image_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    code = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)[1]
    assert "steps=2000" in code and "1024, 1024" in code
    Image.new("RGB", (16, 12), (40, 80, 120)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code.replace("steps=2000", "steps=60").replace("1024, 1024", "24, 32"), "README.md", "exec"), names)
    assert (tmp_path / "runs/photo/checkpoint.safetensors").is_file()
    assert getattr(names["pixels"], "shape", None) == (24, 32, 3)
