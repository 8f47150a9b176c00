"""Late rewards in hand-written loops: every reward lands in the row of its transition, whatever happens meanwhile."""

from __future__ import annotations

import re
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from late import SENTENCE, GatedModel, SlowModel

from vlp_gym import LateRewards, VLPRewardWrapper, VLPVectorRewardWrapper, capture_frames
from vlp_gym.engine import QueryEngine
from vlp_gym.errors import QueryError, QueryTimeout
from vlp_gym.testing import FaultyModel, PaintedEnv, painted_value
from vlp_gym.wrappers.late_source import NO_NUMBERS, NOT_WRAPPED
from vlp_gym.wrappers.outside import MEDDLING

LENGTHS = ((3, 5, 2), (4, 1, 6), (9,))
NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
KINDS = ["captured", "wrapped one by one", "one engine"]


def single(env, lengths, model, **options):
    return VLPRewardWrapper(PaintedEnv(lengths, env=env), SENTENCE, model or SlowModel(), **options)


def make(kind="captured", autoreset=NEXT_STEP, lengths=LENGTHS, model=None, mode="async", **options):
    """A vector environment with reward wrappers in or around it."""
    workers = {"context": "fork"} if kind.endswith("workers") else {}
    vector = AsyncVectorEnv if workers else SyncVectorEnv
    if kind.startswith("captured"):
        fns = capture_frames([partial(PaintedEnv, each, env=env) for env, each in enumerate(lengths)])
        venv = vector(fns, autoreset_mode=autoreset, **workers)
        return VLPVectorRewardWrapper(venv, SENTENCE, model or SlowModel(), mode=mode, **options)
    if kind == "one engine":
        model, mode = QueryEngine(model or SlowModel(), mode=mode), "sync"
    fns = [partial(single, env, each, model, mode=mode, **options) for env, each in enumerate(lengths)]
    return vector(fns, autoreset_mode=autoreset, **workers)


def step(envs):
    """One step of a vector, in every mode of autoreset: rewards, ends and infos."""
    _, rewards, terminated, truncated, infos = envs.step(np.zeros(envs.num_envs, np.int64))
    over = terminated | truncated
    if envs.metadata["autoreset_mode"] == DISABLED and over.any():
        envs.reset(options={"reset_mask": over})
    return rewards, over, infos


def painted(lengths, steps, autoreset):
    """What a vector pays: ``[steps, num_envs]``, 0 where there is a reset in place of a step."""
    columns = []
    for env, each in enumerate(lengths):
        column, episode = [], 0
        while len(column) < steps:
            length = each[min(episode, len(each) - 1)]
            column += [painted_value(env, episode, number) for number in range(1, length + 1)]
            column += [0.0] if autoreset == NEXT_STEP else []
            episode += 1
        columns.append(column[:steps])
    return np.array(columns).T


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autoreset", AutoresetMode)
def test_the_rollouts_of_a_ppo(autoreset, kind, mode):
    rollouts_are_right(autoreset, kind, mode)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", ["captured in workers", "wrapped in workers"])
@pytest.mark.parametrize("autoreset", [NEXT_STEP, SAME_STEP])
def test_the_rollouts_of_a_ppo_whose_environments_live_in_workers(autoreset, kind):
    rollouts_are_right(autoreset, kind, "async")


def rollouts_are_right(autoreset, kind, mode):
    """The loop of CleanRL's PPO."""
    num_steps, iterations = 7, 4
    envs = make(kind, autoreset, mode=mode)
    late = LateRewards(envs)
    got = []
    envs.reset(seed=0)
    for _ in range(iterations):
        rewards = torch.zeros(num_steps, envs.num_envs)
        for t in range(num_steps):
            reward, _, infos = step(envs)
            rewards[t] = torch.tensor(reward)
            late.step(t, infos)
        late.fill(rewards)
        got.append(rewards.numpy())
    envs.close()
    assert late.late == (mode == "async")
    assert (np.concatenate(got) == painted(LENGTHS, num_steps * iterations, autoreset).astype(np.float32)).all()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("rows", ["[T]", "[T, N]", "[N T]"])
