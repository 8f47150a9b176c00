"""Wrappers around the reward wrapper, evaluations, and trainings in which nobody takes late rewards."""

from __future__ import annotations

import re
from functools import partial

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("sb3_contrib")

import sb3_contrib as contrib
import stable_baselines3 as sb3
from late import SENTENCE, SeenEnv, SlowModel, late_env, late_venv, rewards_fit
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from vlp_gym import VLPReplayBuffer, VLPRewardCallback, VLPRewardWrapper, VLPVecReward, capture_frames
from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import VLPError
from vlp_gym.integrations.sb3 import PreferenceCallback, PreferenceReplayBuffer
from vlp_gym.integrations.sb3.outside import meddling
from vlp_gym.integrations.sb3.source import MEDDLING
from vlp_gym.preferences import Queries, RecordedLabeler
from vlp_gym.rewards.ledger import STEPS_OF_ITS_OWN, RewardLedger
from vlp_gym.rewards.stream import NOBODY_TAKES
from vlp_gym.testing import PaintedModel, painted_value

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Skip(gym.Wrapper):
    """Two steps for one."""

    def step(self, action):
        total = 0.0
        for _ in range(2):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class Settle(gym.Wrapper):
    """Three steps in each reset."""

    def reset(self, **options):
        self.env.reset(**options)
        for _ in range(3):
            observation, *_, info = self.env.step(self.action_space.sample())
        return observation, info

    def step(self, action):
        return self.env.step(action)


class Doubled(VecEnvWrapper):
    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, 2 * rewards, dones, infos


def scaled(env):
    return gym.wrappers.TransformReward(env, lambda reward: 100 * reward)


def clipped(env):
    return gym.wrappers.ClipReward(env, 0.0, 1e-7)


def twice(env):
    return VLPRewardWrapper(env, "open the door", PaintedModel(), env_reward_weight=1.0)


SMALL = {"learning_starts": 20, "batch_size": 8, "buffer_size": 200}
ALGORITHMS = {
    "SAC": partial(sb3.SAC, "MlpPolicy", **SMALL),
    "TD3": partial(sb3.TD3, "MlpPolicy", **SMALL),
    "DDPG": partial(sb3.DDPG, "MlpPolicy", **SMALL),
    "TQC": partial(contrib.TQC, "MlpPolicy", **SMALL),
    "PPO": partial(sb3.PPO, "MlpPolicy", n_steps=24, batch_size=8, n_epochs=1),
    "A2C": partial(sb3.A2C, "MlpPolicy", n_steps=24),
    "TRPO": partial(contrib.TRPO, "MlpPolicy", n_steps=24, batch_size=8),
}
OFF_POLICY = ["SAC", "TD3", "DDPG", "TQC"]


def stored(model, steps=24):
    """What the model trains on, one number a step."""
    buffer = model.replay_buffer if hasattr(model, "replay_buffer") else model.rollout_buffer
    return buffer.rewards[:steps].ravel().tolist()


def trained(name, env, *callbacks, **options):
    env.action_space.seed(0)
    model = ALGORITHMS[name](env, **options)
    model.learn(24, callback=list(callbacks))
    return stored(model)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_without_the_callback_what_is_stored_is_exact(name):
    """Actions do not matter to what is painted, so that every algorithm sees the same steps."""
    assert trained(name, late_env(untaken="wait")) == trained(name, late_env(mode="sync"))


def test_without_the_callback_the_model_is_told_what_to_do():
    with pytest.raises(VLPError, match=f"^{re.escape(NOBODY_TAKES)}$"):
        trained("PPO", late_env(untaken="raise"))


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_without_the_callback_in_worker_processes(start_method):
    venv = SubprocVecEnv([partial(late_env, untaken="wait")] * 2, start_method=start_method)
    model = sb3.PPO("MlpPolicy", venv, n_steps=12, batch_size=8)
    model.learn(24)
    expected = trained("PPO", late_env(mode="sync"))[:12]
    assert model.rollout_buffer.rewards[:, 0].tolist() == model.rollout_buffer.rewards[:, 1].tolist() == expected
    venv.close()


