"""Settings for every test: an off-screen GL backend, one thread, no network."""

from __future__ import annotations

import ctypes.util
import os
from pathlib import Path

# Before anything imports mujoco. On a CPU both backends draw equally fast; EGL is for GPUs and for newer systems,
# which no longer ship OSMesa.
if "MUJOCO_GL" not in os.environ:
    osmesa = ctypes.util.find_library("OSMesa") is not None and not Path("/dev/nvidia0").exists()
    os.environ["MUJOCO_GL"] = "osmesa" if osmesa else "egl"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch

torch.set_num_threads(1)