@pytest.mark.parametrize("autoreset", [NEXT_STEP, SAME_STEP])
def test_the_replay_buffer_of_an_off_policy_loop(autoreset, rows, mode):
    """A ring: rows are used again, and only those whose rewards are there may be sampled."""
    steps, capacity = 60, 40
    num_envs = 1 if rows == "[T]" else 3
    envs = make("captured", autoreset, LENGTHS[:num_envs], mode=mode)
    late = LateRewards(envs)
    shape = capacity * num_envs if rows == "[N T]" else (capacity, num_envs)
    kept, settled, right = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape)
    expected = painted(LENGTHS[:num_envs], steps, autoreset)
    envs.reset(seed=0)
    for t in range(steps):
        row = t % capacity
        if rows == "[N T]":
            row = row * num_envs + np.arange(num_envs)
        kept[row], _, infos = step(envs)
        right[row] = expected[t]
        settled[row] = ~late.step(row, infos)
        ready, rewards = late.ready()
        kept[ready], settled[ready] = rewards, True
        assert (kept[settled] == right[settled]).all()
    ready, rewards = late.ready(wait=True)
    kept[ready], settled[ready] = rewards, True
    assert settled.all()
    assert (kept == right).all()
    stats = late.stats()
    assert stats["submitted"] == stats["delivered"] + stats["stale"] == (np.count_nonzero(expected) if late.late else 0)
    envs.close()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_single_environment_and_whole_episodes(mode):
    env = single(0, (5, 1, 3), None, mode=mode)
    late = LateRewards(env)
    for episode, length in enumerate((5, 1, 3, 3)):
        env.reset()
        rewards, over = [], False
        while not over:
            _, reward, over, _, info = env.step(0)
            assert late.step(len(rewards), info) is (mode == "async")
            rewards.append(reward)
        rewards = np.array(rewards)
        late.fill(rewards)
        assert rewards.tolist() == [painted_value(0, episode, number) for number in range(1, length + 1)]
    env.close()


@pytest.mark.parametrize("kind", ["captured", "wrapped one by one"])
def test_whole_episodes_of_a_vector(kind):
    """Each environment has rows of its own, which are completed when its episode ends."""
    envs = make(kind, SAME_STEP)
    late = LateRewards(envs)
    envs.reset(seed=0)
    episodes = [[] for _ in LENGTHS]
    numbers = [0] * len(LENGTHS)
    for _ in range(30):
        reward, over, infos = step(envs)
        late.step([len(episode) for episode in episodes], infos)
        for env, episode in enumerate(episodes):
            episode.append(reward[env])
            if over[env]:
                rewards = np.array(episode, np.float32)
                late.fill(rewards, env)
                wanted = [painted_value(env, numbers[env], number) for number in range(1, len(rewards) + 1)]
                assert rewards.tolist() == np.float32(wanted).tolist()
                episodes[env], numbers[env] = [], numbers[env] + 1
    assert numbers == [13, 6, 3]
    envs.close()


class Flaky(SlowModel):
    """Takes its time, and fails at some calls, counted from when that is set."""

    fails = frozenset()

    def score(self, frames, text, mask):
        if self.calls + 1 in self.fails:
            self.calls += 1
            raise ZeroDivisionError("division by zero")
        return super().score(frames, text, mask)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    fails=st.sets(st.integers(2, 60), max_size=5),
    kind=st.sampled_from(["captured", "wrapped one by one", "one engine"]),
    autoreset=st.sampled_from([NEXT_STEP, SAME_STEP]),
    on_policy=st.booleans(),
)
def test_a_model_that_fails_gives_nobody_anothers_reward(fails, kind, autoreset, on_policy):
    """The observation says what is right: the painted frame of the step."""
    model = Flaky()
    envs = make(kind, autoreset, model=model)
    model.fails = {model.calls + fail for fail in fails}
    bare = [*envs.unwrapped.envs]
    late = LateRewards(envs)
    capacity = 8 if on_policy else 400
    kept, right = np.full((capacity, len(LENGTHS)), -1.0), np.zeros((capacity, len(LENGTHS)))
    checked, row, begin = 0, 0, True
    for _ in range(60):
        try:
            if begin:
                envs.reset(seed=0)
                begin, row = False, 0 if on_policy else row
            before = [(env.unwrapped.episode, env.unwrapped.elapsed) for env in bare]
            _, _, infos = step(envs)
            for env, (episode, elapsed) in enumerate(before):
                right[row, env] = painted_value(env, episode, elapsed + 1)
            row += 1
            late.step(row - 1, infos)
            if not on_policy:
                rows, rewards = late.ready()
                assert (right[rows] == rewards).all()
                checked += len(rewards)
            elif row == capacity:
                kept[:] = -1.0
                late.fill(kept)
                assert (kept[kept >= 0] == right[kept >= 0]).all()
                checked, row = checked + int((kept >= 0).sum()), 0
        except QueryError:
            begin = True
            if on_policy:
                late.reset()
        except gym.error.ResetNeeded:
            begin = True
    for _ in range(4):
        try:
            rows, rewards = late.ready(wait=True)
            assert (right[rows] == rewards).all()
            break
        except QueryError:
            pass
    assert checked > 0
    stats = late.stats()
    assert stats["submitted"] == sum(count for name, count in stats.items() if name != "submitted")
    envs.close()