@pytest.mark.parametrize("outer", [Skip, Settle, scaled, clipped, twice])
@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_under_a_wrapper_that_meddles_every_step_waits(name, outer, caplog):  # fault 67
    options = {"replay_buffer_class": VLPReplayBuffer} if name == "SAC" else {}
    lengths = [30, 4, 9]
    with caplog.at_level("WARNING", "vlp_gym"):
        got = trained(name, outer(late_env(SeenEnv(lengths))), VLPRewardCallback(), **options)
    assert got == trained(name, outer(late_env(SeenEnv(lengths), mode="sync")), VLPRewardCallback(), **options)
    if outer is not twice:  # the outer one is the wrapper whose rewards are used, and it is not late
        assert caplog.messages == [MEDDLING % type(outer(late_env(mode="sync"))).__name__]


def test_a_vector_wrapper_that_meddles():
    rewards = []
    for mode in ("sync", "async"):
        venv = Doubled(late_venv("vector", 2, mode))
        model = sb3.PPO("MlpPolicy", venv, n_steps=12, batch_size=8)
        model.learn(24, callback=VLPRewardCallback())
        rewards.append(model.rollout_buffer.rewards.tolist())
        venv.close()
    assert rewards[0] == rewards[1]


class Harmless(gym.Wrapper):
    """Changes nothing."""


HARMLESS = {
    "none": lambda env: env,
    "monitor": Monitor,
    "time limit": lambda env: gym.wrappers.TimeLimit(env, 50),
    "own, without a step": Harmless,
    "statistics": lambda env: gym.wrappers.RecordEpisodeStatistics(gym.wrappers.OrderEnforcing(env)),
    "observations": lambda env: gym.wrappers.FrameStackObservation(env, 2),
    "scaled inside": lambda env: VLPRewardWrapper(scaled(env.env), SENTENCE, PaintedModel(), mode="async"),
}


@pytest.mark.parametrize("vector", [DummyVecEnv, partial(SubprocVecEnv, start_method="fork")])
@pytest.mark.parametrize("name", HARMLESS)
def test_wrappers_that_do_not_meddle(name, vector):
    venv = VecNormalize(vector([lambda: HARMLESS[name](late_env())]), norm_reward=False)
    venv = venv if name == "monitor" else VecMonitor(venv)
    assert meddling(venv, None) == ""
    venv.close()


@pytest.mark.parametrize("outer", [Skip, scaled])
def test_a_wrapper_that_meddles_is_seen_in_worker_processes(outer):
    venv = SubprocVecEnv([lambda: outer(late_env())], start_method="fork")
    assert meddling(venv, None) == "a wrapper"
    venv.close()


def test_a_step_that_was_left_out_is_no_wrong_row():
    """A buffer without the callback, which cannot look at the wrappers outside."""
    env = Skip(late_env(SeenEnv([30])))
    model = ALGORITHMS["SAC"](env, replay_buffer_class=VLPReplayBuffer)
    message = f"{STEPS_OF_ITS_OWN} (env 0, episode 0, step 2; then env 0, episode 0, step 4)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.learn(24)


def test_the_ledger_knows_an_interrupt_from_a_frame_skip():
    ledger = RewardLedger(1)
    assert ledger.announce(0, Ticket(0, 3, 7))  # a training that begins in mid-episode
    assert ledger.announce(0, Ticket(0, 3, 8))
    ledger.resume()
    assert ledger.announce(0, Ticket(0, 3, 10))  # the next one
    assert ledger.announce(0, Ticket(0, 5, 1))
    for wrong in (Ticket(0, 5, 3), Ticket(0, 6, 2)):
        with pytest.raises(ValueError, match=f"^{re.escape(STEPS_OF_ITS_OWN)} "):
            ledger.announce(0, wrong)


def test_preferences_under_a_frame_skip():
    env = Skip(late_env(SeenEnv([8])))
    model = sb3.SAC("MlpPolicy", env, replay_buffer_class=PreferenceReplayBuffer, learning_starts=10, buffer_size=200)
    queries = Queries(budget=4, session=2, every=50, explore=0, length=2)
    with pytest.raises(ValueError, match=f"^{re.escape(STEPS_OF_ITS_OWN)} "):
        model.learn(100, callback=PreferenceCallback(RecordedLabeler(), queries))


def evaluated(env, episodes=3):
    policy = sb3.SAC("MlpPolicy", env, buffer_size=10)
    return evaluate_policy(policy, env, n_eval_episodes=episodes, return_episode_rewards=True, warn=False)[0]


