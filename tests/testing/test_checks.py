from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from vlp_gym.models.protocol import Scores
from vlp_gym.testing import FaultyModel, PaintedEnv, PaintedModel, check_reward_model, check_wrapper, painted_value
from vlp_gym.wrappers import VLPRewardWrapper


class TinyModel(nn.Module):
    """A mean over the real frames' colours, and what one part of it gets wrong."""

    window, history, frame_size = 4, "sliding", (6, 8)

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.colour = nn.Linear(3, 1)
        nn.init.constant_(self.colour.weight, 2.0)  # weights drawn near zero would hide a fault

    def encode_text(self, instructions):
        text = torch.zeros(len(instructions), max(len(t) for t in instructions), 1)
        for row, instruction in enumerate(instructions):
            text[row, : len(instruction)] = 1.0
        return text.long() if self.fault == "text dtype" else text

    def encode_frames(self, frames):
        tokens = frames.float().mean((1, 2))[:, None] / 255
        if self.fault == "frames input":
            frames.zero_()
        if self.fault == "frames batch":
            tokens = tokens - tokens.mean(0)
        if self.fault == "frames size":
            tokens = tokens.expand(-1, frames.shape[1], -1)
        return tokens[0] if self.fault == "frames shape" else tokens

    def score(self, frames, text, mask):
        progress = self.colour(frames[:, :, 0])[..., 0].sigmoid()
        weights = torch.ones_like(mask) if self.fault == "frame padding" else mask
        mean = (progress * weights).sum(1) / weights.sum(1)
        if self.fault == "text padding":
            mean = mean + text.shape[1]
        if self.fault == "batch":
            mean = mean - mean.mean()
        if self.fault == "random":
            mean = mean + torch.rand(())
        if self.fault == "generator":
            torch.rand(())
        if self.fault == "score input":
            frames.zero_()
        if self.fault == "range":
            progress = progress + 2
        return Scores(mean * torch.nan if self.fault == "nan" else mean, progress, text.sum((1, 2)))


MESSAGES = {
    "frames input": "encode_frames wrote to its input",
    "frames shape": "encode_frames must be [N, K, D] with the sizes (3, None, None), got [1, 3]",
    "frames batch": "encode_frames depends on the other frames of the batch: the answers lie * apart",
    "frames size": "encode_frames must give [3, 6, 3] for frames of every size, got [3, 12, 3]",
    "text dtype": "encode_text must be of a float dtype, got torch.int64",
    "score input": "score wrote to its input",
    "nan": "preference holds NaN or inf",
    "range": "progress must be in [0, 1], got * to *",
    "random": "score gave another answer the second time",
    "generator": "the model drew from a global random generator",
    "batch": "preference depends on the other rows of the batch: the answers lie * apart",
    "text padding": "preference depends on the padding of the text: the answers lie * apart",
    "frame padding": "preference depends on the padding of the frames: the answers lie * apart",
}


@pytest.mark.parametrize("model", [TinyModel(), PaintedModel(relevance=1.0), PaintedModel(history="prefix")])
def test_a_right_model_passes(model):
    check_reward_model(model)


@pytest.mark.parametrize(("fault", "message"), MESSAGES.items())
def test_a_broken_promise_of_a_model_is_named(fault, message):
    pattern = re.escape(message).replace(r"\*", r"[\d.e+-]+")
    with pytest.raises(AssertionError, match=f"^{pattern}$"):
        check_reward_model(TinyModel(fault))


def test_something_that_is_no_model():
    with pytest.raises(AssertionError, match=r"^object lacks a member of vlp_gym\.RewardModel$"):
        check_reward_model(object())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("window", 0, "window must be an int >= 1, got 0"),
        ("history", "all", "history must be 'sliding', 'prefix' or 'prefix-floor', got 'all'"),
    ],
)
def test_wrong_attributes_of_a_model(name, value, message):
    model = PaintedModel()
    setattr(model, name, value)
    with pytest.raises(AssertionError, match=f"^{re.escape(message)}$"):
        check_reward_model(model)


class Fixed(PaintedEnv):
    """Paints the same episode again and again, so that two runs are equal."""

    def reset(self, **options):
        answer = super().reset(**options)
        self.episode = 0
        return answer


@pytest.mark.parametrize("length", [10, 50])
def test_a_right_wrapper_passes(length):
    check_wrapper(VLPRewardWrapper(Fixed([length]), "press the button", PaintedModel()), steps=12)


class Altered(gym.Wrapper):
    """Changes what one step of a wrapped environment answers."""

    def __init__(self, env, change):
        super().__init__(env)
        self.change = change

    def step(self, action):
        return self.change(*self.env.step(action))


def random_reward(observation, reward, *rest):
    return observation, float(np.random.rand()), *rest  # noqa: NPY002


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, r, *rest: (o, np.float64(r), *rest), "the reward must be a Python float, got float64"),
        (lambda o, r, *rest: (o, float("inf"), *rest), "the reward must be finite, got inf"),
        (
            lambda o, r, *rest: (o, r, True, True, rest[-1]),
            "a step that terminates must not say that it was truncated too",
        ),
        (
            lambda o, r, te, tr, info: (o, r, te, tr, {}),
            "info[\"vlp\"] of step must have ['env_reward', 'score', 'success'], got []",
        ),
        (
            lambda o, r, te, tr, info: (o, r, te, tr, {"vlp": {**info["vlp"], "frame": np.zeros(3)}}),
            "info[\"vlp\"]['frame'] must be a number, got ndarray",
        ),
        (random_reward, "reset or step drew from a global random generator"),
    ],
)
def test_a_broken_promise_of_a_wrapper_is_named(change, message):
    env = Altered(VLPRewardWrapper(Fixed(), "press the button", PaintedModel()), change)
    with pytest.raises(AssertionError, match=f"^{re.escape(message)}$"):
        check_wrapper(env)


def test_rewards_that_differ_between_two_runs():
    env = VLPRewardWrapper(PaintedEnv(), "press the button", PaintedModel())
    with pytest.raises(
        AssertionError, match=r"^the rewards of two runs with the same seed and actions differ by 6.1e-05$"
    ):
        check_wrapper(env)  # of two episodes: 1024 / 2 ** 24
    check_wrapper(env, atol=1e-3)


def test_a_step_after_the_end():
    env = gym.wrappers.Autoreset(VLPRewardWrapper(Fixed(), "press the button", PaintedModel()))
    message = "a step after the end of the episode must raise gymnasium.error.ResetNeeded"
    with pytest.raises(AssertionError, match=f"^{re.escape(message)}$"):
        check_wrapper(env)


def test_painted_values_are_distinct_and_exact():
    values = {painted_value(e, p, s) for e in (0, 1, 15) for p in (0, 1, 1023) for s in (0, 1, 1023)}
    assert len(values) == 27
    assert all(0 <= value < 1 and np.float32(value) == value for value in values)
    message = "env, episode and step must be below 16, 1024 and 1024, got (16, 0, 0)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        painted_value(16, 0, 0)


def test_a_faulty_model_keeps_the_protocol_without_its_fault():
    check_reward_model(FaultyModel("none"))
