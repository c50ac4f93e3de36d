"""A few of the kills of scripts/kill_points.py, which by hand kills at every file operation of every verb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_what_is_killed_is_finished_by_the_same_command(tmp_path: Path) -> None:
    words = ["--verbs", "train,fit", "--points", "3", "--seed", "3"]
    done = subprocess.run(
        [sys.executable, "-P", ROOT / "scripts" / "kill_points.py", *words, "--out", tmp_path / "kills.json"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["verb"]: row for row in json.loads((tmp_path / "kills.json").read_text())["rows"]}
    assert all(row["kills"] == 3 and row["operations"] > 50 and row["lost"] == [] for row in rows.values()), rows