@pytest.mark.parametrize("kind", ["separate", "shared", "vector"])
def test_an_evaluation_adds_up_exact_rewards(kind):
    returns = [evaluated(late_venv(kind, 2, mode, untaken="wait")) for mode in ("sync", "async")]
    assert returns[0] == returns[1]
    assert len(returns[0]) == 3


@pytest.mark.parametrize("kind", ["separate", "shared", "vector"])
@pytest.mark.parametrize("ends", ["well", "by an interrupt"])
def test_an_evaluation_on_the_environment_of_a_training(kind, ends):
    venv = late_venv(kind, 2)
    model = sb3.PPO("MlpPolicy", venv, n_steps=16, batch_size=8, n_epochs=1)
    if ends != "well":
        venv.unwrapped.envs[1].unwrapped.raises = 21
    try:
        model.learn(64, callback=VLPRewardCallback())
    except KeyboardInterrupt:
        assert ends != "well"
    returns, _ = evaluate_policy(model, venv, n_eval_episodes=4, return_episode_rewards=True, warn=False)
    newest = [venv.reset_infos[index]["vlp"]["episode"] for index in range(2)]
    painted = {
        np.float32(sum(np.float32(painted_value(env, episode, step)) for step in range(1, length + 1)))
        for env in range(2)
        for episode in range(newest[env] + 1)
        for length in [(7, 3, 1, 9)[min(episode, 3)]]
    }
    assert len(returns) == 4
    assert all(np.isclose(value, list(painted), rtol=1e-6, atol=0).any() for value in returns)
    model.learn(32, callback=VLPRewardCallback())  # and the training goes on
    venv.close()


def test_the_best_model_is_chosen_by_exact_rewards(tmp_path):
    model = sb3.PPO("MlpPolicy", late_env(), n_steps=16, batch_size=8, n_epochs=1)
    means = []
    for mode in ("sync", "async"):
        env = Monitor(late_env(mode=mode, untaken="wait"))
        evaluation = EvalCallback(env, eval_freq=16, n_eval_episodes=2, log_path=str(tmp_path / mode), verbose=0)
        model.learn(32, callback=[VLPRewardCallback(), evaluation])
        means.append(evaluation.evaluations_results)
    assert means[0] == means[1]


def test_the_worker_rests_no_longer_when_a_training_is_broken_off():
    env = late_env(SeenEnv([100], raises=30))
    model = ALGORITHMS["SAC"](env, replay_buffer_class=VLPReplayBuffer)
    with pytest.raises(KeyboardInterrupt):
        model.learn(60, callback=VLPRewardCallback())
    env.reset()
    env.take_late_rewards()
    env.step(env.action_space.sample())
    deliveries = [each for _ in range(20) for each in env.poll(timeout_s=0.0) or env.poll(timeout_s=0.2)]
    assert Ticket(0, 1, 1) in [delivery.ticket for delivery in deliveries]
    env.close()


def test_learning_starts_counts_rows_whose_rewards_are_there():
    """A model that is slower than the environment."""
    shares = []

    class Buffer(VLPReplayBuffer):
        def sample(self, *args, **kwargs):
            samples = super().sample(*args, **kwargs)
            shares.append(self.ready_share())
            return samples

    env = late_env(SeenEnv([50]), SlowModel(slowest_s=0.03))
    model = sb3.SAC("MlpPolicy", env, replay_buffer_class=Buffer, learning_starts=40, batch_size=8, buffer_size=200)
    model.learn(80, callback=VLPRewardCallback())
    assert shares[0] == 1.0
    assert len(shares) == 40
    assert min(shares) >= 0.9
    assert rewards_fit(model.replay_buffer)
    env.close()


@pytest.mark.parametrize("norm_obs", [False, True])
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("name", OFF_POLICY)
def test_vec_normalize_inside_stores_the_sentences_rewards(name, mode, norm_obs):
    inner = VecNormalize(DummyVecEnv(capture_frames([lambda: SeenEnv([30])])), norm_obs=norm_obs, norm_reward=False)
    env = VLPVecReward(inner, SENTENCE, SlowModel(), mode=mode)
    assert trained(name, env, VLPRewardCallback(), replay_buffer_class=VLPReplayBuffer) == [
        painted_value(0, 0, step) for step in range(1, 25)
    ]
    env.close()