def test_a_reward_that_will_not_come_is_an_error_and_the_rows_are_free_again():
    env = single(0, (50,), FaultyModel("raises", at=5), mode="async")
    late, rewards = LateRewards(env), np.zeros(10)
    env.reset()
    for t in range(4):
        env.engine.wait()  # so that each query is a call of the model
        late.step(t, env.step(0)[4])
    env.engine.wait()
    with pytest.raises(QueryError, match=r"ZeroDivisionError: division by zero \(env 0, episode 0, step 4\)$"):
        env.step(0)
    with pytest.raises(QueryError, match=r"^no reward came for env 0, episode 0, step 4, and none is on its way$"):
        late.fill(rewards)
    env.reset()
    for t in range(10):
        late.step(t, env.step(0)[4])
    late.fill(rewards)
    assert rewards.tolist() == [painted_value(0, 1, number) for number in range(1, 11)]
    env.close()


def test_a_model_that_hangs():
    model = GatedModel()
    env = single(0, (50,), model, mode="async")
    late = LateRewards(env, timeout_s=0.2)
    env.reset()
    late.step(0, env.step(0)[4])
    model.open = False
    late.step(1, env.step(0)[4])
    late.step(2, env.step(0)[4])
    message = "no reward came for 0.2 s; 2 are pending, the oldest: env 0, episode 0, step 2"
    rewards = np.zeros(3)
    with pytest.raises(QueryTimeout, match=f"^{message}$"):
        late.fill(rewards)
    model.open = True
    late.fill(rewards)  # again
    assert rewards.tolist() == [painted_value(0, 0, number) for number in range(1, 4)]
    env.close()


def test_steps_run_ahead_of_the_model():
    model = GatedModel()
    env = single(0, (50,), model, mode="async")
    late = LateRewards(env)
    env.reset()
    late.step(0, env.step(0)[4])
    late.ready(wait=True)
    model.open = False
    for t in range(1, 20):
        assert late.step(t, env.step(0)[4])
        assert late.ready()[0].tolist() == []
    model.open = True
    rows, rewards = late.ready(wait=True)
    assert rows.tolist() == list(range(1, 20))
    assert rewards.tolist() == [painted_value(0, 0, number) for number in range(2, 21)]
    env.close()


def test_a_ring_that_is_overwritten_before_the_reward_came():
    model = GatedModel()
    env = single(0, (50,), model, mode="async")
    late = LateRewards(env)
    env.reset()
    late.step(0, env.step(0)[4])
    late.ready(wait=True)
    model.open = False
    for t in range(1, 9):  # steps 2 to 9; the rows have those from 7 on
        late.step(t % 3, env.step(0)[4])
    model.open = True
    rows, rewards = late.ready(wait=True)
    assert dict(zip(rows.tolist(), rewards.tolist(), strict=True)) == {
        row: painted_value(0, 0, number) for row, number in zip((0, 1, 2), (7, 8, 9), strict=True)
    }
    stats = late.stats()
    assert (stats["submitted"], stats["delivered"], stats["stale"], stats["pending"]) == (9, 4, 5, 0)
    env.close()


