from __future__ import annotations

import copy
import importlib
import re
import sys
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

import stable_baselines3 as sb3
from gymnasium.utils.env_checker import check_env
from late import GatedModel, SeenEnv, SlowModel, late_env, late_venv, rewards_fit, sums_up
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

import vlp_gym
from vlp_gym import VLPReplayBuffer, VLPRewardCallback
from vlp_gym.engine import QueryEngine
from vlp_gym.errors import MissingExtraError, QueryError, QueryTimeout
from vlp_gym.integrations.sb3.buffers import VLPRolloutBuffer
from vlp_gym.testing import FaultyModel, PaintedModel, painted_value

TINY = {"net_arch": [8]}
KINDS = ["separate", "shared", "vector"]


def sac(venv, kind=VLPReplayBuffer, **options):
    settings = {"learning_starts": 10, "batch_size": 16, "buffer_size": 200, "train_freq": 2, "seed": 0, **options}
    return sb3.SAC("MlpPolicy", venv, replay_buffer_class=kind, policy_kwargs=dict(TINY), **settings)


def check_books(model):
    """Nothing is pending, every ticket was counted once, and every reward is in its place; the counts."""
    buffer = getattr(model, "replay_buffer", None) or model.rollout_buffer
    stats = buffer.stats()
    assert sums_up(stats)
    assert stats["pending"] == 0
    if isinstance(buffer, VLPReplayBuffer):
        assert rewards_fit(buffer)
    return stats


def ppo(venv, **options):
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, **options}
    return sb3.PPO("MlpPolicy", venv, policy_kwargs=dict(TINY), **settings)


class Written(KVWriter):
    """Keeps what is logged."""

    def __init__(self):
        self.values = []

    def write(self, values, excluded, step=0):
        self.values.append({name: value for name, value in values.items() if name.startswith("vlp/")})

    def close(self):
        pass


def logged(model, steps, callback, **options):
    written = Written()
    model.set_logger(Logger(None, [written]))
    model.learn(steps, callback=callback, **options)
    return written.values


