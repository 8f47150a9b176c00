"""Settings for every test: an off-screen GL backend, one thread, no network, and Ctrl-C as in the foreground."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch

from vlp_gym.rendering import choose_gl_backend

choose_gl_backend()  # before anything imports mujoco
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would the tests