def test_vec_normalize_of_rewards_inside_is_refused():
    inner = VecNormalize(DummyVecEnv(capture_frames([SeenEnv])))
    message = (
        "VecNormalize(norm_reward=True) inside VLPVecReward would scale the sentence's rewards by the environment's "
        "own returns; set norm_reward=False, or put it around VLPVecReward"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        VLPVecReward(inner, SENTENCE, PaintedModel())


class Goals(SeenEnv):
    """Has its own way to pay for a goal."""

    def __init__(self):
        super().__init__([10])
        names = ("observation", "achieved_goal", "desired_goal")
        self.observation_space = gym.spaces.Dict(dict.fromkeys(names, self.observation_space))

    def observe(self):
        return dict.fromkeys(self.observation_space, super().observe())

    def compute_reward(self, *given):
        return np.zeros(1)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", ["single", "vector"])
def test_her_without_the_callback(kind, mode):  # fault 48
    if kind == "single":
        env = Monitor(late_env(Goals(), mode=mode, untaken="wait"))
    else:
        venv = DummyVecEnv(capture_frames([Goals]))
        env = VLPVecReward(venv, SENTENCE, PaintedModel(), mode=mode, untaken="wait")
    model = sb3.SAC("MultiInputPolicy", env, replay_buffer_class=sb3.HerReplayBuffer, **SMALL)
    with pytest.raises(ValueError, match="asks the environment's compute_reward for their rewards"):
        model.learn(40)


class Written(KVWriter):
    """Takes what is logged."""

    def __init__(self):
        self.values = {}

    def write(self, values, excluded, step=0):
        self.values.update(values)

    def close(self):
        pass


@pytest.mark.parametrize("kind", ["separate", "shared", "vector"])
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(("threshold", "rate"), [(0.0, 1.0), (2.0, 0.0), (None, None)])
def test_the_success_rate_of_stable_baselines3(kind, mode, threshold, rate):
    if kind == "vector":
        venv = DummyVecEnv(capture_frames([partial(SeenEnv, env=index) for index in range(2)]))
        venv = VLPVecReward(venv, SENTENCE, SlowModel(), mode=mode, success_threshold=threshold)
    else:
        make = partial(late_env, mode=mode, success_threshold=threshold)
        venv = DummyVecEnv([lambda: make(SeenEnv()), lambda: make(SeenEnv(env=1))])
    model = sb3.SAC("MlpPolicy", venv, replay_buffer_class=VLPReplayBuffer, learning_starts=500, buffer_size=200)
    written = Written()
    model.set_logger(Logger(None, [written]))
    model.learn(100, callback=VLPRewardCallback(), log_interval=1)
    assert written.values.get("rollout/success_rate") == rate
    successes = model.ep_success_buffer
    assert len(successes) == (0 if threshold is None else 2 * 7)  # of 7, 3, 1, 9, 9, 9 and 9 steps, in 50
    venv.close()


def test_an_environment_says_itself_whether_it_succeeded():
    class Telling(SeenEnv):
        def step(self, action):
            *others, info = super().step(action)
            return *others, {**info, "is_success": False}

    env = late_env(Telling(), mode="sync", success_threshold=0.0)
    env.reset()
    assert env.step(env.action_space.sample())[4]["is_success"] is False


def test_a_step_before_the_training():
    callback = VLPRewardCallback()
    callback.model = sb3.PPO("MlpPolicy", late_env(), n_steps=16, batch_size=8)
    callback.locals = {"infos": [{}], "dones": [False], "rewards": [0.0]}
    message = "VLPRewardCallback was not started: give it to learn(), which calls on_training_start"
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        callback.on_step()


def test_a_vec_env_without_reset_infos():
    class Old(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

        def __getattribute__(self, name):
            if name == "reset_infos":
                raise AttributeError(name)
            return super().__getattribute__(name)

    venv = VLPVecReward(Old(DummyVecEnv(capture_frames([SeenEnv]))), SENTENCE, PaintedModel())
    model = sb3.PPO("MlpPolicy", venv, n_steps=16, batch_size=8, n_epochs=1)
    model.learn(16, callback=VLPRewardCallback())
    assert model.rollout_buffer.rewards[:7, 0].tolist() == [painted_value(0, 0, step) for step in range(1, 8)]
    venv.close()