NAMES = {
    "reward", "score", "progress", "env_return", "latency_p50", "latency_p99", "queue_depth", "stale", "failed",
    "ready_share",
    "rewards",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_logged(kind):
    venv = late_venv(kind, 2)
    newest = {}
    for values in logged(sac(venv), 120, VLPRewardCallback(), log_interval=1):
        newest.update(values)
    venv.close()
    assert set(newest) == {f"vlp/{name}" for name in NAMES}
    assert -9 <= newest["vlp/env_return"] <= -1  # -1 a step
    assert 0 < newest["vlp/latency_p50"] <= newest["vlp/latency_p99"] < 5
    assert (newest["vlp/stale"], newest["vlp/failed"]) == (0, 0)
    assert newest["vlp/queue_depth"] >= 0


def test_the_means_are_those_of_what_was_delivered():
    venv = late_venv("shared", 2)
    values = logged(ppo(venv), 32, VLPRewardCallback())[0]  # all rewards of one rollout
    venv.close()
    lengths = [7, 3, 1, *[9] * 9]
    steps = [(episode, step) for episode, length in enumerate(lengths) for step in range(1, length + 1)][:16]
    mean = np.mean([painted_value(env, *step) for env in range(2) for step in steps])
    assert values["vlp/reward"] == values["vlp/score"] == values["vlp/progress"] == pytest.approx(mean)
    assert values["vlp/env_return"] == pytest.approx(-11 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_with_punctual_rewards_it_only_logs(kind):
    venv = late_venv(kind, 2, "sync")
    model = ppo(venv)
    values = logged(model, 32, VLPRewardCallback())[0]
    venv.close()
    assert set(values) == {f"vlp/{name}" for name in NAMES - {"queue_depth", "stale", "failed", "ready_share"}}
    assert type(model.rollout_buffer) is sb3.common.buffers.RolloutBuffer
    venv = late_venv(kind, 1, "sync")
    model = sac(venv, None)  # a plain replay buffer is fine
    model.learn(20, callback=VLPRewardCallback())
    model = sac(VecNormalize(venv))
    model.learn(20, callback=VLPRewardCallback())
    venv.close()
    assert model.replay_buffer.stats()["submitted"] == 0


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_every_head_of_the_model_is_logged(mode):
    venv = late_venv("shared", 2, mode, PaintedModel(relevance=1.5))
    values = logged(ppo(venv), 32, VLPRewardCallback())[0]
    venv.close()
    assert values["vlp/relevance"] == 1.5
    assert 0 < values["vlp/reward"] < values["vlp/progress"] < 1  # progress * sigmoid(relevance)


def test_no_wrapper():
    model = sac(SeenEnv())
    message = (
        "expected an environment with VLPVecReward around the VecEnv, or with VLPRewardWrapper around each environment "
        "in it; found neither in <stable_baselines3.common.vec_env.dummy_vec_env.DummyVecEnv object at "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        model.learn(10, callback=VLPRewardCallback())


PLACEHOLDERS = (
    " would train on placeholders, the rewards come later; give the model replay_buffer_class=VLPReplayBuffer, "
    "VLPDictReplayBuffer (dictionary observations) or VLPNStepReplayBuffer (n-step returns)"
)


def test_a_plain_replay_buffer_is_refused():  # fault 48
    model = sac(late_env(), None)
    with pytest.raises(ValueError, match=f"^ReplayBuffer{re.escape(PLACEHOLDERS)}$"):
        model.learn(10, callback=VLPRewardCallback())
    model = sac(late_env(), None, n_steps=3)
    with pytest.raises(ValueError, match=f"^NStepReplayBuffer{re.escape(PLACEHOLDERS)}$"):
        model.learn(10, callback=VLPRewardCallback())


def test_optimize_memory_usage_is_refused():  # fault 48
    options = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = sac(late_env(), None, **options)
    message = (
        "optimize_memory_usage=True is not supported with late rewards: neighbouring rows share an observation, and "
        "rows are drawn in another way; set optimize_memory_usage=False"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.learn(10, callback=VLPRewardCallback())


@pytest.mark.parametrize("kind", KINDS)
def test_vec_normalize_of_rewards_is_refused(kind):  # fault 48
    venv = VecMonitor(VecNormalize(late_venv(kind)))
    message = (
        "VecNormalize(norm_reward=True) would normalize placeholders, the rewards come later; set norm_reward=False "
        "and give VLPRewardCallback(normalize_reward=True)"
    )
    for make in (sac, ppo):
        model = make(venv)
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            model.learn(10, callback=VLPRewardCallback())
    venv.close()


def test_her_is_refused():  # fault 48
    class Goals(SeenEnv):
        def __init__(self):
            super().__init__()
            seen = self.observation_space
            names = ("observation", "achieved_goal", "desired_goal")
            self.observation_space = gym.spaces.Dict(dict.fromkeys(names, seen))

        def observe(self):
            return dict.fromkeys(self.observation_space, super().observe())

        def compute_reward(self, *given):
            return 0.0

    model = sb3.SAC(
        "MultiInputPolicy", late_env(Goals(), mode="sync"), replay_buffer_class=sb3.HerReplayBuffer, buffer_size=100
    )
    message = (
        "HerReplayBuffer makes up transitions and asks the environment's compute_reward for their rewards, which "
        "knows nothing of the sentence; use replay_buffer_class=VLPReplayBuffer or VLPDictReplayBuffer"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.learn(10, callback=VLPRewardCallback())


def test_an_algorithm_without_a_buffer_is_refused():
    contrib = pytest.importorskip("sb3_contrib")
    model = contrib.ARS("LinearPolicy", late_env(), n_delta=1)
    message = 'ARS keeps no buffer in which a late reward could find its place; use mode="sync"'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.learn(10, callback=VLPRewardCallback())


def test_arguments_that_make_no_sense():
    with pytest.raises(ValueError, match=r"^timeout_s must be seconds, got 0$"):
        VLPRewardCallback(timeout_s=0)
    message = 'normalize_reward is for mode="async"; with "sync" use VecNormalize(norm_reward=True)'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ppo(late_env(mode="sync")).learn(10, callback=VLPRewardCallback(normalize_reward=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ours_first", [False, True])
def test_a_training_that_another_callback_stops_goes_on(kind, ours_first):
    venv = late_venv(kind, 2)
    model = sac(venv)
    for _ in range(3):
        callbacks = [StopTrainingOnMaxEpisodes(3), VLPRewardCallback()]
        model.learn(1000, callback=callbacks[::-1] if ours_first else callbacks)
        buffer = model.replay_buffer
        assert buffer.stats()["pending"] == buffer.stats()["failed"] == 0
        assert buffer.stats()["stale"] > 0  # the step at which it stopped is never stored
        assert rewards_fit(buffer)
        assert not buffer._ledger.missing
    venv.close()


def test_a_callback_that_saves_before_ours_has_its_turn(tmp_path):
    venv = late_venv("vector", 2)
    model = sac(venv)
    saving = CheckpointCallback(5, tmp_path, save_replay_buffer=True)
    model.learn(60, callback=[saving, VLPRewardCallback()])
    venv.close()
    buffer = model.replay_buffer
    assert (buffer.stats()["delivered"], buffer.stats()["submitted"]) == (60, 60)
    assert rewards_fit(buffer)
    for path in tmp_path.glob("*replay_buffer*"):
        model.load_replay_buffer(path)
        assert rewards_fit(model.replay_buffer)
        assert not model.replay_buffer._ledger.missing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [sac, ppo])
def test_an_interrupt_in_mid_learn(kind, make):  # fault 39
    venv = late_venv(kind, 2)
    inner = venv.unwrapped.envs[1].unwrapped  # so that environment 0 has done its step already
    inner.raises = 47
    model = make(venv)
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, callback=VLPRewardCallback())
    if make is sac:
        buffer = model.replay_buffer
        assert rewards_fit(buffer)
        for _ in range(50):
            samples = buffer.sample(20)
            assert (samples.rewards == samples.next_observations).all()
        assert sums_up(buffer.stats())
    model.learn(64, callback=VLPRewardCallback())
    venv.close()
    stats = check_books(model)
    if make is sac:
        assert stats["failed"] <= 20  # what the cut-off step of environment 0 had brought


@pytest.mark.parametrize("make", [sac, ppo])
def test_an_error_of_the_model_ends_the_training_and_is_survived(make):  # fault 19
    env = late_env(model=FaultyModel("raises", at=25))
    model = make(env)
    with pytest.raises(QueryError):
        model.learn(1000, callback=VLPRewardCallback())
    model.learn(64, callback=VLPRewardCallback())
    env.close()
    stats = check_books(model)
    if make is sac:
        assert stats["failed"] > 0


@pytest.mark.parametrize("make", [sac, ppo])
def test_a_model_that_hangs(make):
    gated = GatedModel()
    env = late_env(model=gated)

    class Shut(BaseCallback):
        def _on_step(self):
            gated.open = self.n_calls < 4
            return True

    model = make(env, **({"learning_starts": 5, "batch_size": 4} if make is sac else {}))
    model.learn(16, callback=VLPRewardCallback(timeout_s=0.3)) if make is ppo else None
    with pytest.raises(QueryTimeout, match=r"^no reward came for 0.3 s; \d+ are pending, the oldest: env 0, episode "):
        model.learn(40, callback=[Shut(), VLPRewardCallback(timeout_s=0.3)])
    gated.open = True
    model.learn(32, callback=VLPRewardCallback())
    env.close()


def test_a_shared_engine_is_idle_only_when_all_is_answered():
    engine = QueryEngine(SlowModel(), mode="async", slots=8)
    venv = DummyVecEnv([lambda k=k: late_env(SeenEnv(env=k), engine, mode="sync") for k in range(3)])
    model = sac(venv, train_freq=4)
    model.learn(96, callback=VLPRewardCallback())
    assert model.replay_buffer.stats()["delivered"] == 96
    assert engine.stats()["pending"] == 0
    venv.close()
    engine.close()


def test_rewards_held_between_frames_and_a_monitor_around():
    venv = DummyVecEnv([lambda k=k: Monitor(late_env(SeenEnv(env=k), every=3)) for k in range(2)])
    model = sac(venv)
    model.learn(80, callback=VLPRewardCallback())
    venv.close()
    buffer = model.replay_buffer
    assert (buffer.stats()["delivered"], buffer.stats()["pending"]) == (80, 0)
    rewards, seen = buffer.rewards[:40], buffer.next_observations[:40, :, 0]
    assert (rewards <= seen).all()  # the score of a frame before
    assert 0 < (rewards == seen).mean() < 1


def in_a_worker(index):
    return late_env(SeenEnv(env=index))


def test_environments_in_other_processes():
    venv = SubprocVecEnv([partial(in_a_worker, index) for index in range(2)], start_method="fork")
    model = sac(venv)
    model.learn(60, callback=VLPRewardCallback())
    assert rewards_fit(model.replay_buffer)
    assert model.replay_buffer.stats()["delivered"] == 60
    on_policy = ppo(venv)
    on_policy.learn(32, callback=VLPRewardCallback())
    assert on_policy.rollout_buffer.stats()["delivered"] == 32
    venv.close()


def test_ppo_without_the_callback_after_a_run_with_it():
    env = late_env()
    model = ppo(env)
    model.learn(16, callback=VLPRewardCallback())
    assert isinstance(model.rollout_buffer, VLPRolloutBuffer)
    message = "VLPRolloutBuffer needs learn(..., callback=VLPRewardCallback())"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        model.learn(16)
    env.close()


def draw(env):
    """The state as a picture, without pygame."""
    return np.resize(np.float32(env.unwrapped.state).view(np.uint8), (8, 8, 3))


def test_the_checkers_pass_on_a_late_wrapper(monkeypatch):  # fault 69
    monkeypatch.setattr("vlp_gym.models.registry.load_reward_model", lambda name, device: SlowModel())
    spec = copy.deepcopy(gym.spec("Pendulum-v1"))
    spec.nondeterministic = True  # a ticket never comes twice, and the placeholder is a matter of time
    env = late_env(gym.make(spec, render_mode="rgb_array"), "vlp-compact", render_fn=draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is wrapped
        check_env(env, skip_render_check=True)
    check_env_of_sb3(env, warn=False, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("name", ["VLPReplayBuffer", "VLPRewardCallback", "integrations.sb3.VLPDictReplayBuffer"])
def test_without_stable_baselines3(name, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("vlp_gym.integrations.sb3")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.buffers", None)
    home = "vlp_gym.integrations.sb3" if "." in name else "vlp_gym"
    monkeypatch.delitem(vars(vlp_gym), name, raising=False)
    message = 'Stable-Baselines3 is not installed: pip install "vlp_gym[sb3]"'
    with pytest.raises(MissingExtraError, match=f"^{re.escape(message)}$"):
        getattr(importlib.import_module(home), name.rpartition(".")[2])
