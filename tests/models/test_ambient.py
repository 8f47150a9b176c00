"""Whatever the process has set in PyTorch, the rewards are the same; or an error says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from painted import SENTENCE
from tiny import tiny_model
from torch import nn

from vlp_gym.engine.guard import GuardedModel
from vlp_gym.errors import QueryError
from vlp_gym.models.ambient import usual_torch
from vlp_gym.models.checkpoint import save_checkpoint
from vlp_gym.models.registry import load_reward_model
from vlp_gym.testing import PaintedEnv, PaintedModel
from vlp_gym.wrappers import VLPRewardWrapper


@pytest.fixture
def float64() -> Iterator[None]:
    """As simulations set it, for all threads."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Pictures(PaintedEnv):
    """Noise that is the same in each episode."""

    def render(self):
        return np.random.default_rng(self.elapsed).integers(0, 256, (32, 32, 3), np.uint8)


def rewards(model, mode: str = "sync") -> list[float]:
    """What one episode pays."""
    env = VLPRewardWrapper(Pictures([6]), SENTENCE, model, mode=mode)
    env.reset()
    paid = [env.step(0)[1] for _ in range(6)]
    if mode == "async":
        paid = [delivery.reward for delivery in env.flush()]
    env.close()
    return paid


SETTINGS = {
    "dtype": nullcontext,
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_rewards_do_not_depend_on_it(setting, mode, request):
    model = tiny_model()
    expected = rewards(model)
    assert len(set(expected)) == 6
    request.getfixturevalue("float64")  # beside each of the others
    with SETTINGS[setting]():
        assert rewards(model, mode) == pytest.approx(expected, abs=1e-5)
        assert torch.get_default_dtype() == torch.float64  # of other threads too


def test_deterministic_algorithms():
    """They also fill new memory with NaN."""
    model = tiny_model()
    expected = rewards(model)
    torch.use_deterministic_algorithms(True)
    try:
        assert rewards(model) == expected
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_checkpoint_is_the_same_model(setting, tmp_path, request):
    save_checkpoint(tiny_model(), tmp_path)
    expected = load_reward_model(tmp_path).state_dict()
    request.getfixturevalue("float64")
    with SETTINGS[setting]():
        loaded = load_reward_model(tmp_path)
    assert {name: (value.dtype, value.device) for name, value in loaded.state_dict().items()} == {
        name: (value.dtype, value.device) for name, value in expected.items()
    }
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert not any(weight.is_inference() for weight in loaded.parameters())  # it can be trained


class Wide(nn.Module, PaintedModel):
    """A model that is float64, as the process's new tensors are."""

    def __init__(self):
        nn.Module.__init__(self)
        PaintedModel.__init__(self)
        self.factor = nn.Parameter(torch.ones(1, 1))

    def encode_frames(self, frames):
        return (frames.double().mean((1, 2, 3))[:, None] @ self.factor @ torch.ones(1, 1))[:, None]


def test_a_model_that_is_float64_keeps_the_default_dtype(float64):
    assert GuardedModel(Wide()).encode_frames(torch.zeros(2, 8, 8, 3).byte(), where="here").dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_live_model_of_another_dtype(dtype):
    message = (
        r"^the reward model raised RuntimeError: .* \(.*\); "
        rf"its weights are {dtype}, model\.float\(\) may help$"
    )
    with pytest.raises(QueryError, match=message):
        rewards(tiny_model().to(dtype))


def test_what_is_made_float32():
    """Only what is float64 because of the default: neither what was asked for, nor what comes from float64."""
    whole = torch.arange(3)
    wide, array = torch.ones(2, dtype=torch.float64), np.ones(2)
    torch.set_default_dtype(torch.float64)
    try:
        with usual_torch():
            made = [torch.zeros(2), torch.tensor([0.5]), whole / 2, whole * 0.5, nn.Linear(2, 2).weight]
            kept = [
                torch.zeros(2, dtype=torch.float64),
                torch.ones(2).double(),
                torch.ones(2).to(torch.float64),
                torch.from_numpy(array),
                torch.tensor(array),
                torch.cat([wide, wide]),
                (wide * 0.5),
                wide.max(0).values,
            ]
            halves = torch.linspace(0, 1, 3).max(0)
            assert (torch.tensor([1]).dtype, torch.ones(2).half().dtype) == (torch.int64, torch.float16)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in made} == {torch.float32}
    assert {tensor.dtype for tensor in kept} == {torch.float64}
    assert (halves.values.dtype, halves.indices.item()) == (torch.float32, 2)
