"""PEBBLE with Stable-Baselines3: a replay buffer that relabels, exploration, sessions of queries, pause and resume."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

import sb3_contrib
import stable_baselines3 as sb3
from late import SeenEnv, late_env, late_venv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from vlp_gym import PreferenceCallback, PreferenceReplayBuffer, Queries
from vlp_gym.errors import CheckpointError, MissingExtraError, QueryError
from vlp_gym.integrations.sb3_preferences import reset_critic
from vlp_gym.integrations.sb3_relabel import StateEntropy
from vlp_gym.preferences.labelers import RecordedLabeler, ScriptedLabeler, agreement

SOON = Queries(budget=40, session=8, every=40, explore=30, newest=20, candidates=4, length=6)


class Walk(gym.Env):
    """A point on a line, paid for being far to the right; episodes of unequal length."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, seed=0):
        self.rng, self.episode = np.random.default_rng(seed), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.at, self.left = self.rng.normal(), 5 + self.episode % 7
        return self.observe(), {}

    def observe(self):
        return np.array([self.at, self.left], np.float32)

    def step(self, action):
        self.at += float(action[0]) / 2
        self.left -= 1
        return self.observe(), self.at, False, self.left == 0, {}


def agent(env=None, algorithm=sb3.SAC, **options):
    settings = {"learning_starts": 20, "batch_size": 16, "buffer_size": 400, "train_freq": 2, "seed": 0, **options}
    kwargs = {"net_arch": [16]}
    return algorithm(
        "MlpPolicy", env or Walk(), replay_buffer_class=PreferenceReplayBuffer, policy_kwargs=kwargs, **settings
    )


def callback(labeler=None, queries=SOON, **options):
    return PreferenceCallback(labeler or ScriptedLabeler(), queries, **{"fit_epochs": 5, **options})


ALGORITHMS = [sb3.SAC, sb3.TD3, sb3.DDPG, sb3_contrib.TQC, sb3_contrib.CrossQ]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n_envs", [1, 3])
def test_every_off_policy_algorithm(algorithm, n_envs):
    env = DummyVecEnv([lambda k=k: Walk(k) for k in range(n_envs)])
    model, preferences = agent(env, algorithm), callback()
    model.learn(300, preferences)
    assert preferences.asked == SOON.budget == len(preferences.preferences)
    assert [row["labels"] for row in preferences.history] == [8, 16, 24, 32, 40]
    assert all(row["label_accuracy"] == 1.0 for row in preferences.history)
    assert preferences.history[0]["step"] >= 20 + SOON.explore


def test_every_row_has_the_newest_reward_after_the_ring_has_wrapped():  # fault 49
    model = agent(buffer_size=100)
    preferences = callback()
    model.learn(350, preferences)
    buffer = model.replay_buffer
    assert buffer.full
    rows = np.arange(100)

    def learned():
        states, actions = (torch.from_numpy(block[:, 0]) for block in (buffer.observations, buffer.actions))
        return preferences.ensemble.predict(states, actions)

    before = learned()
    torch.testing.assert_close(buffer._get_samples(rows).rewards[:, 0], before)
    preferences.asked = 0
    preferences.session()
    torch.testing.assert_close(buffer._get_samples(rows).rewards[:, 0], learned())
    assert (learned() != before).all()
    model.learn(30, preferences, reset_num_timesteps=False)  # new rows in the place of old ones
    torch.testing.assert_close(buffer._get_samples(rows).rewards[:, 0], learned())


