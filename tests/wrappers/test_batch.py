"""Environments that draw all their frames at once: every reward belongs to the step that the painted frame names."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import NumpyToTorch
from painted import SENTENCE, Expected, noop, painted_fns

from vlp_gym.errors import FrameError
from vlp_gym.testing import PaintedEnv, PaintedModel
from vlp_gym.wrappers import LateRewards, VLPBatchRewardWrapper

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
UNEQUAL = ([3, 5, 1], [4], [1, 1, 7])
STEPS = 25


class Tensors(NumpyToTorch):
    """As ManiSkill's vector environment without its own resets: a tensor of frames, `env_idx`, a wrong mode."""

    auto_reset = False

    def __init__(self, env):
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": SAME_STEP}

    def reset(self, *, seed=None, options=None):
        if options and "env_idx" in options:
            mask = np.zeros(self.num_envs, np.bool_)
            mask[options["env_idx"].numpy()] = True
            options = {"reset_mask": mask}
        return super().reset(seed=seed, options=options)

    def render(self):
        return torch.from_numpy(np.stack(self.env.render()))


def vector(lengths=UNEQUAL, autoreset=NEXT_STEP, *, tensors=False, truncate=False):
    venv = SyncVectorEnv(painted_fns(lengths, truncate=truncate), autoreset_mode=autoreset)
    return Tensors(venv) if tensors else venv


def wrap(venv, **options):
    return VLPBatchRewardWrapper(venv, SENTENCE, PaintedModel(), **options)


def go(env, autoreset, expected):
    """Step all once; the rewards that are right, and what came. Those that are over are reset, in either way."""
    again = [each.over for each in expected]
    if autoreset == DISABLED and any(again):
        over = np.flatnonzero(again)
        _, infos = env.reset(
            options={"env_idx": torch.from_numpy(over)} if _tensors(env) else {"reset_mask": np.array(again)}
        )
        assert infos["_vlp"].tolist() == again
        for index in over:
            expected[index].begin()
        again = [False] * len(expected)
    right = []
    for each, resets in zip(expected, again, strict=True):
        if resets:
            each.begin()
        right.append(0.0 if resets else each.move())
    return right, env.step(torch.zeros(env.num_envs, dtype=torch.int64) if _tensors(env) else noop(env))


def _tensors(env):
    return isinstance(env.env, Tensors)


