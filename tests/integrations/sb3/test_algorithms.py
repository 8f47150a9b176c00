"""Every algorithm of Stable-Baselines3 and sb3-contrib that keeps a buffer, unchanged, with late rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import sb3_contrib as contrib
import stable_baselines3 as sb3
from late import late_env, late_venv, rewards_fit, sums_up
from stable_baselines3.common.vec_env import VecNormalize

from vlp_gym import (
    VLPDictReplayBuffer,
    VLPNStepReplayBuffer,
    VLPReplayBuffer,
    VLPRewardCallback,
    VLPRewardWrapper,
)
from vlp_gym.integrations.sb3.buffers import VLPRolloutBuffer
from vlp_gym.testing import PaintedEnv, PaintedModel

TINY = {"net_arch": [8]}
OFF_POLICY = [sb3.SAC, sb3.TD3, sb3.DDPG, sb3.DQN, contrib.TQC, contrib.CrossQ]
ON_POLICY = [sb3.PPO, sb3.A2C, contrib.TRPO, contrib.RecurrentPPO]
KINDS = ["separate", "shared", "vector"]
sampled = {"rows": 0, "while_late": 0}


class CheckedReplayBuffer(VLPReplayBuffer):
    """Every batch that an algorithm gets is compared with what is painted."""

    def sample(self, batch_size, env=None):
        samples = super().sample(batch_size, env)
        assert (samples.rewards == samples.next_observations).all()
        sampled["rows"] += batch_size
        sampled["while_late"] += self.stats()["pending"] > 0
        return samples


def off_policy(algorithm, venv, kind=CheckedReplayBuffer, **options):
    settings = {"learning_starts": 20, "batch_size": 32, "buffer_size": 300, "train_freq": 4, "seed": 0, **options}
    return algorithm("MlpPolicy", venv, replay_buffer_class=kind, policy_kwargs=dict(TINY), **settings)


def on_policy(algorithm, venv, **options):
    recurrent = algorithm is contrib.RecurrentPPO
    network = {**TINY, "lstm_hidden_size": 8} if recurrent else dict(TINY)
    epochs = {"n_epochs": 2} if algorithm in (sb3.PPO, contrib.RecurrentPPO) else {}
    batch = {} if algorithm is sb3.A2C else {"batch_size": 32}
    settings = {"n_steps": 32, "seed": 0, **epochs, **batch, **options}
    return algorithm("MlpLstmPolicy" if recurrent else "MlpPolicy", venv, policy_kwargs=network, **settings)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_an_off_policy_algorithm_trains_is_saved_and_goes_on(algorithm, n_envs, tmp_path):  # faults 43, 46, 49
    venv = late_venv(KINDS[n_envs], n_envs, discrete=algorithm is sb3.DQN)
    model = off_policy(algorithm, venv, buffer_size=60 * n_envs)
    model.learn(96, callback=VLPRewardCallback())
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    weights = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}

    loaded = algorithm.load(tmp_path / "model", env=venv)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.policy.state_dict().items())
    before = dict(sampled)
    loaded.learn(104, callback=VLPRewardCallback(), reset_num_timesteps=False)
    venv.close()
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in loaded.policy.state_dict().items())
    assert sampled["rows"] > before["rows"]
    assert sampled["while_late"] > before["while_late"]
    buffer = loaded.replay_buffer
    stats = buffer.stats()
    assert stats["submitted"] == 200
    assert stats["delivered"] + stats["stale"] == 200
    assert buffer.full
    assert rewards_fit(buffer)
    assert not buffer._ledger.missing


def in_time(mode):
    """A model that the punctual run need not wait for."""
    return PaintedModel() if mode == "sync" else None


def learnt(algorithm, mode, kind, n_envs, callback, steps=96, **options):
    venv = late_venv(kind, n_envs, mode, in_time(mode), truncate=True, discrete=True)
    model = on_policy(algorithm, venv, **options)
    model.learn(steps * n_envs, callback=callback)
    venv.close()
    return model


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("algorithm", ON_POLICY)
def test_an_on_policy_algorithm_learns_what_it_learns_from_punctual_rewards(algorithm, n_envs):  # faults 13, 67
    punctual = learnt(algorithm, "sync", "separate", n_envs, None)
    late = learnt(algorithm, "async", KINDS[n_envs], n_envs, VLPRewardCallback())
    assert isinstance(late.rollout_buffer, VLPRolloutBuffer)
    assert not isinstance(punctual.rollout_buffer, VLPRolloutBuffer)
    for name in ("rewards", "returns", "advantages", "values"):
        assert getattr(late.rollout_buffer, name).tobytes() == getattr(punctual.rollout_buffer, name).tobytes()
    weights = punctual.policy.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in late.policy.state_dict().items())
    assert late.rollout_buffer.stats()["delivered"] == 96 * n_envs


@pytest.mark.parametrize("algorithm", ON_POLICY)
def test_an_on_policy_algorithm_is_saved_and_goes_on(algorithm, tmp_path):  # fault 43
    venv = late_venv("shared", truncate=True)
    on_policy(algorithm, venv).learn(64, callback=VLPRewardCallback()).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=venv)
    loaded.learn(64, callback=VLPRewardCallback(), reset_num_timesteps=False)
    loaded.learn(64, callback=VLPRewardCallback(), reset_num_timesteps=False)  # in mid-episode
    venv.close()
    assert loaded.rollout_buffer.stats()["delivered"] == 128
    assert sums_up(loaded.rollout_buffer.stats())


def test_the_rollout_buffer_may_be_given_as_a_class():
    options = {"rollout_buffer_class": VLPRolloutBuffer}
    runs = [learnt(sb3.PPO, mode, "shared", 2, VLPRewardCallback(), **options) for mode in ("sync", "async")]
    weights = runs[0].policy.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in runs[1].policy.state_dict().items())


def test_ppo_with_normalized_rewards_is_the_same_every_time():
    kinds = ("shared", "vector")
    runs = [learnt(sb3.PPO, "async", kind, 2, VLPRewardCallback(normalize_reward=True)) for kind in kinds]
    weights = runs[0].policy.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in runs[1].policy.state_dict().items())
    assert runs[0].rollout_buffer.normalizer.count > 191


@pytest.mark.parametrize(("kind", "truncate"), [("separate", False), ("shared", True), ("vector", True)])
def test_after_the_end_the_replay_buffer_is_that_of_punctual_rewards(kind, truncate):  # fault 67
    contents = []
    for mode in ("sync", "async"):
        venv = late_venv(kind, 2, mode, in_time(mode), truncate=truncate)
        # Without training: what an agent does depends on what it has sampled.
        model = off_policy(sb3.SAC, venv, VLPReplayBuffer, learning_starts=10_000, buffer_size=150)
        model.learn(200, callback=VLPRewardCallback())
        venv.close()
        buffer = model.replay_buffer
        names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
        contents.append([getattr(buffer, name).tobytes() for name in names])
    assert contents[0] == contents[1]
    assert buffer.stats()["submitted"] == 200
    assert buffer.stats()["delivered"] + buffer.stats()["stale"] == 200


def test_a_run_with_50000_samples_trains_on_the_right_rewards():  # fault 46
    before = sampled["rows"]
    venv = late_venv("vector", 2, discrete=True)
    model = off_policy(sb3.DQN, venv, batch_size=500, train_freq=1, buffer_size=200)
    model.learn(220, callback=VLPRewardCallback())
    venv.close()
    assert sampled["rows"] - before >= 50_000


def test_n_step_returns_are_those_of_the_painted_rewards():  # fault 47
    class Checked(VLPNStepReplayBuffer):
        checked = 0

        def _get_samples(self, rows, env=None):
            state = np.random.get_state()  # noqa: NPY002
            envs = np.random.randint(0, self.n_envs, size=rows.shape)  # noqa: NPY002
            np.random.set_state(state)  # noqa: NPY002
            samples = super()._get_samples(rows, env)
            for row, index, value in zip(rows, envs, samples.rewards[:, 0].tolist(), strict=True):
                expected, at = 0.0, row
                for power in range(3):
                    expected += 0.5**power * float(self.next_observations[at, index, 0])
                    if self.dones[at, index] or at == (self.pos - 1) % self.buffer_size:
                        break
                    at = (at + 1) % self.buffer_size
                assert value == pytest.approx(expected, rel=1e-6)
                Checked.checked += 1
            return samples

    venv = late_venv("shared", 2)
    options = {"replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.5}, "buffer_size": 80}
    model = off_policy(sb3.SAC, venv, Checked, **options)
    model.learn(200, callback=VLPRewardCallback())
    venv.close()
    assert Checked.checked > 500


def test_observations_that_are_dictionaries():
    venv = late_venv("shared", 2, keys=True)
    model = sb3.SAC(
        "MultiInputPolicy", venv, replay_buffer_class=VLPDictReplayBuffer, policy_kwargs=dict(TINY), learning_starts=20
    )  # fmt: skip
    model.learn(60, callback=VLPRewardCallback())
    assert rewards_fit(model.replay_buffer)
    on_policy = sb3.PPO("MultiInputPolicy", venv, n_steps=16, batch_size=32, n_epochs=1, policy_kwargs=dict(TINY))
    on_policy.learn(32, callback=VLPRewardCallback())
    assert on_policy.rollout_buffer.stats()["delivered"] == 32
    venv.close()


def test_normalized_observations_and_rewards():
    venv = VecNormalize(late_venv("vector", 2), norm_reward=False)
    model = off_policy(sb3.SAC, venv, VLPReplayBuffer)
    model.learn(80, callback=VLPRewardCallback(normalize_reward=True))
    venv.close()
    buffer = model.replay_buffer
    seen = buffer.next_observations[: buffer.pos, :, 0]  # VecNormalize has rounded the terminal ones
    np.testing.assert_allclose(buffer.rewards[: buffer.pos], seen, atol=1e-6)  # raw
    assert buffer.normalizer.count == pytest.approx(80, abs=1e-3)
    largest = float(buffer.sample(500).rewards.max())
    assert largest == pytest.approx(float(buffer.normalizer.scale(buffer.rewards[: buffer.pos]).max()))


def test_one_environment_that_sb3_wraps_itself():
    env = late_env()
    model = off_policy(sb3.SAC, env)
    model.learn(60, callback=VLPRewardCallback())
    assert rewards_fit(model.replay_buffer)
    env.close()


def test_ars_learns_from_rewards_known_at_once():
    env = VLPRewardWrapper(PaintedEnv(), "press the button", PaintedModel())
    assert contrib.ARS("LinearPolicy", env).learn(20, callback=VLPRewardCallback()).num_timesteps >= 20
