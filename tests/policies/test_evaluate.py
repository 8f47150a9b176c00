from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from tests.learners_by_hand import SEEDS, TINY, transitions
from tests.small_push import SmallPush
from vlp_gym.errors import VLPError
from vlp_gym.policies.bc import BC, BCOptions
from vlp_gym.policies.evaluate import Evaluator, film, play_episode
from vlp_gym.policies.policy import Policy


class Push(gym.Env):
    """Ten steps; pushing (the first number of an action above 0.5) succeeds at step 3 if the start is light."""

    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self, note=None):
        self.note = note

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number, self.light = 0, seed % 4 > 0
        if self.note is not None:
            with open(self.note, "a") as file:
                file.write(f"{os.getpid()} {seed}\n")
        return np.zeros(3), {}

    def step(self, action):
        self.step_number += 1
        won = self.step_number == 3 and self.light and action[0] > 0.5
        return np.zeros(3), 0.0, False, self.step_number == 10, {"success": float(won)}


class Deadly(Push):
    def step(self, action):
        os.kill(os.getpid(), signal.SIGKILL)


def policy(step=7):
    """The first seed pushes, the second does not."""
    learner = BC(BCOptions(**TINY), SEEDS, transitions=transitions(dtype=torch.float32))
    with torch.no_grad():
        learner.actor.net.biases[-1][:] = torch.tensor([2.0, -2.0])[:, None, None]
    return Policy.of(learner, step)


def test_an_episode_succeeds_at_any_step():
    env, pushing = Push(), policy()
    assert [play_episode(env, pushing.layers(), seed) for seed in range(5)] == [False, True, True, True, False]
    assert env.step_number == 10
    play_episode(env, pushing.layers(), 1)
    assert env.step_number == 3  # it ends there
    assert not play_episode(env, pushing.use_seed(SEEDS[1]).layers(), 1)


def test_every_seed_and_every_evaluation_has_starts_of_its_own(tmp_path):
    def starts():
        rows = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
        (tmp_path / "notes").unlink()
        return {int(pid) for pid, _ in rows}, sorted(int(seed) for _, seed in rows)

    with Evaluator(functools.partial(Push, str(tmp_path / "notes")), episodes=12, workers=2) as evaluate:
        found = evaluate(policy())
        workers, seeds = starts()
        assert len(seeds) == len(set(seeds)) == 24
        assert os.getpid() not in workers
        assert found["success"][1] == 0.0
        rng = np.random.default_rng([0, 7, SEEDS[0]])
        assert found["success"][0] == np.mean(rng.integers(2**31, size=12) % 4 > 0)
        assert evaluate(policy()) == found
        more, same = starts()
        assert same == seeds
        evaluate(policy(8))
        again, others = starts()
        assert not set(others) & set(seeds)
        # The environments are made once: there are no other workers, though one that starts late may miss the first.
        assert len(workers | more | again) <= 2


def test_a_killed_worker_is_an_error_and_close_twice_is_fine():
    evaluate = Evaluator(Deadly, episodes=5, workers=1)
    with pytest.raises(VLPError, match=r"^an evaluating process was killed \(out of memory\?\); the last saved state "):
        evaluate(policy())
    evaluate.close()
    evaluate.close()
    with pytest.raises(ValueError, match=r"^episodes and workers must be at least 1, got 0 and None$"):
        Evaluator(Push, episodes=0)


def test_a_film_ends_with_the_episode():
    pushing = wide_policy()
    with torch.no_grad():
        pushing.layers()[-1][1][:] = 2.0
    make = functools.partial(SmallPush, 4)
    frames, rewards = film(make, pushing, seed=1)
    assert frames.shape == (5, 32, 32, 3)
    assert frames[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]
    assert rewards.tolist() == [0.0] * 5
    with pytest.raises(VLPError, match=r"^the process that films an episode was killed \(out of memory\?\)$"):
        film(DeadlyPicture, policy())


class DeadlyPicture(Push):
    def render(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_meta_world_is_imported_in_the_workers_only():
    pytest.importorskip("metaworld")
    code = """
import functools, sys
from tests.learners_by_hand import *
from tests.policies.test_evaluate import wide_policy
from vlp_gym.metaworld.env import make_metaworld
from vlp_gym.policies.evaluate import Evaluator
if __name__ == "__main__":
    make = functools.partial(make_metaworld, "reach-v3", size=64, max_episode_steps=5)
    with Evaluator(make, episodes=1, workers=1) as evaluate:
        print(evaluate(wide_policy()), "metaworld" in sys.modules, "mujoco" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "{'success': [0.0]} False False\n"), done.stderr


def wide_policy():
    """For observations and actions of Meta-World."""
    data = transitions(dtype=torch.float32)
    data = type(data)(torch.zeros(30, 39), torch.zeros(30, 4), torch.zeros(30, 39), data.rewards, data.weights)
    return Policy.of(BC(BCOptions(**TINY), [0], transitions=data), 0)
