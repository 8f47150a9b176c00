"""Frames a second through the engine, against a bare loop over the same model, with and without CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from tests.benchmarks.measure import alternate
from tests.gpu.devices import seconds
from tests.gpu.graphs import GraphedModel
from tests.gpu.models import SENTENCE, in_bf16, vlp
from tests.gpu.report import Figure, of_many
from tests.gpu.sizes import Size
from vlp_gym.engine import QueryEngine
from vlp_gym.engine.tickets import Ticket
from vlp_gym.models.registry import load_reward_model

AIM = 0.93
"""Of engine / bare loop, as on the CPU."""


class BareLoop:
    """Frames from the host through a model, a batch at a time, each scored in a window of its own.

    Args:
        model: a reward model on the device.
        text: tokens of one sentence, ``[1, L, D]``.
        frames: uint8 ``[N, H, W, 3]``.
        device: "cpu" or "cuda".
    """

    def __init__(self, model: Any, text: torch.Tensor, frames: np.ndarray[Any, Any], device: str) -> None:
        self.model, self.text, self.frames, self.device = model, text, frames, device

    @torch.inference_mode()
    def once(self, batch: int, count: int) -> None:
        """So many frames in batches of this size; whole batches only."""
        mask = torch.ones(batch, self.model.window, dtype=torch.bool, device=self.device)
        text = self.text.expand(batch, -1, -1)
        for start in range(0, count - batch + 1, batch):
            pixels = torch.from_numpy(self.frames[start : start + batch]).to(self.device)
            tokens = self.model.encode_frames(pixels)
            windows = tokens[:, None].expand(-1, self.model.window, -1, -1).contiguous()
            self.model.score(windows, text, mask).preference.tolist()

    def per_frame(self, batch: int) -> float:
        """Seconds a frame, over all frames."""
        count = len(self.frames) // batch * batch
        return seconds(lambda: self.once(batch, count), 1, self.device) / count

    def quickly(self, batch: int, times: int = 3) -> list[float]:
        """Seconds a frame, over a few batches, after one that does not count."""
        count = min(max(4 * batch, 64), len(self.frames)) // batch * batch
        self.once(batch, batch)
        return [seconds(lambda: self.once(batch, count), 1, self.device) / count for _ in range(times)]


def through_engine(engine: QueryEngine, envs: int, frames: np.ndarray[Any, Any], device: str) -> Callable[[], float]:
    """What measures the seconds a frame through an engine, with as many environments as given."""
    numbers = [engine.add_env() for _ in range(envs)]
    text = engine.encode_text(SENTENCE)
    episodes = iter(range(10**6))

    def once() -> None:
        episode = next(episodes)
        for number in numbers:
            engine.begin(number, episode, text)
        answered = 0
        for step in range(len(frames) // envs):
            tickets = [Ticket(number, episode, step) for number in numbers]
            engine.submit(tickets, frames[step * envs : (step + 1) * envs])
            answered += len(engine.poll())
        answered += len(engine.flush())
        assert answered == len(frames) // envs * envs, answered

    return lambda: seconds(once, 1, device) / (len(frames) // envs * envs)


def throughput(size: Size, device: str) -> Iterator[Figure]:
    """VLP in bfloat16: bare loop and engine, first without graphs, then with."""
    frames = np.random.default_rng(0).integers(0, 256, (size.frames, size.pixels, size.pixels, 3), np.uint8)
    model = vlp(size, device)
    with torch.inference_mode():
        text = model.encode_text([SENTENCE])
    model, text = in_bf16(model), text.bfloat16()
    eager: dict[int, float] = {}
    for name, measured in (("eager", model), ("CUDA graphs", GraphedModel(model, max(size.batches)))):
        bare = BareLoop(measured, text, frames, device)
        costs = {}
        for batch in size.batches:
            times = bare.quickly(batch)
            costs[batch] = min(times)
            yield of_many(f"{name}, bare loop, batch {batch}", (1 / each for each in times), "frames/s")
        best = min(costs, key=costs.__getitem__)
        yield Figure(f"{name}, best batch", best)
        engine = QueryEngine(measured, mode="async", max_batch=best, slots=4 * max(best, size.engine_envs))
        try:
            through = through_engine(engine, size.engine_envs, frames, device)
            through()  # graphs of the batches that come about
            a, b = alternate(through, lambda bare=bare, best=best: bare.per_frame(best), size.blocks)
        finally:
            engine.close()
        yield of_many(f"{name}, engine", 1 / a, "frames/s")
        yield of_many(f"{name}, engine / bare loop", b / a, aim=AIM)
        eager = eager or costs
        if name != "eager":
            for batch in size.batches:
                yield Figure(f"bare loop, graphs / eager, batch {batch}", eager[batch] / costs[batch])
            tokens, scores = _differences(model, measured, text, frames[:6], device)
            yield Figure("frame tokens, graphs - eager, as a share of their size", tokens, at_most=0.02)
            yield Figure("largest difference of a score, graphs - eager", scores, at_most=0.05)
    compared, again = (BareLoop(model, text, frames, device).per_frame(best) for _ in range(2))
    yield Figure("bare loop / bare loop (A/A)", again / compared)


@torch.inference_mode()
def _differences(
    eager: Any, graphed: Any, text: torch.Tensor, frames: np.ndarray[Any, Any], device: str
) -> tuple[float, float]:
    """How far tokens and scores of the same frames lie apart; bfloat16 rounds to 1 / 256."""
    mask = torch.ones(len(frames), eager.window, dtype=torch.bool, device=device)
    answers = []
    for model in (eager, graphed):
        tokens = model.encode_frames(torch.from_numpy(frames).to(device))
        windows = tokens[:, None].expand(-1, model.window, -1, -1).contiguous()
        scores = model.score(windows, text.expand(len(frames), -1, -1), mask).preference
        answers.append((tokens.float(), scores.float()))
    (tokens, scores), (other_tokens, other_scores) = answers
    return float((tokens - other_tokens).norm() / tokens.norm()), float((scores - other_scores).abs().max())


def frames_per_second(size: Size, device: str) -> Iterator[Figure]:
    """`vlp-compact` and VLP, float32 and bfloat16, by batch size: frames from the host, encoded and scored."""
    frames = np.random.default_rng(0).integers(0, 256, (size.frames, size.pixels, size.pixels, 3), np.uint8)
    for name in ("vlp-compact", "vlp"):
        model: Any = vlp(size, device) if name == "vlp" else load_reward_model(name, device=device)
        with torch.inference_mode():
            text = model.encode_text([SENTENCE])
        for precision in ("float32", "bfloat16"):
            if precision == "bfloat16":
                model, text = in_bf16(model), text.bfloat16()
            bare = BareLoop(model, text, frames, device)
            for batch in size.batches:
                speeds = (1 / each for each in bare.quickly(batch))
                yield of_many(f"{name}, {precision}, batch {batch}", speeds, "frames/s")
