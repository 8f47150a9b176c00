"""TorchRL with `VLPPreferenceTransform`: the learner gets each step, and samples are paid what is learned."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import torch
from late import SeenEnv
from libraries import STEP, single, vector

from vlp_gym.engine import QueryEngine
from vlp_gym.errors import QueryError
from vlp_gym.preferences import ModelLabeler, PreferenceLearner, Queries, RecordedLabeler, ScriptedLabeler
from vlp_gym.testing import PaintedEnv, PaintedModel

pytestmark = [pytest.mark.usefixtures("torchrl"), pytest.mark.timeout(600)]  # the first import takes long


class PaidEnv(SeenEnv):
    """A `SeenEnv` that pays minus what is seen next, so that the fewer steps are over, the better."""

    def step(self, action):
        observation, _, *others = super().step(action)
        return observation, -float(observation[0]), *others


KINDS = {
    "no wrapper": lambda mode: PaidEnv((7, 3, 1, 9)),
    "single": lambda mode: single(mode, env=PaidEnv((7, 3, 1, 9))),
    "captured": partial(vector, "captured", make=PaidEnv),
    "captured, SAME_STEP": partial(vector, "captured", autoreset="SameStep", flat_info=True, make=PaidEnv),
    "one by one": partial(vector, "one by one", make=PaidEnv),
    "one by one, SAME_STEP": partial(vector, "one by one", autoreset="SameStep", flat_info=True, make=PaidEnv),
}


def learner_of(labeler, **options):
    queries = Queries(**{"budget": 12, "session": 5, "every": 24, "explore": 20, "length": 3, **options})
    return PreferenceLearner(labeler, queries, hidden=(8,), fit_epochs=2)


def with_learner(envs, learner, **options):
    from torchrl.envs import GymWrapper, TransformedEnv

    from vlp_gym.integrations.torchrl import VLPPreferenceTransform

    transform = VLPPreferenceTransform(learner, total_steps=96, **options)
    return TransformedEnv(GymWrapper(envs), transform), transform


def records(learner):
    store = learner.segments
    segments = store.cut([(number, 0, store.steps(number)) for number in store.numbers])
    return segments.episodes


def collected(env, total=96):
    """The steps of a run with random actions, ``[N, T]``, in batches of 12."""
    from torchrl.collectors import Collector
    from torchrl.envs.utils import RandomPolicy

    policy = RandomPolicy(env.full_action_spec)
    for batch in Collector(env, policy, frames_per_batch=12, total_frames=total):
        yield batch if batch.ndim > 1 else batch[None]


def episodes_in(batches):
    """Of each environment, the finished episodes: states, actions and next states."""
    steps = torch.cat(list(batches), 1)
    for row in steps:
        ends = (row["next", "done"].flatten().nonzero().flatten() + 1).tolist()
        for start, stop in zip([0, *ends], ends, strict=False):
            part = row[start:stop]
            yield tuple(part[name].numpy() for name in ("observation", "action", ("next", "observation")))


@pytest.mark.filterwarnings(
    "ignore:Nested TransformedEnvs:UserWarning", "ignore:Creating .* which inherits:DeprecationWarning"
)
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_step_is_learned_from_and_paid(kind, mode):
    """Segments of 9 steps hold a whole episode, so that all that the learner has been told can be read again."""
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

    rows = []
    learner = learner_of(ScriptedLabeler(), length=9)
    env, transform = with_learner(KINDS[kind](mode), learner, random_steps=4, on_session=rows.append)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(96), batch_size=16)
    buffer.append_transform(transform.clone())
    batches, steps = [], 0
    for batch in collected(env):
        batches.append(batch.clone())
        steps += batch.numel()
        buffer.extend(batch.reshape(-1))
        sample = buffer.sample()
        states, actions = sample["observation"], sample["action"]
        rewards = sample["next", "reward"].flatten()
        if learner.fitted:
            assert torch.equal(rewards, learner.reward(states, actions))
        else:
            assert steps <= 24
            assert (rewards > 0).any()  # distances to neighbours
    assert [row["step"] for row in rows] == [24, 48, 72]
    assert [row["labels"] for row in rows] == [5, 10, 12]
    assert all(row["label_accuracy"] == 1 for row in rows)
    told = {record.states[0].item() + len(record.states) * STEP: record for record in records(learner)}
    seen = list(episodes_in(batches))
    assert len(told) == len(seen) > 8
    for states, actions, following in seen:
        record = told[states[0].item() + len(states) * STEP]
        assert np.array_equal(record.states, states)
        assert np.array_equal(record.actions, actions)
        assert np.array_equal(record.rewards, -following[:, 0].astype(np.float64))


@pytest.mark.parametrize("kind", ["single", "captured", "one by one"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_reward_model_labels(kind, whole):
    """What it has said of each step, or of whole segments: all labels agree with what is painted."""
    engine = QueryEngine(PaintedModel(), mode="async")
    envs = single(model=engine) if kind == "single" else vector(kind, model=engine)
    labeler = ModelLabeler(engine, "press the button", kind="reward") if whole else RecordedLabeler()
    learner = learner_of(labeler, every=12)
    env, _ = with_learner(envs, learner)
    for _ in collected(env):
        pass
    painted = learner.preferences.inputs[..., 0] + STEP * learner.preferences.mask  # what is seen after each step
    first, second = (painted * learner.preferences.mask).sum(2).T
    assert len(learner.preferences) == 12
    assert np.array_equal(learner.preferences.labels > 0.5, first > second)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_broken_off_episode_is_left_out(wrapped, mode):
    learner = learner_of(ScriptedLabeler(), length=9)
    env, _ = with_learner(single(mode, env=PaidEnv((4,))) if wrapped else PaidEnv((4,)), learner)
    for steps in (2, 4, 3, 4):
        env.rollout(steps)
    assert [len(record.states) for record in records(learner)] == [4, 4]
    assert [record.states[0].item() for record in records(learner)] == [1024 * STEP, 3 * 1024 * STEP]
    env.close()


def test_a_labeler_that_has_seen_nothing_says_so():
    learner = learner_of(RecordedLabeler())
    env, _ = with_learner(PaidEnv((4,)), learner)
    with pytest.raises(QueryError, match=r"^scores are missing of .*; wrap the environment in mode='async'$"):
        env.rollout(60, break_when_any_done=False)


def test_bad_use():
    from tensordict import TensorDict
    from torchrl.envs import PendulumEnv, SerialEnv, TransformedEnv

    from vlp_gym.integrations.torchrl import VLPPreferenceTransform

    learner = learner_of(ScriptedLabeler())
    with pytest.raises(ValueError, match=r"^total_steps must be at least 1, got 0$"):
        VLPPreferenceTransform(learner, total_steps=0)
    transform = VLPPreferenceTransform(learner, total_steps=96)
    with pytest.raises(KeyError, match="observation"):
        transform(TensorDict({"next": {"reward": torch.zeros(3, 1)}}, [3]))
    with pytest.raises(TypeError, match=r"^expected a GymWrapper in the TransformedEnv, got PendulumEnv$"):
        TransformedEnv(PendulumEnv(), transform).reset()
    with pytest.raises(RuntimeError, match=r"^VLPPreferenceTransform cannot be in an environment of SerialEnv"):
        SerialEnv(2, lambda: with_learner(PaintedEnv(), learner)[0]).reset()
    other = ModelLabeler(QueryEngine(PaintedModel()), "press the button")
    message = "the labeler's model is not the one whose frame tokens are kept; give ModelLabeler the engine"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        with_learner(single(), learner_of(other))[0].reset()
