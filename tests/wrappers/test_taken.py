"""A reward comes late only to those who take late rewards; to all others each step returns its own."""

from __future__ import annotations

import copy
import pickle
import re
import time

import gymnasium as gym
import pytest
from late import SENTENCE, GatedModel, SlowModel

from vlp_gym.engine.tickets import Ticket
from vlp_gym.errors import VLPError
from vlp_gym.rewards.delivery import Delivery
from vlp_gym.rewards.info import ticket_in
from vlp_gym.rewards.stream import NOBODY_TAKES
from vlp_gym.testing import PaintedEnv, PaintedModel, painted_value
from vlp_gym.wrappers import LateRewards, VLPRewardWrapper, VLPVectorRewardWrapper, capture_frames

LENGTHS = (5, 1, 3)


def make(**options):
    return VLPRewardWrapper(PaintedEnv(LENGTHS), SENTENCE, SlowModel(), **{"mode": "async", **options})


def exact(episodes=3):
    return [painted_value(0, e, t) for e in range(episodes) for t in range(1, LENGTHS[e] + 1)]


def paid(env, episodes=3, after=lambda info: None):
    """The rewards that the steps return; `after` gets the info of every reset and step."""
    rewards = []
    for _ in range(episodes):
        after(env.reset()[1])
        over = False
        while not over:
            _, reward, terminated, truncated, info = env.step(0)
            rewards.append(reward)
            after(info)
            over = terminated or truncated
    return rewards


@pytest.mark.parametrize(
    "outer",
    [
        lambda env: env,
        gym.wrappers.RecordEpisodeStatistics,
        lambda env: gym.wrappers.TransformReward(env, lambda reward: reward),
        lambda env: VLPRewardWrapper(env, SENTENCE, PaintedModel(), env_reward_weight=1.0, scale=0.0),
    ],
)
def test_a_loop_that_takes_nothing_gets_exact_rewards(outer, caplog):  # fault 67
    env = outer(make(untaken="wait"))
    with caplog.at_level("WARNING", "vlp_gym"):
        assert paid(env) == exact()
    assert caplog.messages == []
    env.close()


@pytest.mark.parametrize("look", [copy.deepcopy, pickle.dumps, str, lambda info: [*info["vlp"].values()]])
def test_reading_an_info_is_no_taking(look):
    env = make(untaken="wait")
    assert paid(env, after=look) == exact()
    env.close()


@pytest.mark.parametrize("way", ["poll", "flush"])
def test_whoever_takes_late_rewards_does_not_wait(way, caplog):
    model = GatedModel()
    env = VLPRewardWrapper(PaintedEnv((200,)), SENTENCE, model, mode="async")
    env.reset()
    getattr(env, way)()
    env.engine.wait()
    model.open = False
    for _ in range(150):
        assert env.step(0)[1] == 0.0  # the placeholder
    model.open = True
    rewards = [delivery.reward for delivery in env.flush()]
    assert rewards == [painted_value(0, 0, step) for step in range(1, 151)]
    assert caplog.messages == []
    env.close()


def test_who_has_taken_nothing_of_a_whole_episode_is_told_what_to_do(caplog):
    env = make()
    with caplog.at_level("WARNING", "vlp_gym"):
        assert paid(env) == exact()
    assert caplog.messages == [NOBODY_TAKES]
    env.close()


def test_who_has_taken_nothing_of_a_whole_episode_is_stopped_on_request():
    env = make(untaken="raise")
    env.reset()
    assert [env.step(0)[1] for _ in range(5)] == exact(1)
    env.reset()
    for _ in range(2):
        with pytest.raises(VLPError, match=f"^{re.escape(NOBODY_TAKES)}$"):
            env.step(0)
    assert env.unwrapped.elapsed == 0, "the environment moved"
    assert [delivery.reward for delivery in env.flush()] == exact(1)  # not too late
    assert env.step(0)[1:3] != (None, None)
    assert [delivery.ticket for delivery in env.flush()] == [Ticket(0, 1, 1)]
    env.close()


