"""PEBBLE with Stable-Baselines3: a replay buffer that relabels, exploration, sessions of queries, pause and resume."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

import sb3_contrib
import stable_baselines3 as sb3
from late import SeenEnv, SlowModel, late_env, late_venv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from vlp_gym import PreferenceCallback, PreferenceReplayBuffer, Queries
from vlp_gym.errors import CheckpointError, MissingExtraError, QueryError
from vlp_gym.integrations.sb3.preferences import reset_critic
from vlp_gym.preferences import (
    ModelLabeler,
    RecordedLabeler,
    RewardEnsemble,
    ScriptedLabeler,
    StateEntropy,
    agreement,
)
from vlp_gym.preferences.samplers import Sampler
from vlp_gym.storage import read_pair, write_pair
from vlp_gym.testing import PaintedModel

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
        return self.observe(), self.at, False, self.left == 0, {"place": self.at}


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
    model, preferences = agent(env, algorithm), callback(judge=lambda info: -info["place"])
    model.learn(300, preferences)
    assert all(row["judged_accuracy"] < 0.4 for row in preferences.history)  # of a mean, where a return is a sum
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
    preferences.learner.asked = 0
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
    paid = StateEntropy(buffer.draw_states)(torch.from_numpy(buffer.observations[:10, 0]), torch.empty(10, 1))
    np.testing.assert_allclose(paid, distances / distances.std(ddof=1), rtol=1e-3)


@pytest.mark.parametrize("algorithm", [sb3.SAC, sb3.TD3, sb3_contrib.CrossQ])
def test_the_critic_begins_anew_and_the_actor_stays(algorithm):
    model = agent(algorithm=algorithm)
    model.replay_buffer.set_reward(lambda states, actions: states[:, 0])
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
    assert (again.asked, again.history) == (preferences.asked, preferences.history)
    assert again.learner.next_session == preferences.learner.next_session
    assert again.learner.rng.bit_generator.state == preferences.learner.rng.bit_generator.state
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


def test_the_layout_of_a_saved_run_stays(tmp_path):
    """Runs that were saved by earlier versions are restored: nothing may be renamed in what `save` writes."""
    model, preferences = agent(), callback(reward_std=0.5)
    model.learn(120, preferences)
    preferences.save(tmp_path)
    document, tensors = read_pair(tmp_path, stem="preferences-run")
    parts = {name: getattr(preferences, name).pack() for name in ("segments", "preferences", "ensemble")}
    rewards = model.replay_buffer._get_samples(np.arange(50)).rewards[:, 0]
    raw = preferences.ensemble.predict(
        *(torch.from_numpy(block[:50, 0]) for block in (model.replay_buffer.observations, model.replay_buffer.actions))
    )
    mean, factor = document["reward"]
    torch.testing.assert_close(rewards, (raw - mean) * factor)
    assert document == {
        "settings": {
            "budget": 40, "session": 8, "every": 40, "explore": 30, "schedule": "constant", "sampler": "disagreement",
            "newest": 20, "candidates": 4, "length": 6, "hidden": [256, 256, 256], "seed": 0, "fit_epochs": 5,
            "standardize": True, "reset_updates": 100, "reward_std": 0.5, "disagreement_bonus": 0.0,
            "semi_supervised": False, "keep_tokens": False, "keep_frames": 0,
        },
        "num_timesteps": 120,
        "history": preferences.history,
        "asked": preferences.asked,
        "reward": [mean, factor],
        "exploration": list(preferences._exploration.moments),
        "unfitted": False,
        "next": preferences.history[-1]["step"] + SOON.every,
        "rng": preferences.learner.rng.bit_generator.state,
        "labeler_rng": preferences.learner.labeler.rng.bit_generator.state,
        **{name: packed for name, (packed, _) in parts.items()},
    }  # fmt: skip
    replay = {
        f"replay/{name}" for name in ("observations", "next_observations", "actions", "dones", "timeouts", "ring")
    }
    assert tensors.keys() == replay | {f"{part}/{name}" for part, (_, kept) in parts.items() for name in kept}


def test_a_resumed_teacher_makes_the_mistakes_that_come_next(tmp_path):
    model, preferences = agent(), callback(ScriptedLabeler("mistake", seed=3))
    model.learn(120, preferences)
    preferences.save(tmp_path)
    again = callback(ScriptedLabeler("mistake", seed=3))
    again.restore(tmp_path, model)
    assert (
        again.learner.labeler.rng.random()
        == preferences.learner.labeler.rng.random()
        != np.random.default_rng(3).random()
    )


def test_resuming_with_other_queries_or_another_model_is_refused(tmp_path):
    model, preferences = agent(), callback()
    model.learn(80, preferences)
    preferences.save(tmp_path)
    with pytest.raises(CheckpointError, match=r": expected budget=7, but it was saved with 40$"):
        callback(queries=replace(SOON, budget=7)).restore(tmp_path, model)
    with pytest.raises(CheckpointError, match=r": expected reward_std=0.5, but it was saved with None$"):
        callback(reward_std=0.5).restore(tmp_path, model)
    with pytest.raises(CheckpointError, match=r": expected reset_updates=7, but it was saved with 100$"):
        callback(reset_updates=7).restore(tmp_path, model)
    with pytest.raises(CheckpointError, match=r": saved after 80 steps, but the model has 0$"):
        callback().restore(tmp_path, agent())
    other = agent(SeenEnv())
    other.num_timesteps = 80
    with pytest.raises(CheckpointError, match=r"json: observations: expected the shape \[N, 1, 1\], got \[80, 1, 2\]$"):
        callback().restore(tmp_path, other)
    assert other.replay_buffer.size() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(num_timesteps="80"), "num_timesteps: expected a valid integer, got '80'"),
        (lambda d, t: d.update(exploration=[1.5, 0, 0]), "exploration.0: expected an integer, got 1.5"),
        (lambda d, t: d.update(exploration=[1, 0, -1]), "exploration.2: expected greater than or equal to 0, got -1"),
        (lambda d, t: t["replay/dones"].fill_(2), "dones: expected numbers from 0 to 1, got 2"),
        (lambda d, t: t["replay/observations"].fill_(np.nan), "observations: expected finite numbers, got NaN or inf"),
        (lambda d, t: t["replay/ring"].fill_(3), "expected the rows of a ring of 400, got 80 rows, next row 3, full 3"),
        (lambda d, t: t["preferences/labels"].fill_(-1), "labels: expected numbers from 0 to 1, got -1"),
        (lambda d, t: t.update(more=torch.ones(1)), "unknown tensors: more"),
    ],
)
def test_a_refused_run_changes_nothing(tmp_path, change, message):
    model, preferences = agent(), callback()
    model.learn(80, preferences)
    preferences.save(tmp_path)
    document, tensors = read_pair(tmp_path, stem="preferences-run")
    change(document, tensors)
    write_pair(tmp_path, document, tensors, stem="preferences-run")
    other, fresh = agent(), callback()
    other.num_timesteps = 80
    before = fresh.learner.pack()
    with pytest.raises(CheckpointError, match=f"^{re.escape(f'{tmp_path}/preferences-run.json: {message}')}$"):
        fresh.restore(tmp_path, other)
    assert fresh.learner.pack() == before
    assert (other.replay_buffer.pos, other.replay_buffer.observations.any()) == (0, False)


def test_a_full_ring_goes_into_one_of_its_size(tmp_path):
    model, preferences = agent(buffer_size=50), callback()
    model.learn(80, preferences)
    preferences.save(tmp_path)
    larger = agent(buffer_size=60)
    larger.num_timesteps = 80
    with pytest.raises(CheckpointError, match=r": expected the rows of a ring of 60, got 50 rows, next row 30, f"):
        callback().restore(tmp_path, larger)
    same = agent(buffer_size=50)
    same.num_timesteps = 80
    callback().restore(tmp_path, same)
    assert (same.replay_buffer.pos, same.replay_buffer.full) == (30, True)


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


def test_the_bonus_for_disagreement_falls_to_zero():
    class Halfway(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 100:
                samples = self.model.replay_buffer._get_samples(np.arange(20))
                ensemble, rows = preferences.ensemble, (samples.observations, samples.actions)
                self.difference = (samples.rewards[:, 0] - ensemble.predict(*rows)) / ensemble.bonus(*rows)
            return True

    model, preferences, halfway = agent(), callback(disagreement_bonus=0.3), Halfway()
    model.learn(200, [preferences, halfway])
    torch.testing.assert_close(halfway.difference, torch.full((20,), 0.3 * 0.5), atol=1e-4, rtol=1e-3)
    samples = model.replay_buffer._get_samples(np.arange(20))
    expected = preferences.ensemble.predict(samples.observations, samples.actions)
    torch.testing.assert_close(samples.rewards[:, 0], expected)


def test_what_a_session_does(monkeypatch):
    """The first is uniform and resets the critic; the later ones ask the sampler, and leave the critic."""
    from vlp_gym.integrations.sb3 import preferences as sb3_preferences
    from vlp_gym.preferences import learner

    drawn, fits, resets, trained = [], [], [], []
    choose, fit, train = learner.choose_pairs, RewardEnsemble.fit, sb3.SAC.train

    def chosen(*arguments, **options):
        drawn.append(options)
        return choose(*arguments, **options)

    def fitted(self, *arguments, **options):
        fits.append(options["unlabelled"])
        return fit(self, *arguments, **options)

    def learned(self, gradient_steps, batch_size=64):
        trained.append(gradient_steps)
        return train(self, gradient_steps, batch_size)

    monkeypatch.setattr(learner, "choose_pairs", chosen)
    monkeypatch.setattr(RewardEnsemble, "fit", fitted)
    monkeypatch.setattr(sb3_preferences, "reset_critic", resets.append)
    monkeypatch.setattr(sb3.SAC, "train", learned)
    model, preferences = agent(), callback(semi_supervised=True, reset_updates=7)
    model.learn(100, preferences)
    assert [options["sampler"] for options in drawn] == ["uniform", "disagreement", "uniform"]
    assert [options["labelled"] for options in drawn[:2]] == [preferences.preferences] * 2
    assert (drawn[0]["newest"], drawn[1]["candidates"]) == (SOON.newest, SOON.candidates)
    assert fits[0] is None
    assert len(fits[1][0]) == 10 * SOON.session
    assert resets == [model]
    assert trained.count(7) == 1


def test_nothing_labelled_is_nothing_learned():
    """Somebody stops, or no pair is sure enough: exploration goes on."""
    model, preferences = agent(), callback(lambda first, second: np.full(len(first), np.nan))
    model.learn(100, preferences)
    assert [row["skipped"] for row in preferences.history] == [8, 8]
    assert isinstance(model.replay_buffer._reward_fn, StateEntropy)
    assert preferences.reward(np.ones(2), np.ones(1)) == 0.0
    preferences.learner.labeler = ScriptedLabeler()
    model.learn(100, preferences, reset_num_timesteps=False)
    assert preferences.ensemble.fitted
    assert not isinstance(model.replay_buffer._reward_fn, StateEntropy)


@pytest.mark.parametrize("where", ["labeler", "fit"])
def test_an_interrupt_in_a_session_loses_nothing(where, monkeypatch):
    interrupts = [True]

    def once(function):
        def call(*arguments, **options):
            if interrupts and interrupts.pop():
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    preferences = callback(once(ScriptedLabeler()) if where == "labeler" else None, replace(SOON, budget=8))
    if where == "fit":
        monkeypatch.setattr(RewardEnsemble, "fit", once(RewardEnsemble.fit))
    model = agent()
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, preferences)
    assert not preferences.ensemble.fitted
    model.learn(20, preferences, reset_num_timesteps=False)
    assert preferences.asked == len(preferences.preferences) == 8
    assert preferences.ensemble.fitted
    assert not isinstance(model.replay_buffer._reward_fn, StateEntropy)


def test_queries_wait_for_two_segments(caplog):
    class Endless(Walk):
        def step(self, action):
            return (*super().step(action)[:3], False, {})

    preferences = callback()
    agent(Endless()).learn(100, preferences)
    assert not preferences.history
    assert [record.message for record in caplog.records] == [
        "queries are due, but no two segments have been finished yet: they come when that is so"
    ]


@pytest.mark.parametrize("kind", ["separate", "shared", "vector"])
def test_scores_on_their_way_are_waited_for(kind, tmp_path):
    venv = late_venv(kind, 2, model=SlowModel(0.02))
    model, preferences = agent(venv), callback(RecordedLabeler())
    for steps in (60, 60, 60):
        model.learn(steps, preferences, reset_num_timesteps=steps == 0)
        store = preferences.segments
        for record in store.cut([(number, 0, 1) for number in store.numbers]).episodes:
            # SB3 resets before any callback is called: the reset frames of the very first episodes may have been seen.
            early = {0} - set(record.scores) if record.number < 2 else set()
            assert sorted({*record.scores, *early}) == list(range(len(record.states) + 1))
        preferences.save(tmp_path)
    assert preferences.asked >= 24
    wrapper = venv if kind == "vector" else venv.envs[0]
    assert wrapper.engine.on_answer is None
    assert not wrapper._stream.yields
    venv.close()


def test_exploration_sees_small_distances_between_large_numbers():
    model = agent()
    buffer = model.replay_buffer
    for step in range(40):
        state = np.array([[1000.0, 0.01 * step]], np.float32)
        buffer.add(state, state, np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    reward = StateEntropy(buffer.draw_states)
    reward(torch.from_numpy(buffer.observations[:1, 0]), torch.empty(1, 1))
    assert reward.moments[1] == pytest.approx(0.05, rel=1e-3)  # the first of a row: its fifth neighbour is 5 steps away


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
    other = agent()
    other.num_timesteps = 120
    again.restore(tmp_path, other)
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
        agent(late_env(mode="sync")).learn(10, callback(RecordedLabeler()))
    with pytest.raises(ValueError, match=r"^VecNormalize\(norm_reward=True\) would scale what is learned by the env"):
        agent(VecNormalize(DummyVecEnv([Walk]))).learn(10, callback())  # fault 48
    with pytest.raises(ValueError, match=r"^optimize_memory_usage=True is not supported: its rows cannot be saved;"):
        agent(optimize_memory_usage=True)
    with pytest.raises(ValueError, match=r"^the labeler's model is not the one whose frame tokens are kept; give "):
        agent(late_env()).learn(10, callback(ModelLabeler(PaintedModel(), "press the button")))
    model = agent()
    model.learn(6, callback())
    with pytest.raises(ValueError, match=r"^the model has learned for 6 steps without this callback; call restore\("):
        model.learn(5, callback(), reset_num_timesteps=False)
    with pytest.warns(UserWarning, match="^`n_steps=3` is ignored"):
        model = agent(n_steps=3)
    with pytest.raises(ValueError, match=r"^expected n_steps=1, got 3: n-step returns would be of older rewards$"):
        model.learn(10, callback())
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
        ({"sampler": "random"}, f"sampler must be one of {get_args(Sampler)}, got 'random'"),
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
        importlib.import_module("vlp_gym.integrations.sb3.preferences")