def test_an_evaluation_between_belongs_to_nobody():
    env = single(0, (6,), None, mode="async")
    late, rewards = LateRewards(env), np.zeros(3)
    for round_ in range(3):
        env.reset()
        for t in range(3):
            late.step(t, env.step(0)[4])
        env.reset()
        paid = [env.step(0)[1] for _ in range(6)]  # exact: nobody takes these
        assert paid == [painted_value(0, 2 * round_ + 1, number) for number in range(1, 7)]
        late.fill(rewards)
        assert rewards.tolist() == [painted_value(0, 2 * round_, number) for number in range(1, 4)]
    env.close()


def test_reset_forgets_the_rows():
    env = single(0, (50,), None, mode="async")
    late, rewards = LateRewards(env), np.zeros(4)
    env.reset()
    for t in range(3):
        late.step(t, env.step(0)[4])
    late.reset()
    env.step(0)  # a step that is not noted
    for t in range(3):
        late.step(t, env.step(0)[4])
    late.fill(rewards)
    assert rewards.tolist() == [*(painted_value(0, 0, number) for number in (5, 6, 7)), 0.0]
    env.close()


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", ["captured", "wrapped one by one"])
def test_infos_in_every_form(kind, flat):
    """Flat, and with Gymnasium's own wrappers around."""
    normalize, statistics = gym.wrappers.vector.NormalizeObservation, gym.wrappers.vector.RecordEpisodeStatistics
    for autoreset, outer in ((NEXT_STEP, normalize), (SAME_STEP, statistics)):
        envs = outer(make(kind, autoreset, flat_info=flat))
        late, rewards = LateRewards(envs), np.zeros((9, 3))
        _, infos = envs.reset(seed=0)
        assert ("vlp/score" in infos, "vlp" in infos) == (flat, not flat)
        for t in range(9):
            late.step(t, step(envs)[2])
        late.fill(rewards)
        assert (rewards == painted(LENGTHS, 9, autoreset)).all()
        envs.close()


def test_a_list_of_infos():
    envs = make("captured")
    late, rewards = LateRewards(envs), np.zeros((9, 3))
    envs.reset(seed=0)
    lister = gym.wrappers.vector.DictInfoToList(make("captured"))
    for t in range(9):
        late.step(t, lister._convert_info_to_list(step(envs)[2]))
    late.fill(rewards)
    assert (rewards == painted(LENGTHS, 9, NEXT_STEP)).all()
    lister.close()
    envs.close()


def scaled(env):
    return gym.wrappers.TransformReward(env, lambda reward: 10 * reward)


@pytest.mark.parametrize("vector", [False, True])
def test_under_a_wrapper_that_changes_rewards_each_step_waits(vector, caplog):
    with caplog.at_level("WARNING", "vlp_gym"):
        if vector:
            envs = gym.wrappers.vector.TransformReward(make("captured"), lambda rewards: 10 * rewards)
        else:
            envs = SyncVectorEnv([lambda: scaled(single(0, (9,), None, mode="async"))])
        late = LateRewards(envs)
    assert caplog.messages == [MEDDLING % "TransformReward"]
    assert not late.late
    envs.reset(seed=0)
    for number in range(1, 9):
        reward, _, infos = step(envs)
        assert late.step(0, infos).tolist() == [False] * envs.num_envs
        assert late.ready()[1].tolist() == []
        if number < 3:
            assert reward[0] == 10 * painted_value(0, 0, number)
    late.fill(np.zeros(3))  # nothing is to be done, and nothing is looked at
    envs.close()


