"""The `>>>` examples of everything public run, everything public has one, and docs/api.md shows it as it is."""

from __future__ import annotations

import doctest
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nerf

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import api  # noqa: E402

STATE = {"to_state", "from_state", "to_dict", "from_dict", "layout"}  # what their names say
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(name: str) -> list[doctest.DocTest]:
    """Those of a public name and, of a class, of its public methods and properties."""
    thing = getattr(nerf, name)
    module: Any = sys.modules[thing.__module__]
    names = {**vars(module), "nerf": nerf, "np": np, "torch": torch}
    found = doctest.DocTestFinder(exclude_empty=True).find(thing, f"nerf.{name}", module=module, globs=names)
    return [test for test in found if test.examples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data/sample, and with the run that examples load: runs/robot, a few steps long."""
    path = tmp_path_factory.mktemp("examples")
    (path / "data").symlink_to(ROOT / "data")
    scene = nerf.load(path / "data/sample", downscale=8)
    nerf.train(scene, nerf.TrainConfig(steps=60), out=path / "runs/robot", progress=False)
    return path


@pytest.mark.parametrize("name", sorted(nerf.__all__))
def test_the_examples_run(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for test in examples(name):
        told: list[str] = []
        result = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(test, out=told.append)
        assert not result.failed, "".join(told)


def test_everything_public_has_an_example() -> None:
    missing = [name for name in nerf.__all__ if not examples(name)]
    assert not missing, f"without an example: {missing}"


def test_everything_public_is_documented() -> None:
    for name in nerf.__all__:
        thing = getattr(nerf, name)
        assert inspect.getdoc(thing), name
        for key, member in vars(thing).items() if inspect.isclass(thing) else ():
            if inspect.isfunction(member) and not key.startswith("_") and key not in STATE:
                assert inspect.getdoc(getattr(thing, key)), f"{name}.{key}"


def test_the_page_of_the_public_names_is_that_of_the_code() -> None:
    """Names, signatures and docstrings: a change of any of them shows in the diff of this page."""
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "docs/api.md is stale: python scripts/api.py"
