"""Reward servers on this computer: in a thread, and `vlp-gym serve` as a process, to be killed and started again."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from vlp_gym.errors import InstructionError
from vlp_gym.models.protocol import Scores
from vlp_gym.serving import RemoteModel
from vlp_gym.serving.answer import Answerer
from vlp_gym.serving.app import Limits, make_app
from vlp_gym.serving.identity import describe
from vlp_gym.serving.run import LOOPBACK, http_server
from vlp_gym.serving.worker import Worker
from vlp_gym.testing import PaintedModel

ROOT = Path(__file__).parents[1]
START_S = 110


class ThreadServer:
    """The same application and HTTP server in a thread of this process.

    Args:
        model: a live one.
        name: its name.
        token: that clients must have.
        limits: of requests.
        cache: bytes for tokens.
        max_batch: of the worker.
    """

    def __init__(
        self, model: Any, *, name: str = "tiny", token: str | None = None, limits: Limits | None = None,
        cache: int = 1 << 26, max_batch: int = 64,
    ) -> None:  # fmt: skip
        limits = limits or Limits()
        self.answerer, self.token = Answerer(model, cache), token
        served = describe(self.answerer.model, name, max_body=limits.max_body, max_places=limits.max_places)
        self.worker = Worker(self.answerer, max_batch, max_waiting=64)
        app = make_app(self.worker, served, token=token, hosts=LOOPBACK, limits=limits)
        self._server = http_server(app)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    def __enter__(self) -> ThreadServer:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(30)
        self.worker.stop()
        self._socket.close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> RemoteModel:
        return RemoteModel(self.address, **{"token": self.token, **options})

    def memory(self) -> int:
        """Bytes that the process takes."""
        return int(psutil.Process().memory_info().rss)


class RewardServer:
    """A running server.

    Args:
        model: a name or a folder; "painted" is a `PaintedModel`, and "every" one with optional parts.
        folder: an empty one for the entry points of these two.
        options: of the command.
        token: of the server.
    """

    def __init__(self, model: Any, folder: Path, *options: str, token: str | None = None) -> None:
        self.model, self.folder, self.options, self.token = str(model), folder, options, token
        self.port = free_port()
        info = folder / "served-0.1.dist-info"
        if not info.exists():
            info.mkdir(parents=True)
            points = "\n".join(f"{name} = tests.reward_server:{name}" for name in ("painted", "every"))
            (info / "entry_points.txt").write_text(f"[vlp_gym.reward_models]\n{points}\n")
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: served\nVersion: 0.1\n")
        self.process = self._start()

    def __enter__(self) -> RewardServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> RemoteModel:
        return RemoteModel(self.address, **{"token": self.token, **options})

    def memory(self) -> int:
        """Bytes that the process takes."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def kill(self) -> None:
        """As the system does when memory runs out."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def restart(self, model: Any = None) -> None:
        """Start it again at the same port, with another model if one is named."""
        self.kill()
        self.model = self.model if model is None else str(model)
        self.process = self._start()

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C: the exit status, and what it has said last."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def _start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(self.folder), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        environment.pop("VLP_GYM_SERVER_TOKEN", None)
        if self.token is not None:
            environment["VLP_GYM_SERVER_TOKEN"] = self.token
        command = [sys.executable, "-m", "vlp_gym.commands.main", "serve", self.model, "--port", str(self.port)]
        process = subprocess.Popen(
            [*command, *self.options], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], START_S)[0], "the server does not start"
        said = process.stdout.readline()
        if f":{self.port}" not in said:
            raise AssertionError(process.communicate()[1])
        return process


def free_port() -> int:
    """A port of none of those that the system gives to clients: one of them could take it while the server is away."""
    for port in random.Random().sample(range(20_000, 30_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def painted(device: Any) -> PaintedModel:
    """Served under the name "painted"."""
    return PaintedModel()


class EveryPart(PaintedModel):
    """A `PaintedModel` with optional parts, which cannot score bright frames: NaN from 0.5, and an error from 0.9."""

    truncate = False
    value_range = (0.0, 2.0)

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """At most 20 characters."""
        if not self.truncate and max(map(len, instructions)) > 20:
            raise InstructionError("at most 20 characters")
        return super().encode_text(instructions)

    def score(self, frames: Tensor, text: Tensor, mask: Tensor) -> Scores:
        """See the class."""
        last = frames[:, -1, 0, 0]
        if (last > 0.9).any():
            raise RuntimeError("too bright for me")
        scores = super().score(frames, text, mask)
        scores.preference[last > 0.5] = float("nan")
        return scores

    def prefer(self, a: Tensor, b: Tensor, text: Tensor) -> Tensor:
        """A head that likes the first video in any case."""
        return torch.sigmoid(1.0 + a[:, -1, 0, 0] - b[:, -1, 0, 0])

    def novelty(self, frames: Tensor) -> Tensor:
        """Ten times the painted value."""
        return 10 * frames[:, 0, 0]


def every(device: Any) -> EveryPart:
    """Served under the name "every"."""
    return EveryPart()