def test_rewards_are_of_observations_as_they_were():
    venv = VecNormalize(DummyVecEnv([Walk]), norm_reward=False)
    model, preferences = agent(venv), callback()
    model.learn(200, preferences)
    buffer, rows = model.replay_buffer, np.arange(50)
    raw, scaled = buffer._get_samples(rows), buffer._get_samples(rows, venv)
    torch.testing.assert_close(raw.rewards, scaled.rewards)
    states, actions = (torch.from_numpy(block[rows, 0]) for block in (buffer.observations, buffer.actions))
    torch.testing.assert_close(raw.rewards[:, 0], preferences.ensemble.predict(states, actions))
    np.testing.assert_allclose(scaled.observations, venv.normalize_obs(buffer.observations[rows, 0]), rtol=1e-6)
    following = venv.normalize_obs(buffer.next_observations[rows, 0])
    np.testing.assert_allclose(scaled.next_observations, following, rtol=1e-6)
    assert preferences.segments.cut([(preferences.segments.numbers[0], 0, 1)]).states[0, 0].tolist() in (
        buffer.observations[:, 0].tolist()
    )


@pytest.mark.parametrize("normalized", [False, True])
def test_segments_are_what_happened(normalized):
    env = VecNormalize(DummyVecEnv([Walk]), norm_reward=False) if normalized else Walk()
    model, preferences = agent(env), callback()
    model.learn(150, preferences)
    buffer, store = model.replay_buffer, preferences.segments
    seen = np.concatenate([buffer.observations[:150, 0], buffer.actions[:150, 0]], axis=1)
    for number in store.numbers:
        segment = store.cut([(number, 0, 2)])
        pair = np.concatenate([segment.states[0, :2], segment.actions[0, :2]], axis=1)
        row = next(row for row in range(149) if np.array_equal(seen[row], pair[0]))
        np.testing.assert_array_equal(seen[row : row + 2], pair)
        np.testing.assert_allclose(segment.rewards[0, :2], buffer.next_observations[row : row + 2, 0, 0], rtol=1e-6)


def test_exploration_is_paid_by_the_distance_to_the_fifth_neighbour():
    model = agent()
    preferences = callback(queries=Queries(explore=10_000))
    model.learn(60, preferences)
    buffer = model.replay_buffer
    assert isinstance(buffer._reward_fn, StateEntropy)
    points = buffer.observations[:60, 0].astype(np.float64)
    distances = np.sort(np.linalg.norm(points[:10, None] - points[None], axis=2), axis=1)[:, 5]  # 0 is itself
    paid = StateEntropy(buffer)(torch.from_numpy(buffer.observations[:10, 0]), torch.empty(10, 1))
    np.testing.assert_allclose(paid, distances / distances.std(ddof=1), rtol=1e-3)


@pytest.mark.parametrize("algorithm", [sb3.SAC, sb3.TD3, sb3_contrib.CrossQ])
def test_the_critic_begins_anew_and_the_actor_stays(algorithm):
    model = agent(algorithm=algorithm)
    model.replay_buffer.pay(lambda states, actions: states[:, 0])
    model.learn(100)
    actor = [weight.clone() for weight in model.actor.state_dict().values()]
    critic = [weight.clone() for weight in model.critic.parameters()]
    reset_critic(model)
    assert all(torch.equal(old, new) for old, new in zip(actor, model.actor.state_dict().values(), strict=True))
    changed = [not torch.equal(old, new) for old, new in zip(critic, model.critic.parameters(), strict=True)]
    assert any(changed)
    assert not model.critic.optimizer.state
    if hasattr(model, "critic_target"):
        for online, target in zip(model.critic.parameters(), model.critic_target.parameters(), strict=True):
            torch.testing.assert_close(online, target)


def test_sessions_follow_their_schedule():
    sizes = {schedule: [Queries(session=60, schedule=schedule).size(step, 99) for step in (0, 50, 98)] for schedule in (
        "constant", "decaying", "increasing")}  # fmt: skip
    assert sizes == {"constant": [60, 60, 60], "decaying": [60, 30, 1], "increasing": [60, 120, 3000]}


