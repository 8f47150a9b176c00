"""Settings for every test: an off-screen GL backend, one thread, no network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch

from vlp_gym.rendering import choose_gl_backend

choose_gl_backend()  # before anything imports mujoco
torch.set_num_threads(1)
