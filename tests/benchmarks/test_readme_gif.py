"""The moving picture of the README can be drawn again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("readme_gif.py")


@pytest.mark.slow
def test_a_rollout_becomes_a_picture(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("metaworld")
    path = tmp_path / "rollout.gif"
    options = ["--steps", "4", "--every", "2", "--size", "64", "--height", "120", "--out", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    with Image.open(path) as picture:
        assert picture.n_frames == 3  # the reset and 4 steps, every second one
        assert picture.height == 120