def test_pause_and_resume_keep_everything(tmp_path):  # faults 58, 59
    model, preferences = agent(), callback()
    model.learn(120, preferences)
    model.save(tmp_path / "model.zip")
    preferences.save(tmp_path)
    again = callback()
    resumed = sb3.SAC.load(tmp_path / "model.zip", Walk())
    again.restore(tmp_path, resumed)
    assert (again.asked, again.history, again._next) == (preferences.asked, preferences.history, preferences._next)
    assert again.rng.bit_generator.state == preferences.rng.bit_generator.state
    np.testing.assert_array_equal(again.preferences.inputs, preferences.preferences.inputs)
    for name in ("observations", "next_observations", "actions", "dones", "timeouts"):
        old, new = (getattr(each.replay_buffer, name)[:120] for each in (model, resumed))
        np.testing.assert_array_equal(old, new)
    rows = np.arange(50)
    resumed.learn(1, again, reset_num_timesteps=False)
    torch.testing.assert_close(
        resumed.replay_buffer._get_samples(rows).rewards, model.replay_buffer._get_samples(rows).rewards
    )
    both = [each.segments.sample(20, np.random.default_rng(0), newest=5) for each in (preferences, again)]
    np.testing.assert_array_equal(both[0].states, both[1].states)
    resumed.learn(200, again, reset_num_timesteps=False)
    assert again.asked == SOON.budget


