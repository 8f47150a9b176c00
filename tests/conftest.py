"""Settings for every test: an off-screen GL backend, one thread, no network, and Ctrl-C as in the foreground."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from vlp_gym.engine import tickets
from vlp_gym.frames.gl import choose_gl_backend

choose_gl_backend()  # before anything imports mujoco
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would the tests


@pytest.fixture(autouse=True)
def first_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environments of each test are numbered from 0; within a process no number comes twice."""
    monkeypatch.setattr(tickets, "_numbers", itertools.count())


@pytest.fixture
def server() -> Iterator[Any]:
    """A `ChatServer` that answers from what is in the pictures."""
    from tests.chat_server import ChatServer

    with ChatServer() as running:
        yield running


@pytest.fixture
def chat(server: Any, tmp_path: Path) -> Iterator[Any]:
    """A `ChatClient` of it that hardly waits."""
    from vlp_gym.prompting import ChatClient

    client = ChatClient("tiny", base_url=server.url, cache=tmp_path / "cache", backoff_s=0.001)
    yield client
    client.close()
