"""nerf.capture on a disk that runs full, and after it was cut off: what is there is whole, and the end is the same."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from captures import HEIGHT, WIDTH, write_photos

from nerf.capture import features, pairs, verifying
from nerf.capture.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


def job_of(folder: Path, n: int, matching: str = "auto") -> dict[str, Any]:
    """What the worker is told of n photos that lie in the folder's images/."""
    write_photos(folder / "images", n)
    (folder / "capture").mkdir()
    shared = {"width": WIDTH, "height": HEIGHT, "camera": 0, "focal": None, "mask": False, "gps": None}
    return {
        "folder": str(folder),
        "photos": [{"name": f"photo_{k:02d}.png", **shared} for k in range(n)],
        "threads": 1,
        "is_video": False,
        "matching": matching,
        "settings": asdict(Settings()),
        "database": str(folder / "capture" / "features_1.db"),
    }


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing beyond so many bytes of a file fails, as on a full disk (Python has the signal of it ignored)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_model_that_does_not_fit_the_disk_leaves_the_one_before(tmp_path: Path) -> None:
    """COLMAP writes what fits and says nothing."""
    pycolmap = pytest.importorskip("pycolmap")
    from nerf.capture.dataset import write_model

    options = pycolmap.SyntheticDatasetOptions()
    options.num_points3D = 50
    small = pycolmap.synthesize_dataset(options)
    write_model(small, tmp_path / "model" / "0")
    options.num_points3D = 2000
    large = pycolmap.synthesize_dataset(options)
    for limit in (1000, 60_000, 100_000):
        with files_of_at_most(limit), pytest.raises(OSError, match="No space left"):
            write_model(large, tmp_path / "model" / "0")
        assert [p.name for p in tmp_path.iterdir()] == ["model"]
        assert pycolmap.Reconstruction(str(tmp_path / "model" / "0")).num_points3D() == small.num_points3D()
    write_model(large, tmp_path / "model" / "0")
    assert pycolmap.Reconstruction(str(tmp_path / "model" / "0")).num_points3D() == large.num_points3D()


def test_a_worker_says_what_is_wrong_even_where_its_log_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("pycolmap")
    job = job_of(tmp_path, 3)
    Path(job["database"]).write_bytes(b"this is no database" * 100)
    (tmp_path / "job.json").write_text(json.dumps(job))
    with (
        open("/dev/full", "w") as full,
        subprocess.Popen(
            [sys.executable, "-m", "nerf.capture.worker", str(tmp_path / "job.json")],
            stdin=subprocess.PIPE,  # open as long as the parent lives
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as process,
    ):
        assert process.stdout is not None
        said = process.stdout.read().splitlines()
    assert process.returncode != 0 and "database" in json.loads(said[-1])["error"]


def test_statistics_that_were_cut_off_are_found_again(tmp_path: Path) -> None:
    """A full disk takes half a line; what is written later does not hang on to it."""
    pytest.importorskip("pycolmap")
    job = job_of(tmp_path, 3)
    found = features.extract(job)
    log = tmp_path / "capture" / "features_1.jsonl"
    text = log.read_text()
    for cut in (0, 1, 30, len(text) // 2):
        log.write_text(text[: len(text) - cut])
        assert features.extract(job) == found
        assert features.extract(job) == found, "and is read again"
    assert json.loads((tmp_path / "capture" / "statistics.json").read_text()) == found


def test_retrieval_matches_the_same_pairs_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partners of partners are those of the first pairs, whatever an interrupted call has found of the further ones."""
    pytest.importorskip("pycolmap")
    monkeypatch.setattr(pairs, "SIMILAR", 2)
    monkeypatch.setattr(pairs, "TRANSITIVE", 2)
    job = job_of(tmp_path, 12, "retrieval")
    statistics = features.extract(job)
    whole = verifying.match_pairs(job, statistics)
    assert 12 < whole["pairs_matched"] < 66
    assert verifying.match_pairs(job, statistics) == whole