def test_resuming_with_other_queries_or_another_model_is_refused(tmp_path):
    model, preferences = agent(), callback()
    model.learn(80, preferences)
    preferences.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected \{'budget': 7, .* but it was saved with \{'budget': 40,"):
        callback(queries=Queries(budget=7)).restore(tmp_path, agent())
    other = agent(SeenEnv())
    with pytest.raises(CheckpointError, match=r"expected observations of the shape \(400, 1, 1\), got \[80, 1, 2\]$"):
        callback().restore(tmp_path, other)
    assert other.replay_buffer.size() == 0


KINDS = ["separate", "shared", "vector"]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_late_rewards(kind):
    """Every recorded score is that of its own step, whichever wrapper brings it."""
    venv = late_venv(kind, 3)
    model, preferences = agent(venv), callback(RecordedLabeler())
    model.learn(200, preferences)
    venv.close()
    assert preferences.asked == 32
    store = preferences.segments
    for number in store.numbers[:-3]:
        segment = store.cut([(number, 0, 1)])
        record, steps = segment.episodes[0], len(segment.episodes[0].states)
        assert sorted(record.scores) == list(range(steps + 1))
        for step in range(steps):  # the observation before a step is the painted value of the frame before it
            assert record.scores[step] == pytest.approx(float(record.states[step][0]), abs=1e-6)


def test_nothing_of_the_environments_reward_is_read():
    """The environment pays NaN; labels and agent do not notice."""

    class Unpaid(gym.Wrapper):
        def step(self, action):
            observation, _, *rest = self.env.step(action)
            return observation, float("nan"), *rest

    env = late_env(Unpaid(SeenEnv()))
    model, preferences = agent(env), callback(RecordedLabeler())
    model.learn(150, preferences)
    env.close()
    assert preferences.asked == 24
    assert all(np.isnan(row["label_accuracy"]) for row in preferences.history)
    assert all(torch.isfinite(weight).all() for weight in model.policy.parameters())


@pytest.mark.parametrize("options", [{"disagreement_bonus": 0.05}, {"semi_supervised": True}, {"reset_updates": None}])
def test_options(options):
    model, preferences = agent(), callback(**options)
    model.learn(200, preferences)
    assert preferences.asked >= 24
    if "disagreement_bonus" in options:
        samples = model.replay_buffer._get_samples(np.arange(20))
        left = 1.0 - model.num_timesteps / 200
        assert left == 0.0
        torch.testing.assert_close(
            samples.rewards[:, 0], preferences.ensemble.predict(samples.observations, samples.actions)
        )


def test_the_reward_is_standardized_over_the_replay_buffer(tmp_path):
    model, preferences = agent(), callback(reward_std=0.5, queries=Queries(session=8, explore=30, length=6, every=1000))
    model.learn(120, preferences)
    buffer = model.replay_buffer
    states, actions = (torch.from_numpy(block[:, 0]) for block in (buffer.observations, buffer.actions))
    raw = preferences.ensemble.predict(states, actions)
    then = raw[: preferences.history[0]["step"] - 1]  # the rows of that session
    paid = buffer._get_samples(np.arange(120)).rewards[:, 0]
    torch.testing.assert_close(paid, (raw[:120] - then.mean()) / then.std() * 0.5, atol=1e-5, rtol=1e-4)
    assert preferences.reward(buffer.observations[3, 0], buffer.actions[3, 0]) == pytest.approx(
        float(paid[3]), abs=1e-5
    )
    preferences.save(tmp_path)
    again = callback(reward_std=0.5, queries=preferences.queries)
    again.restore(tmp_path, agent())
    assert again.reward(buffer.observations[3, 0], buffer.actions[3, 0]) == pytest.approx(float(paid[3]), abs=1e-5)
    with pytest.raises(ValueError, match=r"^reward_std must be a number above 0, or None, got 0$"):
        callback(reward_std=0)


def test_a_second_training_begins_with_new_episodes():
    model, preferences = agent(), callback()
    model.learn(104, preferences)
    asked = preferences.asked
    model.learn(60, preferences)  # from step 0: the environment is reset
    assert preferences.asked > asked
    starts = model.replay_buffer.observations[104, 0].tolist()
    firsts = [
        preferences.segments.cut([(number, 0, 1)]).states[0, 0].tolist() for number in preferences.segments.numbers
    ]
    assert starts in firsts


def test_a_session_shows_its_progress(capsys):
    agent().learn(60, callback(progress_bar=True))
    assert "session 1, 8 labels: " in capsys.readouterr().err


def test_agreement_counts_what_has_two_sides():
    labels = np.array([1.0, 0.0, 0.5, np.nan, 1.0, 0.0])
    truth = np.array([2.0, -1.0, 5.0, 1.0, -3.0, 0.0])
    assert agreement(labels, truth) == (pytest.approx(2 / 3), 3)
    assert np.isnan(agreement(labels[2:3], truth[2:3])[0])


def test_what_it_does_not_go_with():
    with pytest.raises(ValueError, match=r"^expected a model with replay_buffer_class=PreferenceReplayBuffer, got Rep"):
        sb3.SAC("MlpPolicy", Walk()).learn(10, callback())
    with pytest.raises(ValueError, match=r"^expected a Box as action_space, got Discrete"):
        sb3.DQN("MlpPolicy", SeenEnv(discrete=True), replay_buffer_class=PreferenceReplayBuffer).learn(10, callback())
    with pytest.raises(QueryError, match=r"^no reward was learned yet; give learn\(\) a PreferenceCallback,"):
        agent().learn(100)
    with pytest.raises(ValueError, match=r'^expected the wrapper in mode="async", whose steps have tickets$'):
        agent(late_env(mode="sync")).learn(10, callback())
    venv = SubprocVecEnv([late_env], start_method="forkserver")
    with pytest.raises(ValueError, match=r"^the environments look at their frames in other processes,"):
        agent(venv).learn(10, callback())
    venv.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"explore": -1}, "explore must be at least 0, got -1"),
        ({"schedule": "linear"}, "schedule must be one of ('constant', 'decaying', 'increasing'), got 'linear'"),
    ],
)
def test_queries_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Queries(**options)


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    import importlib
    import sys

    for name in [name for name in sys.modules if name.startswith(("stable_baselines3", "vlp_gym.integrations.sb3"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(MissingExtraError, match=r'^Stable-Baselines3 is not installed: pip install "vlp_gym\[sb3\]"$'):
        importlib.import_module("vlp_gym.integrations.sb3_preferences")