@pytest.mark.parametrize("reward", ["progress", "delta", "potential"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(("autoreset", "tensors"), [(NEXT_STEP, False), (DISABLED, False), (DISABLED, True)])
def test_every_reward_is_that_of_its_step(autoreset, tensors, every, reward):
    env = wrap(vector(autoreset=autoreset, tensors=tensors), every=every, reward=reward)
    expected = [Expected(i, each, every=every, reward=reward) for i, each in enumerate(UNEQUAL)]
    _, infos = env.reset(seed=0)
    assert infos["vlp"]["score"].tolist() == pytest.approx([each.score for each in expected])
    for _ in range(STEPS):
        right, (_, rewards, terminated, truncated, infos) = go(env, autoreset, expected)
        assert isinstance(rewards, torch.Tensor if tensors else np.ndarray)
        assert rewards.tolist() == pytest.approx(right, abs=1e-6)
        assert infos["vlp"]["score"].tolist() == pytest.approx([each.said for each in expected])
        assert [(bool(a), bool(b)) for a, b in zip(terminated, truncated, strict=True)] == [e.ends for e in expected]
    env.close()


@pytest.mark.parametrize(("autoreset", "tensors"), [(NEXT_STEP, False), (DISABLED, True)])
def test_late_rewards_name_their_transitions(autoreset, tensors):
    env = wrap(vector(autoreset=autoreset, tensors=tensors, truncate=True), mode="async")
    expected = [Expected(index, each, truncate=True) for index, each in enumerate(UNEQUAL)]
    env.reset(seed=0)
    env.take_late_rewards()
    due, come = {}, {}
    for _ in range(STEPS):
        right, _ = go(env, autoreset, expected)
        due |= {each.ticket: reward for each, reward in zip(expected, right, strict=True) if each.step}
        come |= {tuple(late.ticket): late.reward for each in env.poll() for late in each}
    come |= {tuple(late.ticket): late.reward for each in env.flush() for late in each}
    assert [tuple(ticket)[1:] for ticket in env.tickets] == [each.ticket[1:] for each in expected]
    first = env.tickets[0].env  # tickets are numbered over the process
    assert {(ticket[0] - first, *ticket[1:]): reward for ticket, reward in come.items()} == pytest.approx(due)
    env.close()


@pytest.mark.parametrize(("autoreset", "tensors"), [(NEXT_STEP, False), (DISABLED, True)])
def test_late_rewards_of_a_rollout(autoreset, tensors):
    env = wrap(vector(autoreset=autoreset, tensors=tensors), mode="async")
    late = LateRewards(env)
    expected = [Expected(index, each) for index, each in enumerate(UNEQUAL)]
    env.reset(seed=0)
    rewards = torch.zeros(STEPS, 3) if tensors else np.zeros((STEPS, 3))
    rights = []
    for step in range(STEPS):
        right, (_, placeholders, _, _, infos) = go(env, autoreset, expected)
        rights.append(right)
        rewards[step] = placeholders
        late.step(step, infos)
    late.fill(rewards)
    assert rewards.tolist() == [pytest.approx(right, abs=1e-6) for right in rights]
    env.close()


def test_a_camera_of_ones_own_and_a_sentence_for_each():
    venv = vector([[9], [9]])
    sentences, seen = ["press the button", "open the door"], []
    env = VLPBatchRewardWrapper(
        venv, sentences, PaintedModel(), render_fn=lambda given: seen.append(given) or given.render()
    )
    env.reset()
    assert (env.instructions, seen) == (sentences, [venv])
    env.set_instruction("close the door", 1)
    env.step(noop(env))
    assert env.instructions == sentences  # until the next episode
    env.reset()
    assert env.instructions == [sentences[0], "close the door"]
    env.close()


def test_rewards_have_the_dtype_of_the_own_ones():
    env = wrap(vector(autoreset=DISABLED, tensors=True))
    env.reset()
    own = env.env.step(torch.zeros(3, dtype=torch.int64))[1]
    env.reset()
    assert env.step(torch.zeros(3, dtype=torch.int64))[1].dtype == own.dtype
    env.close()


def test_an_episode_that_is_over_must_be_reset():
    env = wrap(vector([[1], [5]], DISABLED))
    with pytest.raises(ResetNeeded, match=re.escape("the episodes of the envs [0, 1] have ended or have not begun")):
        env.step(noop(env))
    env.reset()
    env.step(noop(env))
    with pytest.raises(ResetNeeded, match=re.escape("the episodes of the envs [0] have ended or have not begun")):
        env.step(noop(env))
    env.close()
    env.close()
    for call in (env.reset, lambda: env.step(noop(env))):
        with pytest.raises(ClosedEnvironmentError):
            call()


def test_one_picture_of_all_environments_is_refused_and_a_reset_goes_on():
    shown = []
    env = wrap(vector(), render_fn=lambda venv: shown.pop() if shown else venv.render())
    env.reset()
    shown.append(np.zeros((64, 64, 3), np.uint8))
    message = (
        "expected frames [3, H, W, 3], one of each environment, got [64, 64, 3]; where one picture shows all of them, "
        "give render_fn a camera of each"
    )
    with pytest.raises(FrameError, match=f"^{re.escape(message)}$"):
        env.step(noop(env))
    with pytest.raises(ResetNeeded):
        env.step(noop(env))
    env.reset()
    env.step(noop(env))
    env.close()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: wrap(vector(autoreset=SAME_STEP)), ValueError, "expected the autoreset mode NEXT_STEP or DISABLED"),
        (lambda: wrap(PaintedEnv()), TypeError, "expected a gymnasium.vector.VectorEnv, got PaintedEnv"),
        (lambda: VLPBatchRewardWrapper(vector(), ["a", "b"], PaintedModel()), ValueError,
         "expected one instruction, or one for each of 3 envs, got 2"),
        (lambda: wrap(vector(), terminate_on_success=True, success_threshold=0.5), ValueError,
         "terminate_on_success needs an environment that is reset by us; use VLPRewardWrapper"),
    ],
)  # fmt: skip
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        make()


def test_it_is_a_vector_environment():
    env = wrap(vector())
    assert isinstance(env, gym.vector.VectorEnv)
    assert env.num_envs == 3
    env.close()
