"""Checks for your own reward models and wrapped environments.

`check_reward_model` and `check_wrapper` raise AssertionError with the broken requirement.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from vlp_gym.engine.guard import GuardedModel
from vlp_gym.models.protocol import ContextualModel, RewardModel, Scores, value_range
from vlp_gym.rewards.info import ours_in, ticket_in

SENTENCES = ("press the button", "close the door and then open the drawer, please")


def check_reward_model(model: RewardModel, *, instructions: tuple[str, str] = SENTENCES, atol: float = 1e-4) -> None:
    """Check that a model fulfils `RewardModel`, with random frames and a few forward passes.

    Checks shapes, dtypes and ranges; that scores repeat and global random generators stay untouched; that inputs are
    not modified; that padding of frames and text and other rows of a batch have no influence; and that the wrapper gets
    the same scores whatever default dtype, default device or autocast the process has set.

    Args:
        model: any reward model; a module is put into eval mode and stays on its device.
        instructions: a short and a longer one that the model accepts; for a goal-image model two paths of pictures.
        atol: largest difference between scores that differ only in batching or padding.

    Raises:
        AssertionError: a requirement is broken.

    Example:
        >>> from vlp_gym.testing import PaintedModel
        >>> check_reward_model(PaintedModel())
    """
    assert isinstance(model, RewardModel), f"{type(model).__name__} lacks a member of vlp_gym.RewardModel"
    counts = isinstance(model.window, int) and model.window >= 1
    assert counts, f"window must be an int >= 1, got {model.window!r}"
    known = model.history in ("sliding", "prefix", "prefix-floor")
    assert known, f"history must be 'sliding', 'prefix' or 'prefix-floor', got {model.history!r}"
    height, width = model.frame_size
    if isinstance(model, torch.nn.Module):
        model.eval()
    generator = np.random.default_rng(0)  # not torch's: the check must not touch the global generators
    pixels = torch.from_numpy(generator.integers(0, 256, (3, height, width, 3), np.uint8)).to(_device(model))
    before = _random_states()
    with torch.inference_mode():
        tokens = _check_encode_frames(model, pixels, atol)
        text = _check_encode_text(model, instructions)
        _check_score(model, tokens, text, instructions[0], atol)
    _check_ambient(model, pixels, instructions, atol)
    assert before == _random_states(), "the model drew from a global random generator"


def _check_encode_frames(model: RewardModel, pixels: Tensor, atol: float) -> Tensor:
    given = pixels.clone()
    tokens = model.encode_frames(given)
    assert torch.equal(given, pixels), "encode_frames wrote to its input"
    _check_float(tokens, "encode_frames", (3, None, None), "[N, K, D]")
    assert torch.equal(tokens, model.encode_frames(pixels)), "encode_frames gave another answer the second time"
    alone = torch.cat([model.encode_frames(frame[None]) for frame in pixels])
    _check_close(alone, tokens, atol, "encode_frames depends on the other frames of the batch")
    doubled = model.encode_frames(pixels.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert doubled.shape == tokens.shape, (
        f"encode_frames must give {list(tokens.shape)} for frames of every size, got {list(doubled.shape)}"
    )
    return tokens


def _check_encode_text(model: RewardModel, instructions: tuple[str, str]) -> Tensor:
    text = model.encode_text(list(instructions))
    _check_float(text, "encode_text", (len(instructions), None, None), "[B, L, D]")
    assert torch.equal(text, model.encode_text(list(instructions))), "encode_text gave another answer the second time"
    return text


def _check_score(model: RewardModel, tokens: Tensor, text: Tensor, instruction: str, atol: float) -> None:
    window = torch.stack([tokens, tokens[[2, 2, 0]]])
    mask = torch.ones(window.shape[:2], dtype=torch.bool, device=tokens.device)
    given = (window.clone(), text.clone(), mask.clone())
    scores = model.score(*given)
    for tensor, original in zip(given, (window, text, mask), strict=True):
        assert torch.equal(tensor, original), "score wrote to its input"
    assert isinstance(scores, Scores), f"score must give Scores, got {type(scores).__name__}"
    _check_float(scores.preference, "preference", (2,), "[B]")
    if scores.progress is not None:
        _check_float(scores.progress, "progress", (2, 3), "[B, T]")
        low, high = scores.progress.min().item(), scores.progress.max().item()
        least, most = value_range(model)
        assert least <= low <= high <= most, f"progress must be in [{least:g}, {most:g}], got {low:.3g} to {high:.3g}"
    if scores.relevance is not None:
        _check_float(scores.relevance, "relevance", (2,), "[B]")
    heads = _heads(scores)
    again = _heads(model.score(window, text, mask))
    assert all(torch.equal(heads[name], again[name]) for name in heads), "score gave another answer the second time"

    alone = [_heads(model.score(window[row : row + 1], text[row : row + 1], mask[:1])) for row in range(2)]
    for name in heads:
        joined = torch.cat([row[name] for row in alone])
        _check_close(joined, heads[name], atol, f"{name} depends on the other rows of the batch")
    # Alone, the short sentence has no padding rows.
    short = _heads(model.score(window[:1], model.encode_text([instruction]), mask[:1]))
    for name in heads:
        _check_close(short[name], heads[name][:1], atol, f"{name} depends on the padding of the text")
    padded = torch.cat([window[:, :1], window], dim=1)
    padded_mask = torch.cat([~mask[:, :1], mask], dim=1)
    for name, values in _heads(model.score(padded, text, padded_mask)).items():
        real = values[:, 1:] if name == "progress" else values
        _check_close(real, heads[name], atol, f"{name} depends on the padding of the frames")
    if isinstance(model, ContextualModel):
        seen = model.encode_in_context(window.flatten(0, 1), window[:, :1].expand_as(window).flatten(0, 1))
        _check_float(seen, "encode_in_context", (mask.numel(), None, None), "[N, K, D]")
        for name, values in _heads(model.score_in_context(seen.unflatten(0, mask.shape), text, mask)).items():
            _check_close(values, heads[name], atol, f"{name} of score_in_context differs from that of score")
    for name, values in _heads(model.score(window[:, :1], text, mask[:, :1])).items():
        assert values.isfinite().all(), f"{name} is NaN or inf for a window of one frame"


def _check_ambient(model: RewardModel, pixels: Tensor, instructions: tuple[str, str], atol: float) -> None:
    guard = GuardedModel(model)

    def ask() -> dict[str, Tensor]:
        tokens = guard.encode_frames(pixels, where="check")
        text = guard.encode_text(list(instructions), where="check")
        window = tokens[None].expand(2, *tokens.shape)
        mask = torch.ones(window.shape[:2], dtype=torch.bool, device=tokens.device)
        return _heads(guard.score(window, text, mask, where="check"))

    usual = ask()
    for name, setting in AMBIENT.items():
        with setting():
            heads = ask()
        for head, values in heads.items():
            _check_close(values, usual[head], atol, f"{head} depends on {name} of the process")


@contextmanager
def _default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT: dict[str, Callable[[], Any]] = {
    "the default dtype": _default_dtype,
    "the default device": lambda: torch.device("meta"),
    "the autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def check_wrapper(env: gym.Env[Any, Any], *, steps: int = 20, seed: int = 0, atol: float = 1e-6) -> None:
    """Check an environment under `VLPRewardWrapper`, or under your own similar wrapper.

    Checks that rewards are finite Python floats; that ``info["vlp"]`` has its keys; that the same seed and actions give
    the same rewards (in mode "async", one delivery per step, in order); that a step after the end of an episode raises;
    and that global random generators stay untouched.

    Args:
        env: the wrapped environment, which renders deterministically; it is reset and stays open.
        steps: largest number of steps in each of two runs.
        seed: seeds the resets and the actions.
        atol: how far apart the rewards of the two runs may lie. In the mode "async" batches are of another size each
            time, and with it the rounding of a model's sums.

    Raises:
        AssertionError: a requirement is broken.
    """
    first, over = _rollout(env, steps, seed)
    second, _ = _rollout(env, steps, seed)
    lengths = f"{len(first)} and {len(second)}"
    assert len(first) == len(second), f"two runs with the same seed and actions took {lengths} steps"
    gap = max((abs(a - b) for a, b in zip(first, second, strict=True)), default=0.0)
    assert gap <= atol, f"the rewards of two runs with the same seed and actions differ by {gap:.2g}"
    if over:
        with suppress(ResetNeeded):
            env.step(env.action_space.sample())
            raise AssertionError("a step after the end of the episode must raise gymnasium.error.ResetNeeded")


def _rollout(env: gym.Env[Any, Any], steps: int, seed: int) -> tuple[list[float], bool]:
    rewards: list[float] = []
    late, tickets = [], []
    env.action_space.seed(seed)
    before = _random_states()
    _, info = env.reset(seed=seed)
    _check_info(info, "reset")
    over = False
    while len(rewards) < steps and not over:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        _check_info(info, "step")
        assert type(reward) is float, f"the reward must be a Python float, got {type(reward).__name__}"
        assert math.isfinite(reward), f"the reward must be finite, got {reward}"
        assert not (terminated and truncated), "a step that terminates must not say that it was truncated too"
        rewards.append(reward)
        over = terminated or truncated
        ticket = ticket_in(ours_in(info))
        if ticket is not None:
            tickets.append(ticket)
            late += env.get_wrapper_attr("poll")()
    if tickets:
        late += env.get_wrapper_attr("flush")()
        assert [delivery.ticket for delivery in late] == tickets, "each step must be delivered once, in order"
        rewards = [delivery.reward for delivery in late]
    assert before == _random_states(), "reset or step drew from a global random generator"
    return rewards, over


def _check_info(info: dict[str, Any], call: str) -> None:
    expected = {"env_reward", "score", "success"}
    found = ours_in(info) or {}
    assert expected <= set(found), f'info["vlp"] of {call} must have {sorted(expected)}, got {sorted(found)}'
    for name, value in found.items():
        fits = isinstance(value, (bool, int, float, np.number, np.bool_))
        assert fits, f'info["vlp"][{name!r}] must be a number, got {type(value).__name__}'


def _check_float(tensor: Any, name: str, shape: tuple[int | None, ...], words: str) -> None:
    assert isinstance(tensor, Tensor), f"{name} must be a tensor {words}, got {type(tensor).__name__}"
    assert tensor.is_floating_point(), f"{name} must be of a float dtype, got {tensor.dtype}"
    expected = [size if want is None else want for want, size in zip(shape, tensor.shape, strict=False)]
    fits = len(shape) == tensor.ndim and expected == list(tensor.shape)
    assert fits, f"{name} must be {words} with the sizes {shape}, got {list(tensor.shape)}"
    assert tensor.isfinite().all(), f"{name} holds NaN or inf"


def _check_close(a: Tensor, b: Tensor, atol: float, message: str) -> None:
    gap = (a.float() - b.float()).abs().max().item()
    assert gap <= atol, f"{message}: the answers lie {gap:.2g} apart"


def _heads(scores: Scores) -> dict[str, Tensor]:
    heads = {"preference": scores.preference, "progress": scores.progress, "relevance": scores.relevance}
    return {name: values for name, values in heads.items() if values is not None}


def _device(model: RewardModel) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _random_states() -> tuple[str, str, bytes]:
    """Comparable states of Python's, NumPy's and PyTorch's global generators."""
    return repr(random.getstate()), repr(np.random.get_state()), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002