def test_bad_use_of_rows():
    envs = make("captured")
    late = LateRewards(envs)
    envs.reset(seed=0)
    infos = step(envs)[2]
    for row, message in [
        ([0, 1], "expected one row, or one for each of 3 environments, got [0, 1]"),
        (-1, "expected rows as whole numbers, at least 0, got -1"),
        (0.5, "expected rows as whole numbers, at least 0, got 0.5"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            late.step(row, infos)
    late.step(0, infos)
    with pytest.raises(ValueError, match=r"^expected rows as before: either one for all environments at each step, or"):
        late.step([1, 2, 3], infos)
    with pytest.raises(ValueError, match=r"^these infos were given before \(env 0, episode 0, step 1\)$"):
        late.step(1, infos)
    message = (
        "row 0 of environment 0 was given twice, and its first reward was not taken yet: call fill after each rollout, "
        "or ready after each step; reset forgets all rows"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        late.step(0, step(envs)[2])
    envs.close()
    env = single(0, (9,), None, mode="async")
    late = LateRewards(env)
    env.reset()
    with pytest.raises(ValueError, match=r"^expected one row, got \[0\]$"):
        late.step([0], env.step(0)[4])
    env.close()


@pytest.mark.parametrize(
    ("rewards", "error", "message"),
    [
        (np.zeros(4), ValueError, "expected rewards [T, 3] with T at least 4, got [4]"),
        (np.zeros((3, 3)), ValueError, "expected rewards [T, 3] with T at least 4, got [3, 3]"),
        (torch.zeros(4, 2), ValueError, "expected rewards [T, 3] with T at least 4, got [4, 2]"),
        (np.zeros((4, 3), np.int64), TypeError, "expected rewards of a float dtype, got int64"),
        (torch.zeros(4, 3, dtype=torch.int64), TypeError, "expected rewards of a float dtype, got torch.int64"),
        ([[0.0] * 3] * 4, TypeError, "expected rewards as a NumPy array or torch tensor, got list"),
    ],
)
def test_bad_rewards(rewards, error, message):
    envs = make("captured")
    late = LateRewards(envs)
    envs.reset(seed=0)
    for t in range(4):
        late.step(t, step(envs)[2])
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        late.fill(rewards)
    with pytest.raises(ValueError, match=r"^expected env from 0 to 2, got 3$"):
        late.fill(np.zeros(4), 3)
    right = np.zeros((5, 3), np.float32)  # it is not too late
    late.fill(right)
    assert (right[:4] == painted(LENGTHS, 4, NEXT_STEP).astype(np.float32)).all()
    envs.close()


def test_infos_that_are_not_the_wrappers():
    env = single(0, (9,), None, mode="async")
    late = LateRewards(env)
    env.reset()
    with pytest.raises(ValueError, match=f"^{re.escape(NO_NUMBERS)}$"):
        late.step(0, {"other": 1})
    env.close()


def test_a_step_that_was_left_out():
    env = single(0, (9,), None, mode="async")
    late = LateRewards(env)
    env.reset()
    late.step(0, env.step(0)[4])
    env.step(0)
    with pytest.raises(ValueError, match=r"^LateRewards\.step was not called after each step of the environment, or a"):
        late.step(1, env.step(0)[4])
    env.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_environments_without_a_wrapper():
    for envs in (
        PaintedEnv(),
        SyncVectorEnv([PaintedEnv]),
        SyncVectorEnv([partial(single, 0, (9,), None, mode="async"), PaintedEnv]),
        AsyncVectorEnv([PaintedEnv], context="fork"),
    ):
        inner = [*getattr(envs, "envs", [envs])][-1] if not isinstance(envs, AsyncVectorEnv) else envs
        with pytest.raises(ValueError, match=f"^{re.escape(NOT_WRAPPED.format(inner))}$"):
            LateRewards(envs)
        envs.close()
    with pytest.raises(TypeError, match=r"^expected a Gymnasium environment or vector environment, got list$"):
        LateRewards([])
    env = single(0, (9,), None)
    with pytest.raises(ValueError, match=r"^timeout_s must be seconds, got 0$"):
        LateRewards(env, timeout_s=0)
    env.close()


def test_no_ticket_comes_twice_in_a_process():
    """Whatever engines and wrappers there are."""
    envs = [make("captured"), make("one engine"), make("wrapped one by one")]
    seen = set()
    for venv in envs:
        venv.reset(seed=0)
        for _ in range(3):
            vlp = step(venv)[2]["vlp"]
            tickets = set(zip(vlp["env"].tolist(), vlp["episode"].tolist(), vlp["step"].tolist(), strict=True))
            assert len(tickets) == 3
            assert not tickets & seen
            seen |= tickets
        venv.close()