def test_a_part_of_an_episode_tells_nothing():
    env = VLPRewardWrapper(PaintedEnv((5,)), SENTENCE, PaintedModel(), mode="async", untaken="raise")
    for _ in range(3):
        env.reset()
        env.step(0)
    env.close()


SAYS = {
    "polls": lambda env: env.poll(),
    "flushes": lambda env: env.flush(),
    "says that it takes them": lambda env: env.take_late_rewards(),
    "says that it does not": lambda env: env.take_late_rewards(False),
    "uses LateRewards": lambda env: LateRewards(env).step(0, env.reset()[1] and env.step(0)[4]),
}


@pytest.mark.parametrize("way", SAYS)
def test_who_has_ever_said_something_is_not_told(way):
    env = make(untaken="raise")
    env.reset()
    SAYS[way](env)
    paid(env, 3)
    env.close()


def test_the_end_of_an_episode_is_early_enough():
    """A loop that stores whole episodes."""
    env, got = make(untaken="raise"), []
    for _ in range(3):
        paid(env, 1)
        got += env.flush()
    assert [delivery.reward for delivery in got] == exact()
    env.close()


def test_what_the_steps_have_paid_does_not_fill_the_memory():
    env = VLPRewardWrapper(PaintedEnv((5,)), SENTENCE, PaintedModel(), mode="async", untaken="wait")
    for _ in range(10):
        paid(env, 1)
        assert len(env._stream._states[0].ready) <= 5
    env.close()


def test_an_evaluation_loses_no_reward_of_the_training():
    model = GatedModel()
    env = VLPRewardWrapper(PaintedEnv((9, 3)), SENTENCE, model, mode="async")
    env.reset()
    env.flush()
    model.open = False
    for _ in range(4):
        env.step(0)
    model.open = True
    assert paid(env, 3) == [painted_value(0, e, t) for e in (1, 2, 3) for t in (1, 2, 3)]
    got = [delivery for delivery in env.flush() if delivery.ticket.episode == 0]
    assert [delivery.reward for delivery in got] == [painted_value(0, 0, step) for step in range(1, 5)]
    env.close()


@pytest.mark.parametrize("kind", ["one process", "captured"])
def test_in_a_vector_who_has_taken_nothing_is_told(kind):
    fns, options = [lambda: PaintedEnv((2,)), lambda: PaintedEnv((9,), env=1)], {"mode": "async", "untaken": "raise"}
    if kind == "captured":
        venv = VLPVectorRewardWrapper(
            gym.vector.SyncVectorEnv(capture_frames(fns)), SENTENCE, PaintedModel(), **options
        )
    else:
        venv = gym.vector.SyncVectorEnv(
            [lambda fn=fn: VLPRewardWrapper(fn(), SENTENCE, PaintedModel(), **options) for fn in fns]
        )
    venv.reset(seed=0)
    for _ in range(2 if kind == "captured" else 3):  # the third is a reset
        venv.step(venv.action_space.sample())
    with pytest.raises(VLPError, match=f"^{re.escape(NOBODY_TAKES)}$"):
        venv.step(venv.action_space.sample())
    venv.close()


def test_a_long_episode_is_logged(caplog):
    env = VLPRewardWrapper(PaintedEnv((300,)), SENTENCE, PaintedModel(), mode="async")
    env.reset()
    with caplog.at_level("WARNING", "vlp_gym"):
        for _ in range(250):
            env.step(0)
    assert caplog.messages == [NOBODY_TAKES]
    env.close()


def test_untaken_is_one_of_three_words():
    with pytest.raises(ValueError, match=r"^untaken must be one of \['warn', 'raise', 'wait'\], got 'ignore'$"):
        make(untaken="ignore")


