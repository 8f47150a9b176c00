"""Stable-Baselines3's relatives: SBX, whose algorithms are compiled by Jax, and RL Baselines3 Zoo."""

from __future__ import annotations

import os

import numpy as np
import pytest
from late import late_venv, rewards_fit
from libraries import FlakyModel
from stable_baselines3.common.save_util import load_from_pkl
from test_docs import ROOT, run_python

from vlp_gym.errors import QueryError
from vlp_gym.integrations.sb3 import VLPReplayBuffer, VLPRewardCallback, VLPRolloutBuffer

pytestmark = pytest.mark.timeout(600)  # the first import takes long, and Jax compiles


@pytest.fixture
def sbx(monkeypatch):
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None)  # Jax warns of every later fork of this process
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    return pytest.importorskip("sbx")


class CheckedReplayBuffer(VLPReplayBuffer):
    """Every batch that an algorithm gets is compared with what is painted."""

    while_late = 0

    def sample(self, batch_size, env=None):
        samples = super().sample(batch_size, env)
        assert (samples.rewards == samples.next_observations).all()
        self.while_late += self.stats()["pending"] > 0
        return samples


@pytest.mark.parametrize("name", ["SAC", "TQC", "CrossQ"])
def test_sbx_off_policy(sbx, name):
    """It learns while rewards are late, stops when the model fails, and goes on."""
    model = FlakyModel()
    venv = late_venv("vector", 2, model=model)
    options = {"learning_starts": 20, "batch_size": 32, "buffer_size": 120, "train_freq": 4, "seed": 0}
    options |= {"policy_kwargs": {"net_arch": [8]}, "replay_buffer_class": CheckedReplayBuffer}
    agent = getattr(sbx, name)("MlpPolicy", venv, **options)
    agent.learn(96, callback=VLPRewardCallback())
    buffer = agent.replay_buffer
    assert buffer.while_late > 0
    assert (buffer.stats()["submitted"], buffer.stats()["delivered"]) == (96, 96)
    model.fails_at = model.calls + 6
    with pytest.raises(QueryError, match="division by zero"):
        agent.learn(200, callback=VLPRewardCallback(), reset_num_timesteps=False)
    agent.set_env(agent.get_env())
    updates = agent._n_updates
    agent.learn(96, callback=VLPRewardCallback(), reset_num_timesteps=False)
    assert agent._n_updates > updates
    assert rewards_fit(buffer)
    venv.close()


def test_sbx_ppo_learns_what_it_learns_from_punctual_rewards(sbx):
    import jax

    agents = []
    for mode in ("sync", "async"):
        venv = late_venv("vector", 2, mode, truncate=True)
        options = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0, "policy_kwargs": {"net_arch": [8]}}
        agents.append(sbx.PPO("MlpPolicy", venv, **options).learn(128, callback=VLPRewardCallback()))
        venv.close()
    punctual, late = agents
    assert isinstance(late.rollout_buffer, VLPRolloutBuffer)
    for name in ("rewards", "returns", "advantages", "values"):
        assert getattr(late.rollout_buffer, name).tobytes() == getattr(punctual.rollout_buffer, name).tobytes()
    weights = [jax.tree_util.tree_leaves(agent.policy.actor_state.params) for agent in agents]
    assert all(np.array_equal(*pair) for pair in zip(*weights, strict=True))


# ---------------------------------------------------------------- RL Baselines3 Zoo


PAINTED = f"""
import sys
import gymnasium as gym
sys.path.append({str(ROOT / "tests")!r})
from late import SeenEnv, SlowModel
from vlp_gym import VLPRewardWrapper

gym.register("Painted-v0", SeenEnv)


class Wrapped(VLPRewardWrapper):
    def __init__(self, env, instruction, model, **options):
        super().__init__(env, instruction, SlowModel(), **options)
"""


def run_zoo(env, folder, *options):
    """Runs the zoo with the configuration in a folder."""
    few = ["--n-timesteps", "120", "--eval-episodes", "1", "--log-folder", "logs"]
    command = ["-m", "rl_zoo3.train", "--algo", "sac", "--env", env, "--conf-file", "zoo.yml", *few, *options]
    return run_python(command, folder)


def test_the_zoo_trains_on_the_painted_rewards(tmp_path, monkeypatch):
    pytest.importorskip("rl_zoo3")
    (tmp_path / "painted_zoo.py").write_text(PAINTED)
    config = (ROOT / "examples" / "zoo.yml").read_text().replace("Pendulum-v1:", "Painted-v0:")
    config = config.replace("vlp_gym.VLPRewardWrapper", "painted_zoo.Wrapped").replace("starts: 500", "starts: 30")
    (tmp_path / "zoo.yml").write_text(config)
    run_zoo("Painted-v0", tmp_path, "--gym-packages", "painted_zoo", "--save-replay-buffer", "--eval-freq", "60")
    buffer = load_from_pkl(next(tmp_path.glob("logs/sac/*/replay_buffer.pkl")))
    assert isinstance(buffer, VLPReplayBuffer)
    assert (buffer.size(), buffer.stats()["delivered"]) == (120, 120)
    assert rewards_fit(buffer)


@pytest.mark.slow
def test_the_zoo_runs_the_example(tmp_path, monkeypatch):
    pytest.importorskip("rl_zoo3")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    (tmp_path / "zoo.yml").write_text((ROOT / "examples" / "zoo.yml").read_text())
    said = run_zoo("Pendulum-v1", tmp_path, "--env-kwargs", "render_mode:'rgb_array'", "--eval-freq", "-1")
    assert "VLPReplayBuffer" in said