def test_a_reset_in_mid_episode_ends_what_was_said_once_and_for_all():
    model = GatedModel()
    env = VLPRewardWrapper(PaintedEnv((2, 5, 5)), SENTENCE, model, mode="async")
    env.reset()
    env.take_late_rewards()
    model.open = False
    assert [env.step(0)[1] for _ in range(2)] == [0.0, 0.0]
    env.reset()  # the episode was over
    assert env.step(0)[1] == 0.0
    model.open = True
    env.reset()  # this one was not: it may be an evaluation
    assert [env.step(0)[1] for _ in range(2)] == [painted_value(0, 2, 1), painted_value(0, 2, 2)]
    env.take_late_rewards()
    model.open = False
    waited = time.monotonic()
    env.step(0)
    assert time.monotonic() - waited < 1.0
    model.open = True
    env.close()


@pytest.mark.parametrize("ask", ["poll", "flush"])
def test_who_has_polled_does_not_wait_until_the_next_reset(ask):
    model = GatedModel()
    env = VLPRewardWrapper(PaintedEnv((3, 5)), SENTENCE, model, mode="async")
    env.reset()
    assert env.step(0)[1] == painted_value(0, 0, 1)
    getattr(env, ask)()
    model.open = False
    newest = painted_value(0, 0, 1)
    assert [env.step(0)[1] for _ in range(2)] == [newest] * 2
    model.open = True
    assert [delivery.reward for delivery in env.flush()] == [painted_value(0, 0, 2), painted_value(0, 0, 3)]
    env.reset()
    assert [env.step(0)[1] for _ in range(2)] == [painted_value(0, 1, 1), painted_value(0, 1, 2)]
    env.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("vector", [gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv])
def test_wrappers_in_a_vector_environment(vector):
    options = {"context": "spawn"} if vector is gym.vector.AsyncVectorEnv else {}
    venv = vector([make, make], **options)
    venv.reset(seed=0)
    rewards = [list(venv.step(venv.action_space.sample())[1]) for _ in range(5)]
    assert rewards == [[painted_value(0, 0, step)] * 2 for step in range(1, 6)]
    venv.close()


@pytest.mark.parametrize("takes", [False, True])
def test_the_vector_wrapper(takes):
    model = GatedModel()
    venv = gym.vector.SyncVectorEnv(capture_frames([lambda: PaintedEnv((9,)), lambda: PaintedEnv((9,), env=1)]))
    venv = VLPVectorRewardWrapper(venv, SENTENCE, model, mode="async")
    venv.reset(seed=0)
    venv.flush() if takes else None
    model.open = not takes
    for step in range(1, 7):
        _, rewards, *_ = venv.step(venv.action_space.sample())
        assert list(rewards) == ([0.0, 0.0] if takes else [painted_value(env, 0, step) for env in range(2)])
    model.open = True
    venv.close()


def test_numbers_stay_numbers_where_infos_become_tensors():
    pytest.importorskip("array_api_compat")
    from gymnasium.wrappers import NumpyToTorch

    env = NumpyToTorch(VLPRewardWrapper(PaintedEnv((6,)), SENTENCE, SlowModel(), mode="async"))
    env.reset(seed=0)
    tickets, late = [], []
    import torch

    for _ in range(6):
        tickets.append(ticket_in(env.step(torch.tensor(0))[4]["vlp"]))
        late += env.get_wrapper_attr("poll")()
    late += env.get_wrapper_attr("flush")()
    assert [delivery.ticket for delivery in late] == tickets
    assert {type(number) for ticket in tickets for number in ticket} == {int}
    rewards = [delivery.reward for delivery in late]
    assert (rewards, {type(reward) for reward in rewards}) == ([painted_value(0, 0, t) for t in range(1, 7)], {float})
    env.close()


def test_a_delivery_made_anew_is_of_pythons_numbers():
    assert Delivery._make([None, 1, 2, None, 3, 0]) == (None, 1.0, 2.0, None, 3.0, False)
